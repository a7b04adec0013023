"""Runs that need more memory than a real limit gives them."""

import json
import pathlib

import pytest
import runs

pytestmark = pytest.mark.slow

# Much of the memory is attention weights: 16 heads of 2 entries.
_MODEL = [
  'model.context=256', 'model.width=32', 'model.depth=2', 'model.num_heads=16',
  'model.precision=float32', 'model.dropout=0.0', 'train.batch_size=64',
  'train.steps=6', 'train.steps_per_call=1', 'optim.warmup_steps=1',
  'checkpoint.every=2', 'eval.every=3', 'eval.batch_size=2',
  'mesh.cpu_devices=2', *runs.SAMPLED,
]  # fmt: skip
# Tells how large the address space of a process became.
_SHOW = """
import atexit, os, pathlib
def show():
  status = pathlib.Path('/proc/self/status').read_text()
  size = next(l for l in status.splitlines() if l.startswith('VmPeak'))
  pathlib.Path(os.environ['PEAK']).write_text(size.split()[1])
atexit.register(show)
"""


def limited(kilobytes: int) -> str:
  """Python that sets a real limit of the address space, for children too."""
  size = kilobytes * 1024
  return (
    f'import resource; resource.setrlimit(resource.RLIMIT_AS, {(size,) * 2})'
  )


def flags(text, *more):
  return runs.flags(text, *_MODEL, *more)


@pytest.fixture(scope='module', autouse=True)
def environment():
  """One arena for malloc, and programs that LLVM optimizes.

  Else malloc takes 64 MB of addresses for each thread that it meets, and how
  many those are differs from run to run, by more than half a batch. These runs
  compute for longer than they compile.
  """
  with pytest.MonkeyPatch.context() as patch:
    patch.setenv('MALLOC_ARENA_MAX', '1')
    patch.setenv('QUICK_XLA_FLAGS', '')
    yield


@pytest.fixture(scope='module')
def words(tmp_path_factory):
  path = tmp_path_factory.mktemp('text') / 'squares.txt'
  path.write_text(''.join(f'{i} squared is {i * i}; ' for i in range(3000)))
  return path


@pytest.fixture(scope='module')
def whole(tmp_path_factory, words):
  """The run in whole batches, without a limit."""
  return runs.whole(tmp_path_factory.mktemp('whole'), words, *_MODEL)


@pytest.fixture(scope='module')
def kilobytes(tmp_path_factory, words, whole):
  """An address space that half batches fit into and whole ones do not.

  For programs from the compile cache, which both sizes are in afterwards: to
  compile takes 300 MB more.
  """
  folder = tmp_path_factory.mktemp('halves')
  for name in ('compiled', 'again'):
    process = runs.start(
      'train', *flags(words, 'train.accumulate=2', 'train.stop_at_step=2'),
      f'--workdir={folder}/{name}', first=_SHOW,
      env={'PEAK': f'{folder}/peak'},
    )  # fmt: skip
    stderr = runs.finish(process)
    assert process.returncode == 0, stderr
  # Whole batches take 260 MB more; one run differs from the next by 1 MB.
  return int((folder / 'peak').read_text()) + 140_000


def metadata(workdir: pathlib.Path) -> dict:
  return json.loads((workdir / 'metadata.json').read_text())


def test_auto_batch_goes_on_in_halves(tmp_path, words, whole, kilobytes):
  """From the last checkpoint, with the data and the losses of whole batches."""
  workdir = tmp_path / 'run'
  first = runs.start(
    'train', *flags(words, 'train.stop_at_step=3'), f'--workdir={workdir}'
  )
  stderr = runs.finish(first)
  assert first.returncode == 0, stderr
  process = runs.start(
    'train', *flags(words), '--auto-batch',
    f'--workdir={workdir}', first=limited(kilobytes),
  )  # fmt: skip
  stderr = runs.finish(process)
  assert process.returncode == 0, stderr
  config = json.loads((workdir / 'config.json').read_text())
  pieces = config['train']['accumulate']
  assert pieces in (2, 4)
  assert f'--config.train.accumulate={pieces}, micro-batches of' in stderr
  told = metadata(workdir)
  assert told['status'] == 'finished'
  # Steps 1 to 3 were not done again, and the rest is the same run.
  assert [row['step'] for row in runs.rows(workdir) if 'loss' in row] == [
    *range(1, 7)
  ]
  runs.same_course(workdir, whole)


