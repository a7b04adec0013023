"""Runs that go on to more steps, and runs that start from others' weights."""

import dataclasses
import json
import shutil

import jax
import numpy as np
import pytest

from craft_jax.config.settings import Optim, Train
from craft_jax.errors import UserError
from craft_jax.inference.load import load_model
from craft_jax.main import main
from craft_jax.model.build import build
from craft_jax.runs import checkpoint, listing
from craft_jax.train import init_from
from craft_jax.train.optim.schedules import build_schedule, run_schedule
from craft_jax.train.run import train


def _digests(workdir):
  found = checkpoint.report(workdir)
  return [found[k] for k in ('step', 'params_sha256', 'opt_state_sha256')]


# --- more steps ---------------------------------------------------------------


@pytest.mark.slow
@pytest.mark.parametrize('shape', ['constant', 'rsqrt', 'wsd'])
def test_an_extended_run_equals_a_straight_one(toy, tmp_path, shape):
  flags, stop = [f'optim.schedule={shape}'], []
  if shape == 'wsd':  # before the decay, which the last three steps would be
    flags.append('optim.decay_steps=3')
    stop.append('train.stop_at_step=8')
  train(toy(*flags, *stop), tmp_path / 'a', quiet=True)
  longer = toy(*flags, 'train.steps=20')
  train(longer, tmp_path / 'a', quiet=True)
  train(longer, tmp_path / 'b', quiet=True)
  assert _digests(tmp_path / 'a') == _digests(tmp_path / 'b')
  assert _digests(tmp_path / 'a')[0] == 20


def test_rates_that_would_change_are_refused(toy, tmp_path):
  train(toy(), tmp_path / 'a', quiet=True)
  before = _digests(tmp_path / 'a')
  with pytest.raises(UserError, match=r'extend=rewarm: from step 12 .* climbs'):
    train(toy('train.steps=20'), tmp_path / 'a', quiet=True)
  with pytest.raises(UserError, match='has done 12; give at least that'):
    train(toy('train.steps=10'), tmp_path / 'a', quiet=True)
  with pytest.raises(UserError, match='craft train --from='):
    train(toy('optim.learning_rate=0.1'), tmp_path / 'a', quiet=True)
  assert _digests(tmp_path / 'a') == before


@pytest.mark.slow
def test_a_rewarmed_run_goes_on_exactly(toy, tmp_path):
  """Straight from the extension, or stopped on the way and without flags."""
  train(toy(), tmp_path / 'a', quiet=True)
  shutil.copytree(tmp_path / 'a', tmp_path / 'b')
  longer = ('train.steps=24', 'train.extend=rewarm')
  train(toy(*longer), tmp_path / 'a', quiet=True)
  train(toy(*longer, 'train.stop_at_step=15'), tmp_path / 'b', quiet=True)
  where = f'--workdir={tmp_path / "b"}'
  assert main(['train', where, '--quiet']) == 0
  assert _digests(tmp_path / 'a') == _digests(tmp_path / 'b')
  config = json.loads((tmp_path / 'b' / 'config.json').read_text())
  assert config['train']['extended'] == ['12:12']
  # The leave to rewarm is not kept.
  assert main(['train', where, '--quiet', '--config.train.steps=30']) == 2


def test_rates_of_a_rewarmed_run():
  optim = Optim(schedule='cosine', warmup_steps=4, final_fraction=0.1)
  rates = jax.vmap(
    run_schedule(optim, Train(steps=40, extended=('20:20',)), 2.0)
  )(np.arange(40))
  first = jax.vmap(build_schedule(optim, 20, 2.0))(np.arange(20))
  np.testing.assert_array_equal(rates[:20], first)
  np.testing.assert_allclose(
    rates[19:25], 0.2 + 1.8 * np.arange(6).clip(0, 5) / 5
  )
  np.testing.assert_allclose(rates[-1], 0.2, rtol=1e-6)
  assert (np.diff(rates[24:]) < 0).all()
  again = Train(steps=60, extended=('20:20', '40:40'))
  more = jax.vmap(run_schedule(optim, again, 2.0))(np.arange(60))
  np.testing.assert_array_equal(more[:40], rates)


# --- from another run ---------------------------------------------------------


@pytest.fixture
def parent(toy, tmp_path):
  """A run over characters."""
  train(
    toy('text.vocabulary=char', 'train.ema=0.9'), tmp_path / 'p', quiet=True
  )
  return tmp_path / 'p'


def _parameters(workdir, **options):
  return jax.tree.map(np.asarray, load_model(workdir, **options).params)


