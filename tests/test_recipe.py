"""The ablation covers the recipe, and its page says what the runs gave."""

import json
import pathlib
import sys
import types

import pytest

from craft_jax.config.load import flatten, load_config, settings

_ROOT = pathlib.Path(__file__).parents[1]
_PAGE = _ROOT / 'docs' / 'recipe.md'
_MORE = ['train.steps=2000']


@pytest.fixture
def recipe(monkeypatch):
  """benchmarks/recipe.py."""
  monkeypatch.syspath_prepend(str(_ROOT / 'benchmarks'))
  import recipe

  return recipe


@pytest.fixture
def ablate(recipe):
  """benchmarks/ablate.py."""
  import ablate

  return ablate


def _flat(recipe, overrides):
  return flatten(load_config(recipe.CONFIG, recipe.assigned(overrides)))


def test_every_override_is_a_setting(recipe):
  known = {name for name, *_ in settings()}
  for name, overrides in recipe.variants().items():
    assert set(overrides) <= known, name


def test_an_ingredient_is_added_and_removed_in_the_same_settings(recipe):
  usual = _flat(recipe, {})
  seen = set()
  for name, (added, removed) in recipe.INGREDIENTS.items():
    assert set(added) == set(removed), name
    assert not seen & set(added), f'{name} shares a setting with another'
    seen |= set(added)
    for setting in added:
      assert added[setting] == usual[setting], f'{name}: {setting}'
      assert removed[setting] == recipe.BASELINE[setting], f'{name}: {setting}'
      assert added[setting] != removed[setting], f'{name}: {setting}'


def test_the_baseline_with_all_ingredients_is_the_recipe(recipe):
  whole = dict(recipe.BASELINE)
  bare = {}
  for added, removed in recipe.INGREDIENTS.values():
    whole |= added
    bare |= removed
  assert _flat(recipe, whole) == _flat(recipe, {})
  assert _flat(recipe, bare) == _flat(recipe, recipe.BASELINE)


def test_a_run_is_told_by_all_that_the_variants_change(recipe):
  changed = set().union(*recipe.variants().values())
  for overrides in recipe.variants().values():
    assert changed <= set(recipe.settings_of(overrides, _MORE))


def test_the_page_names_every_ingredient(recipe):
  lines = _PAGE.read_text(encoding='utf-8').splitlines()
  cells = [line.split(' | ') for line in lines if line.startswith('| ')]
  named = {row[0].removeprefix('| '): row[-1] for row in cells}
  for name, (added, _) in recipe.INGREDIENTS.items():
    assert all(f'`{setting}`' in named[name] for setting in added), name


def test_page_is_fresh(recipe):
  page = _PAGE.read_text(encoding='utf-8')
  assert recipe.refreshed(page) == page, (
    'stale; refresh it: python benchmarks/ablate.py --write docs/recipe.md'
  )


def test_without_runs_the_page_says_so(recipe, tmp_path):
  page = _PAGE.read_text(encoding='utf-8')
  assert recipe.refreshed(page, tmp_path).count('Not measured yet.') == 2
  with pytest.raises(ValueError, match='no <!-- added: begin'):
    recipe.refreshed('# nothing', tmp_path)


def test_only_keeps_the_references(recipe):
  assert recipe.chosen('') == list(recipe.variants())
  assert recipe.chosen('- RoPE') == ['recipe', 'recipe - RoPE']
  both = ['baseline', 'recipe', 'baseline + Muon', 'recipe - Muon']
  assert recipe.chosen('Muon') == both


def _run(loss, milliseconds=10.0):
  return {
    'val_loss': loss,
    'milliseconds': milliseconds,
    'params': 8,
    'devices': 2,
    'jax': '0.10.2',
  }