def test_a_run_that_fails_says_what_and_what_to_try(tmp_path, words, kilobytes):
  workdir = tmp_path / 'run'
  process = runs.start(
    'train', *flags(words, 'train.check_memory=false'),
    f'--workdir={workdir}', first=limited(kilobytes),
  )  # fmt: skip
  stderr = runs.finish(process)
  assert process.returncode == 1, stderr
  lines = stderr.strip().splitlines()
  assert 'were asked for' in stderr and 'activations' in stderr
  assert lines[-1].startswith('craft: out of memory while training')
  assert '--config.train.accumulate=2' in lines[-1]
  assert 'Traceback' not in stderr
  told = metadata(workdir)
  assert told['status'] == 'failed' and told['out_of_memory']['bytes'] > 50e6


def test_a_compiled_step_that_cannot_fit_is_refused(tmp_path, words, kilobytes):
  process = runs.start(
    'train', *flags(words), f'--workdir={tmp_path}/run',
    first=limited(kilobytes),
  )  # fmt: skip
  stderr = runs.finish(process)
  assert process.returncode == 2, stderr
  assert 'as it is compiled' in stderr and 'ulimit -v' in stderr
  assert '--config.train.accumulate=2' in stderr.strip().splitlines()[-1]


def test_what_cannot_fit_at_all_is_refused_at_once(tmp_path, words):
  """Nothing is compiled, and no run directory is left."""
  process = runs.start(
    'train', *flags(words, 'train.batch_size=65536'),
    f'--workdir={tmp_path}/run',
  )  # fmt: skip
  stderr = runs.finish(process)
  assert process.returncode == 2, stderr
  assert 'this run needs about' in stderr
  flag = stderr.partition('try --config.train.accumulate=')[2].split()[0]
  assert 65536 % int(flag.rstrip(',;')) == 0
  assert not (tmp_path / 'run').exists()


def test_the_next_start_tells_of_a_kill(tmp_path, words):
  workdir = tmp_path / 'run'
  many = flags(words, 'train.steps=1000')
  process = runs.start('train', *many, f'--workdir={workdir}')
  runs.wait_until(lambda: runs.rows(workdir), process)
  process.kill()
  process.communicate()
  step = runs.rows(workdir)[-1]['step']
  again = runs.start(
    'train', *many, f'--workdir={workdir}',
    f'--stop-at-step={step + 2}',
  )  # fmt: skip
  stderr = runs.finish(again)
  assert again.returncode == 0, stderr
  assert f'process {process.pid}' in stderr
  assert 'ended without a word' in stderr


def test_an_evaluation_that_fails_names_half_its_batch(
  tmp_path, words, kilobytes
):
  """The steps fit, the evaluation does not."""
  given = flags(
    words, 'train.accumulate=2', 'eval.batch_size=128', 'train.stop_at_step=3'
  )
  wide = runs.start('train', *given, f'--workdir={tmp_path}/free')
  stderr = runs.finish(wide)  # compiled, and in the cache
  assert wide.returncode == 0, stderr
  given.append('--config.train.check_memory=false')
  process = runs.start(
    'train', *given, f'--workdir={tmp_path}/run', first=limited(kilobytes)
  )
  stderr = runs.finish(process)
  assert process.returncode == 1, stderr
  for rows in (64, 32, 16, 8):  # as many as are told, until it fits
    last = stderr.strip().splitlines()[-1]
    assert last.startswith('craft: out of memory while evaluating'), stderr
    assert f'try --config.eval.batch_size={rows};' in last
    process = runs.start(
      'train', *given, f'--config.eval.batch_size={rows}',
      f'--workdir={tmp_path}/run', first=limited(kilobytes),
    )  # fmt: skip
    stderr = runs.finish(process)
    if process.returncode == 0:
      break
  assert process.returncode == 0, stderr
  rows = [
    [row['val_loss'] for row in runs.rows(folder) if 'val_loss' in row]
    for folder in (tmp_path / 'free', tmp_path / 'run')
  ]
  assert rows[0] and rows[1] == pytest.approx(rows[0], rel=1e-5)
