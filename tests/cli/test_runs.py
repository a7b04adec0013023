"""`craft runs` on real small runs."""

import contextlib
import io
import json
import os
import shutil
import subprocess
import sys

import pytest

from craft_jax.main import main

pytestmark = pytest.mark.slow
TEXT = ''.join(f'{i} and {i + 1}; ' for i in range(500))


def craft(*args, cwd, code=0):
  with (
    contextlib.chdir(cwd),
    contextlib.redirect_stdout(io.StringIO()) as out,
    contextlib.redirect_stderr(io.StringIO()) as err,
  ):
    assert main([*args]) == code, out.getvalue() + err.getvalue()
  return err.getvalue() if code else out.getvalue()


def result(*args, cwd):
  """The JSON object that is the last line."""
  return json.loads(craft(*args, '--json', cwd=cwd).splitlines()[-1])


@pytest.fixture(scope='module')
def home(tmp_path_factory):
  """`runs/` with two widths of one seed, and one that was stopped."""
  path = tmp_path_factory.mktemp('home')
  (path / 'my.txt').write_text(TEXT)
  base = ['train', '--config=text', '--config.data.path=my.txt', '--quiet']
  base += [
    f'--config.{setting}'
    for setting in (
      'model.depth=1', 'model.num_heads=2', 'model.context=16',
      'train.steps=20', 'train.batch_size=8', 'optim.warmup_steps=2',
      'eval.every=10', 'eval.batch_size=16', 'log.every=1',
      'log.sample_chars=8',
    )
  ]  # fmt: skip
  for name, extra in (
    ('narrow', ['--config.model.width=8']),
    ('wide', ['--config.model.width=32']),
    ('half', ['--config.model.width=8', '--config.seed=1',
              '--stop-at-step=10']),
  ):  # fmt: skip
    # As a process: its command is what the settings of a run come from.
    done = subprocess.run(
      [*(sys.executable, '-m', 'craft_jax.main'), *base, *extra,
       f'--workdir=runs/{name}'],
      env=os.environ | {'PYTHONPATH': os.pathsep.join(sys.path)},
      cwd=path, capture_output=True, text=True,
    )  # fmt: skip
    assert done.returncode == 0, done.stderr
    (path / f'{name}.out').write_text(done.stdout)
  return path


def test_a_run_ends_with_what_to_type_next(home):
  assert 'compare' not in (home / 'narrow.out').read_text()
  said = (home / 'wide.out').read_text()
  assert said.endswith(' runs compare runs/narrow runs/wide\n')


def test_what_a_run_was_made_with(home):
  """The `config` commands, asked about runs."""
  shown = craft('config', 'show', 'runs/wide', '--set', cwd=home)
  (row,) = [line for line in shown.splitlines() if 'model.width' in line]
  assert row.split() == ['*', 'model.width', '=', '32', 'flag']
  differ = craft('config', 'diff', 'runs/narrow', 'runs/wide', cwd=home)
  assert differ == 'model.width: 8 -> 32\n'
  craft('config', 'new', 'again.py', '--from=text', cwd=home)
  error = craft('config', 'check', '--config=again.py', cwd=home, code=2)
  assert '1 of ' in error and 'found a problem' in error


def test_list(home):
  lines = craft('runs', 'list', '--sort=loss', cwd=home).splitlines()
  assert lines[0].split() == [
    'name', 'status', 'step', 'loss', 'speed', 'params', 'age',
  ]  # fmt: skip
  assert lines[1].startswith('runs/wide') and len(lines) == 4
  found = result(
    'runs', 'list', 'runs', '--where', 'model.width<=8 and status==finished',
    '--columns=optim.learning_rate', cwd=home,
  )['runs']  # fmt: skip
  assert [run['name'] for run in found] == ['runs/narrow']
  summary = json.loads((home / 'runs/narrow/summary.json').read_text())
  for key, name in (
    ('loss', 'val_loss'),
    ('params', 'params'),
    ('speed', 'chars_per_second'),
  ):
    assert found[0][key] == summary[name]
  assert 'train.batch_size' in craft('runs', 'list', '--keys', cwd=home)
  nothing = craft('runs', 'list', '--where=loss<0', cwd=home)
  assert nothing == 'no runs that pass the filter\n'


