"""`craft sweep` as a process, on real small runs."""

import json
import os
import pathlib
import signal
import statistics
import subprocess
import sys
import time
from typing import NamedTuple

import pytest

from craft_jax import main as entry
from craft_jax.runs import checkpoint
from craft_jax.runs.sweep import bayes, space

TEXT = ''.join(f'{i} and {i + 1}; ' for i in range(500))
_SETTINGS = (
  'data.path=my.txt', 'model.width=8', 'model.depth=1', 'model.num_heads=2',
  'model.context=16', 'model.precision=float32', 'train.batch_size=8',
  'train.steps=200', 'train.steps_per_call=8', 'optim.warmup_steps=2',
  'eval.every=100', 'eval.batch_size=16', 'log.every=20', 'log.sample_chars=0',
  'mesh.cpu_devices=1',
)  # fmt: skip


def flags(*without):
  """Of a run of a second, but for some settings."""
  return [
    '--config=text',
    *(
      f'--config.{item}'
      for item in _SETTINGS
      if item.partition('=')[0] not in without
    ),
  ]


class Done(NamedTuple):
  code: int
  out: str
  err: str

  @property
  def result(self):
    """The JSON object that is the last line."""
    return json.loads(self.out.splitlines()[-1])


def start(*args, cwd):
  return subprocess.Popen(
    [sys.executable, '-m', 'craft_jax.main', *args],
    cwd=cwd,
    env=os.environ | {'PYTHONPATH': os.pathsep.join(sys.path)},
    stdout=subprocess.PIPE,
    stderr=subprocess.PIPE,
    text=True,
  )


def finish(process):
  out, err = process.communicate(timeout=300)
  assert 'Traceback' not in err, err
  return Done(process.returncode, out, err)


def craft(*args, cwd):
  return finish(start(*args, cwd=cwd))


def wait_until(condition, process):
  deadline = time.monotonic() + 200
  while not condition():
    assert process.poll() is None, process.communicate()
    assert time.monotonic() < deadline
    time.sleep(0.01)


def has_rows(path):
  return path.exists() and path.stat().st_size > 0


def metadata(path):
  return json.loads((path / 'metadata.json').read_text())


@pytest.fixture(scope='module')
def home(tmp_path_factory):
  path = tmp_path_factory.mktemp('home')
  (path / 'my.txt').write_text(TEXT)
  return path


GRID = ['sweep', *flags('model.width'), '--set', 'model.width=8,16']
NAMES = [f'width={width},seed={seed}' for width in (8, 16) for seed in (0, 1)]


@pytest.fixture(scope='module')
def grid(home):
  """A grid that was stopped in its second run, and went on to the end."""
  folder = home / 'runs' / 'sweep-text'
  process = start(*GRID, '--seeds=2', cwd=home)
  wait_until(lambda: (folder / NAMES[1] / 'metadata.json').exists(), process)
  process.send_signal(signal.SIGTERM)
  stopped = finish(process)
  states = {
    name: metadata(folder / name)['status']
    for name in NAMES
    if (folder / name).exists()
  }
  ended = craft(*GRID, '--seeds=2', '--json', cwd=home)
  return folder, stopped, states, ended


@pytest.mark.slow
def test_a_signal_saves_and_the_same_command_goes_on(grid):
  folder, stopped, states, ended = grid
  assert stopped.code == 75 and not stopped.out
  assert stopped.err.splitlines()[-1] == (
    'craft: interrupted; 1 of 4 runs have ended, the same command goes on'
  )
  assert states == {NAMES[0]: 'finished', NAMES[1]: 'stopped'}
  assert ended.code == 0
  assert '4 runs in runs/sweep-text, 1 ended before' in ended.err
  assert f'[2/4] {NAMES[1]}: goes on' in ended.err
  assert f'{NAMES[0]}: started' not in ended.err
  # Two starts of the one that was stopped, one of every other.
  starts = [len(metadata(folder / n)['earlier']) + 1 for n in NAMES]
  assert starts == [1, 2, 1, 1]
  assert {metadata(folder / n)['status'] for n in NAMES} == {'finished'}


