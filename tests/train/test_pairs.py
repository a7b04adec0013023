"""Training on pairs: each sees itself alone and learns its completion."""

import functools
import json

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from craft_jax.config.load import load_config
from craft_jax.data import batch as batch_lib
from craft_jax.data import pairs
from craft_jax.data.prepare import open_corpus
from craft_jax.data.text.vocabulary import Vocabulary
from craft_jax.errors import UserError
from craft_jax.inference.evaluate import evaluate_run
from craft_jax.inference.load import load_model
from craft_jax.main import main
from craft_jax.model.build import build
from craft_jax.model.losses import token_losses
from craft_jax.model.precision import platform_of
from craft_jax.model.sharding import mesh as mesh_lib
from craft_jax.runs import checkpoint
from craft_jax.train.optim.optimizers import build_optimizer
from craft_jax.train.run import train
from craft_jax.train.state import init_state
from craft_jax.train.step import make_train_step

CONTEXT = 32
BYTE = Vocabulary.byte()
ROWS = [(f'{i} * {i}', 'x' * (i % 7 + 1) + f'{i * i}') for i in range(90)]
_SIZE = [
  f'model.context={CONTEXT}', 'model.width=16', 'model.depth=2',
  'model.num_heads=2', 'model.precision=float32', 'train.steps=12',
  'train.batch_size=8', 'optim.warmup_steps=2', 'eval.batch_size=16',
  'log.every=1', 'log.sample_chars=0',
]  # fmt: skip


@pytest.fixture(scope='module')
def file(tmp_path_factory):
  path = tmp_path_factory.mktemp('pairs') / 'squares.tsv'
  path.write_text('a\tb\n' + ''.join(f'{p}\t{c}\n' for p, c in ROWS))
  return path


@pytest.fixture
def toy(file, tmp_path):
  def make(*overrides):
    fields = ['data.prompt_field=a', 'data.completion_field=b']
    given = [f'data.path={file}', f'data.cache_dir={tmp_path}/cache', *fields]
    return load_config('pairs', [*given, *_SIZE, *overrides])

  return make


@functools.cache
def model_of(cfg):
  model = build(cfg, BYTE.size, platform_of(jax.devices()[0]))
  params = jax.jit(model.init)(jax.random.key(0))
  # Nothing starts at zero, so that everything has an effect.
  noise = jax.random.normal(jax.random.key(1), (4096,))
  params = jax.tree.map(lambda p: p + 0.1 * jnp.resize(noise, p.shape), params)
  return model, params


def batch_of(cfg, *parts):
  """The windows of each part, a list of rows, as training sees them."""
  windows = []
  for rows in parts:
    tokens = pairs.pack(BYTE, *map(list, zip(*rows, strict=True)), CONTEXT)
    starts = np.arange(0, len(tokens) - 1, CONTEXT)
    windows.append(tokens[starts[:, None] + np.arange(CONTEXT + 1)])
  window_BS = np.concatenate(windows).astype(np.int32)
  recipe = batch_lib.recipe_of(cfg, BYTE)
  return jax.jit(batch_lib.to_batch, static_argnums=2)(
    window_BS, jax.random.key(0), recipe
  )


def losses(model, params, batch, z_loss=0.0):
  """Loss sum and count of a batch."""
  logits_BTV = jax.jit(model.apply)(params, batch.x_BT, batch.segment_BT)
  loss_BT, _, _ = token_losses(logits_BTV, batch.y_BT, 0.0, z_loss)
  return float((loss_BT * batch.weight_BT).sum()), float(batch.weight_BT.sum())


@pytest.mark.parametrize('z_loss', [0.0, 0.1])
def test_the_loss_of_windows_is_that_of_rows_alone(toy, z_loss):
  cfg = toy()
  model, params = model_of(cfg.model)
  total, count = losses(model, params, batch_of(cfg, ROWS), z_loss)
  rows = batch_of(cfg, *([row] for row in ROWS))
  assert len(rows.x_BT) == len(ROWS)
  total_alone, count_alone = losses(model, params, rows, z_loss)
  assert count == count_alone == sum(len(c) + 1 for _, c in ROWS)
  np.testing.assert_allclose(total, total_alone, rtol=1e-5)


@pytest.mark.parametrize('flags', [[], ['model.ngrams=2', 'model.window=8']])
def test_a_row_does_not_see_the_others(toy, flags):
  cfg = toy(*flags)
  model, params = model_of(cfg.model)
  batch = batch_of(cfg, ROWS[:9])
  apply = jax.jit(model.apply)
  before_BTV = np.asarray(apply(params, batch.x_BT, batch.segment_BT))
  # Every text token of the first row of each window becomes another one.
  first_BT = (batch.segment_BT == 1) & (batch.x_BT < 256)
  x_BT = jnp.where(first_BT, 255 - batch.x_BT, batch.x_BT)
  after_BTV = np.asarray(apply(params, x_BT, batch.segment_BT))
  others_BT = np.asarray(batch.segment_BT > 1)
  assert others_BT.any() and (batch.segment_BT[0] > 1).any()
  np.testing.assert_array_equal(after_BTV[others_BT], before_BTV[others_BT])
  assert not np.array_equal(after_BTV[~others_BT], before_BTV[~others_BT])


