"""A second architecture is one file and one line in a literal dict.

Gated causal convolutions, without attention, positions or documents: trained,
resumed, evaluated, sampled, constrained, compressed with and served.
"""

import asyncio
import dataclasses
import io
import re
import types

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from craft_jax.config import load as config_lib
from craft_jax.config.settings import Model as ModelConfig
from craft_jax.errors import UserError
from craft_jax.inference.compress import pack
from craft_jax.inference.evaluate import evaluate_run
from craft_jax.inference.language_model import LanguageModel
from craft_jax.inference.load import load_model
from craft_jax.model import cache as cache_lib
from craft_jax.model.build import ARCHITECTURES, build
from craft_jax.model.cache import Cache
from craft_jax.model.precision import PLATFORMS, Policy, einsum
from craft_jax.model.protocol import ActivationBytes, Model
from craft_jax.model.sharding.rules import IN, OUT
from craft_jax.runs import checkpoint
from craft_jax.serve import completions
from craft_jax.serve import service as service_lib
from craft_jax.serve.admission import Limits
from craft_jax.serve.logs import Log
from craft_jax.serve.schemas import CompletionBody
from craft_jax.train.run import train

pytestmark = pytest.mark.slow
TEXT = ''.join(f'{i} squared is {i * i}; ' for i in range(600))
TAPS = 4  # positions that a convolution reads


@dataclasses.dataclass(frozen=True)
class Convolution:
  """`x + (w * in(x)) sigmoid(gate(x)) out`, `depth` times."""

  cfg: ModelConfig
  vocabulary_size: int
  policy: Policy
  cache: str = 'auto'

  documents = False
  sharding_rules = types.MappingProxyType(
    {
      ('embed', 'embedding'): (None, 'fsdp'),
      ('in', 'kernel'): IN,
      ('gate', 'kernel'): IN,
      ('out', 'kernel'): OUT,
      ('taps', 'scale'): (None, None, 'tensor'),
      ('head', 'kernel'): ('fsdp', None),
    }
  )

  @property
  def context(self):
    return self.cfg.context

  def init(self, key):
    L, D, V = self.cfg.depth, self.cfg.width, self.vocabulary_size
    shapes = {'in': (L, D, D), 'gate': (L, D, D), 'out': (L, D, D)}
    keys = iter(jax.random.split(key, 6))

    def draw(*shape):
      return jax.random.normal(next(keys), shape) * D**-0.5

    blocks = {name: {'kernel': draw(*shapes[name])} for name in shapes}
    return {
      'embed': {'embedding': draw(V, D)},
      'blocks': blocks | {'taps': {'scale': draw(L, TAPS, D)}},
      'head': {'kernel': draw(D, V)},
    }

  def apply(self, params, x_BT, segment_BT=None, key=None):
    B, T = x_BT.shape
    cache = self.init_cache(B, T)
    return self.extend(params, cache, x_BT, jnp.full(B, T), segment_BT)[1]

  def init_cache(self, batch, length):
    shape = (batch, 1, length, self.cfg.width)
    zeros_BS = jnp.zeros((batch, length), jnp.int32)
    layers = tuple(
      cache_lib.empty(shape, 'float32') for _ in range(self.cfg.depth)
    )
    return Cache(layers, zeros_BS, zeros_BS, jnp.zeros(batch, jnp.int32))

  def extend(self, params, cache, x_BT, length_B, segment_BT=None, depth=None):
    B, T = x_BT.shape
    start_B = cache.length_B
    position_BT = start_B[:, None] + jnp.arange(T)[None]
    row_B1 = jnp.arange(B)[:, None]
    token_BS = cache.token_BS.at[row_B1, position_BT].set(x_BT, mode='drop')
    x_BTD = params['embed']['embedding'][x_BT]
    layers = list(cache.layers)
    for i in range(self.cfg.depth)[:depth]:
      block = jax.tree.map(lambda leaf, i=i: leaf[i], params['blocks'])

      def dense(name, x_BTD, block=block):
        return einsum('BTD,DF->BTF', x_BTD, block[name]['kernel'], self.policy)

      in_BTD = dense('in', x_BTD)
      layers[i] = cache_lib.write(layers[i], in_BTD[:, None], start_B)
      y_BTD = jnp.zeros_like(x_BTD)
      for back in range(TAPS):
        at_BT = position_BT - back
        seen_BTD = layers[i][row_B1, 0, jnp.maximum(at_BT, 0)]
        seen_BTD = jnp.where(at_BT[..., None] >= 0, seen_BTD, 0.0)
        y_BTD += seen_BTD * block['taps']['scale'][back][None, None]
      x_BTD += dense('out', y_BTD * jax.nn.sigmoid(dense('gate', x_BTD)))
    kernel = params['head']['kernel']
    logits_BTV = einsum('BTD,DV->BTV', x_BTD, kernel, self.policy)
    read = Cache(tuple(layers), token_BS, cache.segment_BS, start_B + length_B)
    return read, logits_BTV

  def for_decoding(self, params):
    return params

  def is_for_decoding(self, params):
    return False

  def is_hidden_matrix(self, names):
    return names[0] == 'blocks' and names[-1] == 'kernel'

  def check_tensor(self, shards):
    pass

  def flops_per_token(self, context):
    return 6 * (3 * self.cfg.depth * self.cfg.width + self.vocabulary_size)

  def activation_bytes(self, batch, context, tensor=1):
    tokens, width = batch * context, self.cfg.width
    kept = 4 * 12 * tokens * width * self.cfg.depth
    return ActivationBytes(kept, kept, 12 * tokens * self.vocabulary_size)

  def tensor_bytes(self, batch, context):
    return 2 * self.cfg.depth * 4 * batch * context * self.cfg.width