@pytest.mark.slow
def test_the_table_groups_seeds(grid, home):
  *_, ended = grid
  rows = {row['name']: row for row in ended.result['runs']}
  assert list(rows) == NAMES
  groups = ended.result['comparison']['groups']
  assert [group['label'] for group in groups] == ['width=8 x2', 'width=16 x2']
  for group, names in zip(groups, (NAMES[:2], NAMES[2:]), strict=True):
    bests = [rows[name]['best'] for name in names]
    assert group['mean'] == pytest.approx(statistics.fmean(bests))
    assert group['deviation'] == pytest.approx(statistics.stdev(bests))
  lines = ended.out.splitlines()
  assert lines[0].split('  ')[0] == 'run' and 'deviation' in lines[0]
  best = min(groups, key=lambda group: group['mean'])['label']
  assert lines[1].startswith(best) and f'{best} is better' in ended.out
  # The runs are runs as all others.
  found = craft('runs', 'compare', 'runs', '--json', cwd=home).result
  assert sorted(found['groups'], key=str) == sorted(groups, key=str)


@pytest.mark.slow
def test_another_sweep_in_its_folder_is_refused(grid, home):
  for change, words in (
    (['--config.train.steps=700'], 'train.steps: 200 -> 700'),
    (['--seeds=1'], 'width=8,seed=1; give another --workdir'),
    (['--search=random', '--trials=2'], '--search=grid, not random'),
  ):
    done = craft(*GRID, '--seeds=2', *change, cwd=home)
    assert done.code == 2 and words in done.err and not done.out
    assert done.err.count('\n') == 1
  # What is only reported may change.
  done = craft(*GRID, '--seeds=2', '--config.log.every=1', '--dry-run',
               cwd=home)  # fmt: skip
  assert [line.split() for line in done.out.splitlines()[1:]] == [
    [str(i), name, 'finished'] for i, name in enumerate(NAMES)
  ]


@pytest.mark.slow
def test_one_run_by_its_index(grid, home):
  """As in an array job: in place of the process, with its output and code."""
  command = [*GRID[:-1], 'model.width=8,16,24', '--seeds=2']
  done = craft(*command, '--index=1', cwd=home)
  assert (done.code, done.out) == (0, f'{NAMES[1]} is finished\n')
  shown = craft(*command, '--print-commands', cwd=home).out.splitlines()
  assert len(shown) == 6
  assert shown[4].endswith('--workdir=runs/sweep-text/width=24,seed=0')
  process = start(*command, '--index=4', cwd=home)
  done = finish(process)
  assert done.code == 0 and 'step 200 of 200 is saved' in done.out
  path = home / 'runs/sweep-text/width=24,seed=0'
  assert metadata(path)['pid'] == process.pid
  assert metadata(path)['command'][1:] == shown[4].split()[1:]
  plan = json.loads((home / 'runs/sweep-text/sweep.json').read_text())
  assert len(plan['trials']) == 6


@pytest.mark.slow
def test_a_failure_ends_nothing_else(home):
  command = [
    'sweep', *flags('model.context', 'train.steps'), '--config.train.steps=20',
    '--set', 'model.context=100000,16', '--workdir=failing', '--jobs=2',
  ]  # fmt: skip
  done = craft(*command, cwd=home)
  assert done.code == 1
  (line,) = [line for line in done.out.splitlines() if 'failed' in line]
  assert line.startswith('context=100000: failed: the train split has 5')
  assert line.endswith('(exit code 2; failing/logs/context=100000.log)')
  assert '[2/2] context=16: finished in ' in done.err
  assert '2 runs at a time share' in done.err
  # The same command tries it again, and only it.
  again = craft(*command, '--json', cwd=home)
  assert again.code == 1 and 'context=16: started' not in again.err
  assert '[1/2] context=100000: failed' in again.err
  states = [row['status'] for row in again.result['runs']]
  assert states == ['failed', 'finished']


SEARCH = ['sweep', *flags('train.steps'), '--config.train.steps=1000']
SEARCH += ['--search=bayes', '--workdir=search']
RATES = 'optim.learning_rate=1e-8..1e-1:log'