def test_rows(recipe):
  runs = {
    'baseline': {1: _run(2.0), 2: _run(2.2)},
    'baseline + Muon': {1: _run(1.5, 12.0), 2: _run(1.7, 14.0)},
    'baseline + RoPE': {1: _run(1.99), 2: _run(2.19)},
    'baseline + QK norm': {2: _run(2.1)},
    'recipe': {1: _run(1.0)},
    'recipe - Muon': {1: _run(1.25)},
  }
  rows = recipe.rows_of(recipe.GROUPS['added'], runs)
  assert set(rows) == {name for name in runs if 'baseline' in name}
  assert 'gain' not in rows['baseline'] and rows['baseline']['seeds'] == 2
  muon, rope = rows['baseline + Muon'], rows['baseline + RoPE']
  # Each pair of seeds deviates by 0.1 * sqrt(2), so does the group; of means
  # of two, two standard errors of a difference are 0.28.
  assert recipe.deviation(runs) == pytest.approx(0.02**0.5)
  assert muon['val_loss'] == pytest.approx(1.6)
  assert muon['gain'] == pytest.approx(0.5) and muon['beyond']
  assert muon['ratio'] == pytest.approx(1.3)
  assert rope['gain'] == pytest.approx(0.01) and not rope['beyond']
  assert rows['baseline + QK norm']['gain'] == pytest.approx(0.1)

  rows = recipe.rows_of(recipe.GROUPS['removed'], runs)
  assert rows['recipe - Muon']['gain'] == pytest.approx(0.25)
  assert 'beyond' not in rows['recipe - Muon']  # one seed has no spread
  line = recipe.table(recipe.GROUPS['removed'], runs).splitlines()[-1]
  assert line == '| recipe - Muon | 1 | 1.2500 |  | +0.2500 |  | x 1.00 |'


def _arguments(ablate, monkeypatch, path, *flags):
  argv = ['ablate.py', f'--kept={path}', *flags]
  monkeypatch.setattr(sys, 'argv', argv)
  return ablate._arguments()


def test_what_is_kept_is_not_run_again(
  ablate, recipe, tmp_path, monkeypatch, capsys
):
  text, path = tmp_path / 'text.txt', tmp_path / 'gpu-1-h200' / 'ablate.jsonl'
  text.write_text('to be or not to be')
  asked = []

  def train(overrides, more, seed, text):
    asked.append((overrides.get('optim.name'), seed))
    if overrides.get('optim.name') == 'adamw' and seed == 2:
      return None
    return _run(1.5 + seed / 10) | {'train_seconds': 3.0, 'step': 300}

  monkeypatch.setattr(ablate, 'train', train)
  flags = [f'--data={text}', '--seeds=1,2', '--only=- Muon', '--steps=300']
  args = _arguments(ablate, monkeypatch, path, *flags)
  assert not ablate.run_missing(args, path)
  assert asked == [(None, 1), ('adamw', 1), (None, 2), ('adamw', 2)]
  assert '4 of 4: recipe - Muon, seed 2: failed' in capsys.readouterr().err
  # The one that failed is tried again, and another length is another run.
  asked.clear()
  assert not ablate.run_missing(args, path)
  assert asked == [('adamw', 2)]
  lines = path.read_text().splitlines()
  assert len(lines) == 3
  assert json.loads(lines[0])['milliseconds'] == 10.0
  asked.clear()
  args.steps = 200
  ablate.run_missing(args, path)
  assert len(asked) == 4
  # Nor does a page of another length or text show them.
  assert recipe.page_tables(tmp_path)['removed'] == 'Not measured yet.'


def test_the_command_ends_in_one_object(ablate, tmp_path, monkeypatch, capsys):
  summary = _run(1.5) | {'train_seconds': 3.0, 'step': 300}
  monkeypatch.setattr(ablate, 'train', lambda *_: summary)
  path = tmp_path / 'ablate.jsonl'
  argv = ['ablate.py', f'--kept={path}', '--only=RoPE', '--seeds=1,2']
  monkeypatch.setattr(sys, 'argv', argv)
  ablate.main()
  out = capsys.readouterr().out.splitlines()
  result = json.loads(out[-1])
  assert result['bars'] == 'gain at least' and result['rounds'] == 2
  assert result['variants']['baseline + RoPE']['gain'] == 0
  assert any(line.startswith('| recipe - RoPE | 2 |') for line in out)


def test_a_run_is_a_training_run_in_a_folder_of_its_own(
  ablate, recipe, monkeypatch
):
  seen = []

  def run(command, **kwargs):
    seen.append((command, kwargs))
    return types.SimpleNamespace(returncode=0, stdout='words\n{"step": 3}\n')

  monkeypatch.setattr(ablate.subprocess, 'run', run)
  overrides = recipe.INGREDIENTS['RoPE'][1]
  assert ablate.train(overrides, _MORE, 7, 'a.txt') == {'step': 3}
  command, kwargs = seen[0]
  for flag in ('model.position=learned', 'train.steps=2000', 'seed=7',
               'data.path=a.txt'):  # fmt: skip
    assert f'--config.{flag}' in command
  workdir = next(flag for flag in command if flag.startswith('--workdir='))
  assert not pathlib.Path(workdir.removeprefix('--workdir=')).exists()
  assert 'CRAFT_CACHE' in kwargs['env']