@pytest.mark.parametrize('way', ['accumulate', 'devices'])
def test_rows_of_unequal_weight_in_pieces(toy, way):
  """Micro-batches and devices hold different numbers of learnt tokens."""
  batch = batch_of(toy(), ROWS)
  # Windows with much to learn first, so that the halves differ the most.
  order = jnp.argsort(-batch.weight_BT.sum(1))[: len(batch.x_BT) // 4 * 4]
  batch = jax.tree.map(lambda a: a[order], batch)
  half = batch.weight_BT.sum(1).reshape(2, -1).sum(1)
  assert half[0] > 1.1 * half[1]
  size = f'train.batch_size={len(order)}'

  def one_step(cfg, batch):
    model, params = model_of(cfg.model)
    optimizer = build_optimizer(cfg, model, None)
    state = init_state(model, optimizer, jax.random.key(0), False, params)
    step = jax.jit(make_train_step(cfg, model, optimizer))
    return step(state, batch, jax.random.key(1))

  flags = [size, 'optim.name=sgd', 'train.z_loss=0.01']
  whole, sums = one_step(toy(*flags), batch)
  if way == 'accumulate':
    pieces, other = one_step(toy(*flags, 'train.accumulate=2'), batch)
  else:
    cfg = toy(*flags)
    mesh = mesh_lib.make_mesh(cfg)
    assert mesh.size == 2
    with jax.set_mesh(mesh):
      pieces, other = one_step(
        cfg, mesh_lib.put_batch(batch, mesh_lib.batch_sharding(mesh))
      )
  assert sums['count'] == other['count'] == batch.weight_BT.sum()
  np.testing.assert_allclose(sums['loss'], other['loss'], rtol=1e-5)
  for a, b in zip(
    jax.tree.leaves(whole.params), jax.tree.leaves(pieces.params), strict=True
  ):
    np.testing.assert_allclose(a, b, rtol=1e-4, atol=1e-6)


def digests(workdir):
  found = checkpoint.report(workdir)
  return [found[k] for k in ('step', 'params_sha256', 'opt_state_sha256')]


@pytest.mark.slow
def test_resumed_in_mid_epoch_and_streamed(toy, tmp_path):
  summary = train(toy(), tmp_path / 'a', quiet=True)
  assert toy().train.steps * 8 > len(ROWS) // 3  # more than an epoch
  for stop in (5, 0):
    flags = [f'train.stop_at_step={stop}', 'data.placement=grain']
    train(toy(*flags), tmp_path / 'b', quiet=True)
  assert digests(tmp_path / 'a') == digests(tmp_path / 'b')
  # Evaluation is the average over the tokens of completions, scored alone.
  found = load_model(tmp_path / 'a')
  corpus = open_corpus(toy())
  cfg = toy()
  rows = [
    (p, c) for p, some in pairs.rows_of(corpus.valid.tokens, BYTE) for c in some
  ]
  alone = batch_of(cfg, *([row] for row in rows))
  total, count = losses(found.model, found.params, alone)
  assert count == corpus.valid.num_learnt == summary['val_count']
  np.testing.assert_allclose(summary['val_loss'], total / count, rtol=1e-5)
  bits = total / np.log(2) / corpus.valid.num_chars
  np.testing.assert_allclose(summary['val_bpc'], bits, rtol=1e-5)
  assert evaluate_run(tmp_path / 'a')['val_loss'] == summary['val_loss']
  with pytest.raises(UserError, match='learnt pairs'):
    evaluate_run(tmp_path / 'a', stride=4)
  # In training, bits per character by the split's own ratio.
  lines = (tmp_path / 'a' / 'metrics.jsonl').read_text().splitlines()
  row = next(r for r in map(json.loads, lines) if 'bpc' in r)
  ratio = corpus.train.num_learnt / corpus.train.num_chars
  np.testing.assert_allclose(row['bpc'], row['nll'] / np.log(2) * ratio)
  assert 1 < ratio < 2
  assert checkpoint.open_meta(tmp_path / 'a', 12).config.data.format == 'pairs'


@pytest.mark.slow
def test_from_text_to_pairs_and_back(file, tmp_path):
  text = tmp_path / 'my.txt'
  text.write_text('Squares are products of a number with itself.\n' * 200)

  def run(name, *flags):
    words = [f'--config.data.cache_dir={tmp_path}/cache', *flags]
    where = f'--workdir={tmp_path / name}'
    return main(['train', where, '--quiet', '--config.train.steps=3', *words])

  sizes = [f'--config.{flag}' for flag in _SIZE if 'steps=12' not in flag]
  fields = ['--config.data.prompt_field=a', '--config.data.completion_field=b']
  assert run('t', '--config=text', f'--config.data.path={text}', *sizes) == 0
  path = f'--config.data.path={file}'
  child = [f'--from={tmp_path / "t"}', '--config.data.format=pairs', path]
  assert run('p', *child, *fields) == 0
  cfg = checkpoint.open_meta(tmp_path / 'p', 3).config
  assert (cfg.data.format, cfg.data.order) == ('pairs', 'windows')
  assert cfg.model.documents and cfg.model.width == 16
  # Another file of pairs: its fields have the same names.
  assert run('q', f'--from={tmp_path / "p"}', path) == 0
  cfg = checkpoint.open_meta(tmp_path / 'q', 3).config
  assert (cfg.data.format, cfg.data.prompt_field) == ('pairs', 'a')
  back = [f'--from={tmp_path / "p"}', '--config.data.format=text']
  assert run('b', *back, f'--config.data.path={text}') == 0
  cfg = checkpoint.open_meta(tmp_path / 'b', 3).config
  assert (cfg.data.format, cfg.data.order) == ('text', 'crops')