def good_then_bad():
  """A seed whose first three trials learn, and whose fourth does not.

  These are drawn at random, whatever the ones before came to.
  """
  dims = space.parse([RATES])
  for seed in range(1000):
    rates, history = [], []
    for _ in range(4):
      point = bayes.suggest(dims, history, seed)
      history.append(bayes.Past(point, {1: 1.0}, bayes.FINISHED))
      rates.append(point['optim.learning_rate'])
    if min(rates[:3]) > 1e-3 and rates[3] < 1e-6:
      return seed, rates
  raise AssertionError('no such seed')


@pytest.mark.slow
def test_bayes_goes_on_and_prunes(home):
  seed, rates = good_then_bad()
  command = [*SEARCH, '--set', RATES, f'--draw-seed={seed}']
  first = craft(*command, '--trials=2', '--jobs=2', cwd=home)
  assert first.code == 0, first.err
  done = craft(*command, '--trials=4', '--json', cwd=home)
  assert done.code == 0 and '4 runs in search, 2 ended before' in done.err
  rows = done.result['runs']
  assert [row['settings']['optim.learning_rate'] for row in rows] == rates
  states = [row['status'] for row in rows]
  assert states == ['finished', 'finished', 'finished', 'pruned']
  # Marked in the plan and in the table, and really not trained to its end.
  plan = json.loads((home / 'search/sweep.json').read_text())
  last = plan['trials'][3]
  assert 100 <= last['pruned'] < 1000
  run = metadata(home / 'search' / last['name'])
  assert run['status'] == 'stopped'
  assert f'{last["name"]}: pruned at step {last["pruned"]}' in done.out
  assert len(done.result['comparison']['groups']) == 3
  # What was given up stays so.
  again = craft(*command, '--trials=4', cwd=home)
  assert again.code == 0 and '4 runs in search, 4 ended before' in again.err


@pytest.mark.slow
def test_a_killed_sweep_goes_on(home):
  """Nothing is left running that would hold the folder of its run."""
  command = [
    'sweep', *flags('train.steps'), '--config.train.steps=100000',
    '--seeds=1', '--workdir=killed',
  ]  # fmt: skip
  path = home / 'killed' / 'seed=0'
  process = start(*command, cwd=home)
  wait_until(lambda: has_rows(path / 'metrics.jsonl'), process)
  second = craft(*command, cwd=home)
  assert second.code == 2 and 'killed is in use by process' in second.err
  process.kill()
  process.communicate()
  if sys.platform != 'linux':  # only Linux tells the run
    os.kill(metadata(path)['pid'], signal.SIGTERM)
  deadline = time.monotonic() + 60
  while metadata(path)['status'] == 'running':
    assert time.monotonic() < deadline
    time.sleep(0.05)
  assert metadata(path)['status'] == 'stopped'
  assert checkpoint.steps(path)[-1] > 0
  done = craft(*command, '--dry-run', cwd=home)
  assert done.out.splitlines()[1].split() == ['0', 'seed=0', 'stopped']


# --- without training --------------------------------------------------------


@pytest.fixture
def here(capsys, monkeypatch, tmp_path):
  """`here(*argv) -> Done` in this process, in a folder with a text."""
  monkeypatch.chdir(tmp_path)
  (tmp_path / 'my.txt').write_text(TEXT)

  def run(*argv):
    code = entry.main(['sweep', *argv])
    return Done(code, *capsys.readouterr())

  return run


def test_random_runs_are_the_same_each_time(here):
  command = [
    'text', '--config.data.path=my.txt', '--set', RATES, '--set',
    'model.depth=1..4', '--search=random', '--print-commands',
  ]  # fmt: skip
  lines = here(*command, '--trials=3').out.splitlines()
  assert len(lines) == 3 and all(
    'craft train --config=text' in x for x in lines
  )
  assert here(*command, '--trials=3').out.splitlines() == lines
  assert here(*command, '--trials=5').out.splitlines()[:3] == lines
  other = here(*command, '--trials=3', '--draw-seed=1').out.splitlines()
  assert not set(other) & set(lines)
  seeded = here(*command, '--trials=2', '--seeds=2').out.splitlines()
  first = lines[0].partition(' --workdir=runs/sweep-text/')
  assert [
    line.partition(' --workdir=runs/sweep-text/') for line in seeded[:2]
  ] == [
    (f'{first[0]} --config.seed={seed}', first[1], f'{first[2]},seed={seed}')
    for seed in (0, 1)
  ]
  assert os.listdir() == ['my.txt']  # nothing was begun


