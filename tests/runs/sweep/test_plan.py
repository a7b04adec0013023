"""Plans: names, checks, what goes on and what is refused."""

import dataclasses

import pytest

from craft_jax.config.load import load_config, parse_overrides
from craft_jax.errors import UserError
from craft_jax.runs.sweep import plan


def make(points, seeds=(), search='grid', **more):
  trials = plan.make_trials(points, seeds)
  fields = {
    'search': search, 'space': {'model.width': '8,16'}, 'draw_seed': 0,
    'metric': 'val_loss', 'settings': {'train.steps': 20}, 'trials': trials,
    'command': ['craft', 'sweep'],
  }  # fmt: skip
  return plan.Plan(**(fields | more))


def names(points, seeds=(), first=None):
  return [trial.name for trial in plan.make_trials(points, seeds, first)]


def test_names_can_be_read():
  point = {'model.width': 8, 'optim.learning_rate': 1e-3}
  assert names([point]) == ['width=8,learning_rate=0.001']
  assert names([{}], [3, 4]) == ['seed=3', 'seed=4']
  assert names([point], [0], first=7) == [
    '007,width=8,learning_rate=0.001,seed=0'
  ]
  # The last words agree.
  both = {'train.batch_size': 8, 'eval.batch_size': 16}
  assert names([both]) == ['train.batch_size=8,eval.batch_size=16']
  assert names([{'data.path': '../my text.txt'}]) == ['path=.._my_text.txt']


def test_long_names_are_cut_and_stay_apart():
  found = names([{'data.path': 'x' * 300 + end} for end in 'ab'])
  assert len(set(found)) == 2 and all(len(name) <= 120 for name in found)


def test_one_folder_for_two_runs_is_refused():
  with pytest.raises(UserError, match='two runs would be kept in'):
    plan.make_trials([{'data.path': 'a/b'}, {'data.path': 'a:b'}])


@pytest.mark.parametrize(
  'settings',
  [
    {'model.width': 8, 'optim.learning_rate': 1.5e-5},
    {'model.tied': True, 'text.clean': ('lower', 'nfc')},
    {'text.clean': (), 'data.path': 'a b'},
  ],
)
def test_overrides_give_the_settings_back(settings):
  (trial,) = plan.make_trials([settings])
  assert parse_overrides(trial.overrides) == settings


def test_kept_and_read(tmp_path):
  made = make([{'model.width': 8, 'text.clean': ('nfc',)}], seeds=[0, 1])
  assert plan.read(tmp_path / 'new') is None
  plan.write(tmp_path / 'new', made)
  assert plan.read(tmp_path / 'new') == made
  trials = [dataclasses.replace(made.trials[0], pruned=30), made.trials[1]]
  pruned = dataclasses.replace(made, trials=trials)
  plan.write(tmp_path / 'new', pruned)
  assert plan.read(tmp_path / 'new') == pruned


def test_what_is_no_sweep_is_refused(tmp_path):
  (tmp_path / 'config.json').touch()
  with pytest.raises(UserError, match='is a run'):
    plan.read(tmp_path)
  (tmp_path / 'file').touch()
  with pytest.raises(UserError, match='is a file'):
    plan.read(tmp_path / 'file')
  for text in ('', '{}', '[]', '{"format": 9}', '{"format": 1, "trials": 3}'):
    (tmp_path / plan.PLAN).write_text(text)
    with pytest.raises(UserError, match='is damaged'):
      plan.read(tmp_path)


WIDTHS = [{'model.width': 8}, {'model.width': 16}]


def test_runs_may_be_added():
  old = make(WIDTHS)
  assert plan.conflict(old, old) == ''
  assert plan.conflict(old, make([{'model.width': 4}, *WIDTHS])) == ''
  more = make([], space={'model.width': '8,16'}, search='bayes')
  begun = make(WIDTHS[:1], space={'model.width': '8,16'}, search='bayes')
  assert plan.conflict(begun, more) == ''
  assert plan.continued(begun, more).trials == begun.trials
  assert plan.continued(old, make(WIDTHS[:1])).trials != old.trials


@pytest.mark.parametrize(
  'new, words',
  [
    (make(WIDTHS[:1]), 'such as width=16'),
    (make(WIDTHS, seeds=[0]), 'such as width=8'),
    (make(WIDTHS, search='random'), '--search=grid, not random'),
    (make(WIDTHS, settings={'train.steps': 30}), 'train.steps: 20 -> 30'),
    (
      make(WIDTHS, settings={f'a.{i}': i for i in range(9)}),
      r'train.steps: 20 -> None, a.0: None -> 0, a.1: None -> 1, \.\.\.',
    ),
  ],
)
def test_other_sweeps_are_refused(new, words):
  import re

  assert re.search(words, plan.conflict(make(WIDTHS), new))


@pytest.mark.parametrize(
  'change, words',
  [
    ({'draw_seed': 1}, '--draw-seed=0, not 1'),
    ({'metric': 'val_bpb'}, '--metric=val_loss, not val_bpb'),
    ({'space': {'model.width': '8,32'}}, "model.width: '8,16' -> '8,32'"),
  ],
)
def test_another_search_is_refused(change, words):
  old = make([], search='bayes')
  assert words in plan.conflict(old, dataclasses.replace(old, **change))
  # A grid draws nothing and looks at no metric.
  old = make(WIDTHS)
  assert plan.conflict(old, dataclasses.replace(old, **change)) == ''


def test_every_run_is_checked():
  good = plan.make_trials([{'model.width': 8}, {'model.width': 16}])
  first = plan.check('base', ['model.num_heads=4', 'seed=5'], good)
  assert (first.model.width, first.seed) == (8, 5)
  bad = plan.make_trials([{'model.width': 8}, {'model.width': 9}])
  with pytest.raises(UserError, match=r'with model\.width=9 does not hold: '):
    plan.check('base', ['model.num_heads=4'], bad)
  # The runs are not to blame.
  with pytest.raises(UserError, match=r"^no config file 'bse'"):
    plan.check('bse', [], good)
  # A setting that only the runs have makes the config hold.
  paths = plan.make_trials([{'data.path': 'a.txt'}])
  assert plan.check('text', [], paths).data.path == 'a.txt'


def test_samples_of_a_search_see_the_corners():
  from craft_jax.runs.sweep import space

  parsed = space.parse(['model.width=16..64:16', 'model.dropout=0..0.99'])
  with pytest.raises(UserError, match=r'model.dropout=0.99.* at most 0.95'):
    plan.check('base', ['model.num_heads=4'], plan.samples(parsed, 0))


def test_shared_settings_identify():
  cfg = load_config('base', ['model.width=64', 'log.every=7'])
  found = plan.shared(cfg, ['model.width'])
  assert found['train.steps'] == cfg.train.steps and found['seed'] == cfg.seed
  assert not {'model.width', 'log.every', 'mesh.data'} & set(found)
  again = plan.shared(load_config('base', ['model.depth=1']), ['model.width'])
  assert plan.changes(found, again) == f'model.depth: {cfg.model.depth} -> 1'