@pytest.fixture(scope='module', autouse=True)
def known():
  """Its one line in the dict."""
  with pytest.MonkeyPatch.context() as patch:
    patch.setitem(ARCHITECTURES, 'convolution', Convolution)
    yield


def config(folder, *overrides):
  return config_lib.load_config(
    'text',
    [
      f'data.path={folder / "squares.txt"}',
      f'data.cache_dir={folder / "cache"}',
      'model.architecture=convolution',
      'model.context=32',
      'model.width=16',
      'model.depth=2',
      'model.num_heads=2',
      'model.precision=float32',
      'train.steps=120',
      'train.batch_size=8',
      'optim.warmup_steps=2',
      'eval.batch_size=16',
      'log.sample_chars=8',
      *overrides,
    ],
  )


@pytest.fixture(scope='module')
def folder(known, tmp_path_factory):
  """With a run that was trained in one go, and one that was stopped once."""
  found = tmp_path_factory.mktemp('convolution')
  (found / 'squares.txt').write_text(TEXT)
  train(config(found), found / 'straight', quiet=True)
  for stop in (40, 0):
    cfg = config(found, f'train.stop_at_step={stop}')
    train(cfg, found / 'resumed', quiet=True)
  return found


@pytest.fixture(scope='module')
def trained(folder):
  return load_model(folder / 'straight')


def test_it_is_a_model(trained):
  assert isinstance(trained.model, Convolution)
  assert isinstance(trained.model, Model)


def test_trains_resumes_and_evaluates(folder, trained):
  found = evaluate_run(folder / 'straight')
  assert found['val_loss'] < 0.9 * np.log(260)
  resumed = load_model(folder / 'resumed').params
  jax.tree.map(np.testing.assert_array_equal, resumed, trained.params)


def test_in_pieces_equals_at_once(trained):
  """Also where a row is set back, as after a draft that was refused."""
  model, params = trained.model, trained.params
  x_BT = jax.random.randint(jax.random.key(1), (2, 12), 0, 256)
  want = jax.jit(model.apply)(params, x_BT)
  extend = jax.jit(model.extend)
  cache, first = extend(
    params, model.init_cache(2, 16), x_BT[:, :7], jnp.array([7, 7])
  )
  cache = cache.replace(length_B=jnp.array([5, 5]))
  _, rest = extend(params, cache, x_BT[:, 5:], jnp.array([7, 7]))
  np.testing.assert_allclose(first[:, :5], want[:, :5], atol=1e-5)
  np.testing.assert_allclose(rest, want[:, 5:], atol=1e-5)


def test_samples_and_is_constrained(trained):
  """Past the context too; drafts change no text."""
  model = LanguageModel(trained)
  free = model.generate('12 squared', max_chars=80, temperature=0.0)
  assert len(free) >= 80
  drafted = LanguageModel(trained, 'lookup')
  assert drafted.generate('12 squared', max_chars=80, temperature=0.0) == free
  bound = model.generate('12 squared is ', max_chars=8, regex='[0-9]{3};')
  assert re.search('[0-9]{3};$', bound)


def test_in_whole_numbers(folder):
  rounded = LanguageModel(load_model(folder / 'straight', weights='int8'))
  assert rounded.generate('1 squared', max_chars=8)


def test_compresses(trained):
  data = TEXT[:600].encode()
  packed = pack.compress(data, trained)
  assert pack.decompress(packed.archive, trained) == data


def test_is_served(trained):
  async def answer(body):
    served = service_lib.Model.of(trained)
    log = Log(io.StringIO())
    service = service_lib.Service(served, 'm', 2, Limits(), log)
    await service.start()
    try:
      taken = await completions.take(service, body)
      await taken.begin()
      async for _ in taken.news():
        pass
      return taken.choices()[0]['text']
    finally:
      await service.stop()

  body = CompletionBody(prompt='3 squared is ', max_tokens=40, temperature=0)
  model = LanguageModel(trained)
  want = model.generate(body.prompt, max_chars=40, temperature=0.0)
  assert want.endswith(asyncio.run(answer(body)))


def test_a_name_that_is_none(folder):
  cfg = config(folder, 'model.architecture=convolutions')
  with pytest.raises(UserError, match="mean 'convolution'"):
    build(cfg.model, 260, PLATFORMS['cpu'])


def test_the_checkpoint_names_it(folder):
  meta = checkpoint.open_meta(folder / 'straight', 120)
  assert meta.config.model.architecture == 'convolution'