@pytest.mark.slow
def test_a_child_starts_where_its_parent_is(parent, toy, tmp_path, capsys):
  flags = ['--config.train.stop_at_step=1', '--config.optim.learning_rate=1e-9',
           '--config.optim.muon_learning_rate=1e-9']  # fmt: skip
  where = f'--workdir={tmp_path / "c"}'
  weight = '--config.optim.weight_decay=0'
  assert main(['train', f'--from={parent}@best', where, weight, *flags]) == 0
  assert f'starts from {parent} at step 12' in capsys.readouterr().err
  child = _parameters(tmp_path / 'c', ema=False)
  for new, old in zip(
    jax.tree.leaves(child), jax.tree.leaves(_parameters(parent)), strict=True
  ):
    np.testing.assert_allclose(new, old, atol=1e-6)
  found = json.loads((tmp_path / 'c' / 'metadata.json').read_text())['parent']
  assert (found['run'], found['step'], found['ema']) == (str(parent), 12, True)
  # It goes on without its parent, and without being told of it.
  shutil.rmtree(parent)
  assert main(['train', where, '--quiet']) == 0
  assert checkpoint.steps(tmp_path / 'c')[-1] == 12
  facts = listing.load(tmp_path / 'c').facts
  assert facts['parent'] == f'{parent}@12'


@pytest.mark.slow
def test_an_interrupted_child_equals_a_straight_one(parent, toy, tmp_path):
  flags = [
    'text.vocabulary=char', f'train.init_from={parent}@raw', 'seed=5',
    'optim.name=adamw', 'train.ema=0.9',
  ]  # fmt: skip
  train(toy(*flags), tmp_path / 'a', quiet=True)
  train(toy(*flags, 'train.stop_at_step=7'), tmp_path / 'b', quiet=True)
  train(toy(*flags), tmp_path / 'b', quiet=True)
  assert _digests(tmp_path / 'a') == _digests(tmp_path / 'b')


@pytest.mark.slow
@pytest.mark.parametrize(
  'changes',
  [
    {'depth': 5},
    {'depth': 4, 'value_embeddings': True, 'tied': True},
    {'context': 40},
    {'dropout': 0.3, 'remat': 'block'},
  ],
  ids=str,
)
def test_the_first_loss_is_that_of_the_parent(toy, tmp_path, changes):
  own = [
    f'model.{n}={v}'
    for n, v in changes.items()
    if n in ('value_embeddings', 'tied')
  ]
  cfg = toy('train.steps=3', *own)
  train(cfg, tmp_path / 'p', quiet=True)
  trained = load_model(tmp_path / 'p')
  wanted = dataclasses.replace(cfg.model, **changes)
  child = dataclasses.replace(cfg, model=wanted)
  parent = init_from.open_parent(str(tmp_path / 'p'))
  vocabulary = init_from.grown_vocabulary(parent, child)
  init_from.check(parent, child, vocabulary)
  model = build(wanted, vocabulary.size, trained.model.policy.platform)
  fresh = jax.tree.map(np.asarray, model.init(jax.random.key(3)))
  params = init_from.start_params(parent, model, vocabulary, fresh)
  x_BT = np.arange(32, dtype=np.int32).reshape(2, 16) % 256
  np.testing.assert_allclose(
    jax.jit(model.apply)(params, x_BT),
    jax.jit(trained.model.apply)(trained.params, x_BT),
    atol=1e-5,
  )


@pytest.mark.slow
@pytest.mark.parametrize('tied', [False, True])
def test_new_characters_come_after_the_old_ones(toy, tmp_path, tied, capsys):
  cfg = toy('text.vocabulary=char', f'model.tied={tied}', 'train.steps=3',
            'model.value_embeddings=True')  # fmt: skip
  train(cfg, tmp_path / 'p', quiet=True)
  text = tmp_path / 'other.txt'
  text.write_text('squared ẞäß ' * 300)
  where = f'--workdir={tmp_path / "c"}'
  words = ['train', f'--from={tmp_path / "p"}', where]
  words += [f'--config.data.path={text}', '--config.train.stop_at_step=1']
  assert main(words) == 0
  assert '3 new characters' in capsys.readouterr().err
  old, new = load_model(tmp_path / 'p'), load_model(tmp_path / 'c')
  N = old.vocabulary.num_text_tokens
  assert new.vocabulary.chars[:N] == old.vocabulary.chars
  assert set(new.vocabulary.chars[N:]) == set('ẞäß')
  parent = init_from.open_parent(str(tmp_path / 'p'))
  fresh = jax.tree.map(np.asarray, new.model.init(jax.random.key(0)))
  start = init_from.start_params(parent, new.model, new.vocabulary, fresh)
  table, before = start['embed']['embedding'], old.params['embed']['embedding']
  np.testing.assert_array_equal(table[:N], before[:N])
  np.testing.assert_array_equal(table[N + 3 :], before[N:])  # the specials
  mean = np.asarray(before[:N]).mean(0)
  np.testing.assert_allclose(table[N : N + 3], np.tile(mean, (3, 1)), rtol=1e-5)
  # What is known is scored by the same logits.
  x_BT = np.arange(10, dtype=np.int32)[None] % N
  logits = jax.jit(new.model.apply)(start, x_BT)
  want = jax.jit(old.model.apply)(old.params, x_BT)
  np.testing.assert_allclose(logits[..., :N], want[..., :N], atol=1e-5)