def test_show(home):
  text = craft('runs', 'show', 'runs/half', cwd=home)
  assert 'stopped: stopped at step 10' in text and 'model.width = 8' in text
  assert '--- sample at step 10 ---' in text
  found = result('runs', 'show', 'runs/wide', cwd=home)
  assert found['status'] == 'finished' and found['changed']['model.width'] == 32


def test_which_is_better_and_what_did_i_change(home):
  text = craft('runs', 'compare', 'runs/narrow', 'runs/wide', cwd=home)
  (row,) = [line for line in text.splitlines() if 'model.width' in line]
  assert row.split() == ['model.width', '8', '32']
  said = ' '.join(text.split())  # it is wrapped
  assert 'wide is better: its best val_loss is ' in said
  assert said.endswith('train both with another --config.seed')
  assert all(len(line) <= 80 for line in text.splitlines())
  found = result('runs', 'compare', 'runs/narrow', 'runs/wide', cwd=home)
  assert found['settings'] == {'model.width': [8, 32]}
  assert found['verdict']['better'] == 1
  assert {e['axis'] for e in found['equal']} == {
    'steps', 'chars', 'flops', 'seconds',
  }  # fmt: skip
  # Which runs? All those in runs/.
  everything = craft('runs', 'compare', cwd=home)
  assert 'half x2' in everything and 'not finished: runs/half' in everything


def test_plot(home):
  craft('runs', 'plot', 'runs', '--x=chars', '--smooth=0.9', cwd=home)
  assert (home / 'runs.png').read_bytes().startswith(b'\x89PNG')
  found = result(
    'runs', 'plot', 'runs/wide', '--output=a/b.svg', '--log=xy',
    '--metric=grad_norm', cwd=home,
  )  # fmt: skip
  assert found == {'output': 'a/b.svg', 'curves': 1, 'runs': 1}
  assert (home / 'a/b.svg').read_text().startswith('<?xml')
  # Of one run it is kept with the run.
  found = result('runs', 'plot', 'runs/wide', '--x=flops', cwd=home)
  assert found['output'] == 'runs/wide/plots/loss-val_loss-flops.png'
  assert (home / found['output']).read_bytes().startswith(b'\x89PNG')


def test_report(home):
  found = result('runs', 'report', 'runs', '--output=r.html', cwd=home)
  page = (home / 'r.html').read_text()
  assert found['runs'] == 3 and len(page) == found['bytes']
  assert 'half, step 10' in page and '<td>model.width</td>' in page


def test_rm_and_gc_only_tell_until_yes(home):
  shutil.copytree(home / 'runs/half', home / 'old/one')
  shutil.copytree(home / 'runs/half', home / 'old/two')
  shutil.rmtree(home / 'old/two/checkpoints')
  assert '--yes deletes' in craft('runs', 'rm', 'old/one', cwd=home)
  found = result('runs', 'gc', 'old', cwd=home)
  assert [item['path'] for item in found['items']] == ['old/two']
  assert found['deleted'] is False
  assert (home / 'old/one').exists() and (home / 'old/two').exists()
  craft('runs', 'gc', 'old', '--yes', cwd=home)
  assert (home / 'old/one').exists() and not (home / 'old/two').exists()
  craft('runs', 'rm', 'old/one', '--yes', cwd=home)
  assert os.listdir(home / 'old') == []
  assert craft('runs', 'gc', 'old', cwd=home) == 'nothing to delete\n'


@pytest.mark.parametrize(
  'args, words',
  [
    (['list', 'nowhere'], 'no folder nowhere'),
    (['list', '--sort=los'], "did you mean 'loss'"),
    (['list', '--where=modl.width>1'], "did you mean 'model.width'"),
    (['list', '--limit=-1'], 'at least 0'),
    (['show'], 'give a run directory'),
    (['show', 'runs'], 'is not a run directory'),
    (['compare', 'runs/wide'], '1 run(s) to compare'),
    (['compare', 'runs', '--metric=val_los'], "did you mean 'val_loss'"),
    (['plot', 'runs', '--output=x.gif'], 'must end in one of'),
    (['plot', 'runs', '--metric=los'], "did you mean 'loss'"),
    (['report', 'runs', '--output=x.pdf'], 'must end in .html'),
    (['rm', 'runs'], 'is not a run directory'),
    ([], 'craft runs needs a command: list'),
  ],
)  # fmt: skip
def test_mistakes_are_one_line(home, args, words):
  error = craft('runs', *args, cwd=home, code=2)
  assert words in error and error.count('\n') == 1