def test_printed_commands_are_for_a_shell(here):
  done = here(
    'text', '--config.data.path=my text.txt', '--set', 'model.width=64',
    '--workdir=my sweep', '--print-commands',
  )  # fmt: skip
  words = subprocess.run(
    ['sh', '-c', f'for w in {done.out.strip()}; do echo "$w"; done'],
    capture_output=True,
    text=True,
  ).stdout.splitlines()
  assert words == [
    'craft', 'train', '--config=text', '--config.data.path=my text.txt',
    '--config.model.width=64', '--workdir=my sweep/width=64',
  ]  # fmt: skip


SET = ['--set', 'model.width=64,128']


@pytest.mark.parametrize(
  'argv, words',
  [
    ([], 'what varies?'),
    (['base', '--config=base', *SET], 'not both'),
    (['bse', *SET], "no config file 'bse', did you mean 'base'?"),
    (['--set', 'model.widht=1'], "did you mean 'model.width'"),
    (['--set', 'model.width=64,65'], 'a run with model.width=65 does not hold'),
    ([*SET, '--set', 'model.num_heads=4,5'],
     'a run with model.width=64 model.num_heads=5 does not hold: '),
    ([*SET, '--config.model.width=64'], 'drop one'),
    ([*SET, '--config.model.widht=64'], "did you mean 'model.width'"),
    ([*SET, '--set', 'seed=1,2', '--seeds=2'], '--seeds sets it too'),
    ([*SET, '--seeds=0'], 'at least 1'),
    ([*SET, '--jobs=0'], 'at least 1'),
    ([*SET, '--index=2'], 'from 0 to 1'),
    ([*SET, '--metric=val_los'], "did you mean 'val_loss'"),
    ([*SET, '--trials=2'], 'needs --search=random'),
    ([*SET, '--search=random'], 'needs --set and --trials'),
    ([*SET, '--search=random', '--trials=3'], 'only 2 different'),
    ([*SET, '--search=rnd'], 'invalid choice'),
    ([*SET, '--search=bayes', '--trials=2', '--seeds=2'], 'no --seeds'),
    ([*SET, '--search=bayes', '--trials=2', '--index=0'],
     'cannot be told in advance'),
    (['--search=bayes', '--trials=2', '--set', 'model.dropout=0..2'],
     'model.dropout=2.0 must be at most'),
    ([*SET, '--workdir=az://b/s'], 's3://BUCKET/FOLDER'),
    ([*SET, '--workdir='], 'is empty'),
    ([*SET, '--workdir=my.txt'], 'is a file'),
    (['--set', 'train.steps=1..200', '--set', 'model.depth=1..99'],
     'the grid has 19,800 runs'),
  ],
)  # fmt: skip
def test_mistakes_are_one_line(here, argv, words):
  done = here(*argv)
  assert done.code == 2 and not done.out
  assert done.err.startswith('craft: ') and done.err.count('\n') == 1
  assert words in done.err
  assert os.listdir() == ['my.txt']  # nothing was begun


def test_bayes_without_optuna(here, monkeypatch):
  monkeypatch.setitem(sys.modules, 'optuna', None)
  done = here(*SET, '--search=bayes', '--trials=2')
  assert done.code == 2
  assert done.err == (
    'craft: --search=bayes needs optuna, which is not installed: '
    "pip install 'craft-jax[sweep]'\n"
  )


def test_planning_is_quick():
  """No JAX: a list of a thousand runs must not take its devices."""
  code = (
    'import sys; from craft_jax import main; '
    'main.main(["sweep", "--set", "model.width=64", "--dry-run"]); '
    'sys.exit(bool({"jax", "optuna"} & set(sys.modules)))'
  )
  done = subprocess.run(
    [sys.executable, '-c', code],
    env=os.environ | {'PYTHONPATH': str(pathlib.Path(__file__).parents[2])},
    capture_output=True,
    text=True,
  )
  assert done.returncode == 0, done.stderr
