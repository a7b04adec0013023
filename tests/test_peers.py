"""The peers of the benchmarks train the model they say they train."""

import pathlib
import sys

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from craft_jax.config.load import load_config
from craft_jax.model.build import build
from craft_jax.model.precision import platform_of

HERE = platform_of(jax.devices()[0])

torch = pytest.importorskip('torch')

_GPT2 = [
  'model.norm=layer', 'model.mlp=gelu', 'model.position=learned',
  'model.qk_norm=False', 'model.logit_cap=0.0', 'model.tied=True',
]  # fmt: skip
_SIZE = [
  'model.width=32', 'model.depth=2', 'model.num_heads=2', 'model.context=12',
  'model.zero_init=False', 'data.path=any', 'model.precision=float32',
]  # fmt: skip
V = 11


@pytest.fixture
def torch_model(monkeypatch):
  folder = pathlib.Path(__file__).parents[1] / 'benchmarks' / 'peers'
  monkeypatch.syspath_prepend(str(folder))
  import torch_model

  yield torch_model
  del sys.modules['torch_model']


def _copy(params, model):
  """Gives the peer our parameters; its kernels are `[out, in]`."""

  def put(target, value):
    assert target.shape == value.shape
    target.data = torch.tensor(np.array(value))

  put(model.embed.weight, params['embed']['embedding'])
  if 'positions' in params:
    put(model.positions.weight, params['positions']['embedding'])
  if 'head' in params:
    put(model.head.weight, params['head']['kernel'].T)
  norms = [(model.final_norm, params['final_norm'])]
  for i, block in enumerate(model.blocks):
    ours = jax.tree.map(lambda a, i=i: a[i], params['blocks'])
    parts = [ours['attention'][n]['kernel'] for n in ('query', 'key', 'value')]
    put(block.attention.qkv.weight, jnp.concatenate(parts, axis=1).T)
    put(block.attention.output.weight, ours['attention']['output']['kernel'].T)
    put(block.up.weight, ours['mlp']['in']['kernel'].T)
    put(block.down.weight, ours['mlp']['out']['kernel'].T)
    norms.append((block.attention_norm, ours['attention_norm']))
    norms.append((block.mlp_norm, ours['mlp_norm']))
  for target, norm in norms:
    put(target.weight, norm['scale'])
    if 'bias' in norm:
      put(target.bias, norm['bias'])


@pytest.mark.parametrize('flags', [_GPT2, []], ids=['gpt2', 'craft'])
def test_the_torch_model_is_ours(torch_model, flags):
  cfg = load_config('text', [*_SIZE, *flags])
  model = build(cfg.model, V, HERE)
  params = jax.jit(model.init)(jax.random.key(0))
  noise = jax.random.normal(jax.random.key(1), (4096,))
  params = jax.tree.map(lambda p: p + 0.2 * jnp.resize(noise, p.shape), params)
  names = ('context', 'width', 'depth', 'num_heads', 'norm', 'mlp', 'position',
           'qk_norm', 'logit_cap', 'tied')  # fmt: skip
  shape = {name: getattr(cfg.model, name) for name in names}
  peer = torch_model.Decoder(torch_model.Shape(V, **shape))
  if cfg.model.tied:  # ours scales a tied embedding by sqrt(width) as input
    peer.head.weight = torch.nn.Parameter(peer.head.weight.clone())
    _copy(params | {'head': {'kernel': params['embed']['embedding'].T}}, peer)
    peer.embed.weight.data *= cfg.model.width**0.5
  else:
    _copy(params, peer)
  x_BT = jax.random.randint(jax.random.key(2), (3, 12), 0, V)
  want = jax.jit(model.apply)(params, x_BT)
  with torch.no_grad():
    got = peer(torch.tensor(np.array(x_BT, np.int64)))
  np.testing.assert_allclose(got.numpy(), want, rtol=2e-4, atol=2e-4)