@pytest.mark.slow
def test_the_optimizer_may_come_along(toy, tmp_path):
  train(toy(), tmp_path / 'p', quiet=True)
  flags = [f'train.init_from={tmp_path / "p"}', 'train.keep_optimizer=True']
  cfg = toy(*flags, 'train.stop_at_step=1', 'optim.learning_rate=1e-9')
  train(cfg, tmp_path / 'c', quiet=True)
  old, new = (
    checkpoint.leaf_paths(
      checkpoint.restore_raw(tmp_path / name, step)['opt_state']
    )
    for name, step in (('p', 12), ('c', 1))
  )
  moments = [name for name in old if old[name].size > 1 and name in new]
  assert moments
  far = [
    n for n in moments if np.abs(old[n] - new[n]).max() > np.abs(old[n]).max()
  ]
  assert not far
  assert any(np.any(old[n]) for n in moments)
  with pytest.raises(UserError, match=r'muon -> lion \(train.keep_optimizer\)'):
    other = toy(*flags, 'optim.name=lion')
    train(other, tmp_path / 'd', quiet=True)


@pytest.mark.slow
@pytest.mark.parametrize('name', ['muon', 'adamw'])
def test_frozen_parameters_stay(toy, tmp_path, name):
  train(toy('train.steps=3', f'optim.name={name}'), tmp_path / 'p', quiet=True)
  cfg = toy(
    f'train.init_from={tmp_path / "p"}', "train.freeze=('embed','blocks.0')",
    'train.steps=3', f'optim.name={name}',
  )  # fmt: skip
  train(cfg, tmp_path / 'c', quiet=True)
  old, new = _parameters(tmp_path / 'p'), _parameters(tmp_path / 'c')
  np.testing.assert_array_equal(
    new['embed']['embedding'], old['embed']['embedding']
  )
  for before, after in zip(
    jax.tree.leaves(old['blocks']), jax.tree.leaves(new['blocks']), strict=True
  ):
    np.testing.assert_array_equal(after[0], before[0])
  kernel = 'mlp', 'out', 'kernel'
  before, after = old['blocks'], new['blocks']
  for key in kernel:
    before, after = before[key], after[key]
  assert (before[1] != after[1]).any()


@pytest.mark.parametrize(
  'flags, words',
  [
    (['train.init_from=nowhere'], 'no run nowhere'),
    (['train.init_from={p}@7'], 'has no step 7; it has 12'),
    (
      ['train.init_from={p}', 'model.width=32', 'model.num_heads=4'],
      r'model.width: 16 -> 32; model.num_heads: 2 -> 4',
    ),
    (['train.init_from={p}', 'model.depth=1'], 'fewer layers'),
    (['train.init_from={p}', 'text.vocabulary=byte'], 'trained on characters'),
    (['train.init_from={p}', 'train.freeze=nose'], 'no parameter nose'),
    (
      ['train.init_from={p}', 'train.freeze=embed,blocks,head,final_norm'],
      'leaves nothing to train',
    ),
  ],
)  # fmt: skip
def test_what_does_not_fit_is_refused(parent, toy, tmp_path, flags, words):
  flags = [flag.format(p=parent) for flag in flags]
  with pytest.raises(UserError, match=words):
    train(toy('text.vocabulary=char', *flags), tmp_path / 'c', quiet=True)
  assert not (tmp_path / 'c').exists()


def test_specs():
  assert init_from.parse('runs/a@best') == ('runs/a', 'best', True)
  assert init_from.parse('runs/a@raw') == ('runs/a', 'latest', False)
  assert init_from.parse('runs/a@300') == ('runs/a', '300', True)
  assert init_from.parse('me@home') == ('me@home', 'latest', True)
  with pytest.raises(UserError, match='names no run'):
    init_from.parse('@best')
