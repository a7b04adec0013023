"""Checkpoints come back bit for bit, from kills and damage too."""

import json
import math
import os
import pathlib
import shutil
import subprocess
import sys
from typing import Any

import flax.struct
import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest

from craft_jax.config.settings import Config, Model
from craft_jax.data.text.vocabulary import Vocabulary
from craft_jax.errors import UserError
from craft_jax.runs import checkpoint
from craft_jax.runs.checkpoint import reader as reader_lib


@flax.struct.dataclass
class State:
  step: Any
  data_offset: Any
  params: Any
  opt_state: Any
  ema: Any


def make_state(step=0, width=4, ema=False) -> State:
  """A state whose every leaf is different and depends on the step."""
  keys = iter(jax.random.split(jax.random.key(step), 8))
  params = {
    'embed': {'embedding': jax.random.normal(next(keys), (6, width))},
    'blocks': {'mlp': {'in': {'kernel': jnp.full((2, width, 8), step + 0.1)}}},
    'final_norm': {'scale': jnp.array([math.nan, -0.0, 1e-45, math.inf])},
  }
  tx = optax.chain(optax.clip_by_global_norm(1.0), optax.adamw(1e-3))
  opt_state = jax.tree.map(
    lambda x: x + jnp.asarray(step + 1, x.dtype), tx.init(params)
  )
  average = jax.tree.map(lambda x: x * 2, params) if ema else None
  return State(jnp.int32(step), jnp.int32(7), params, opt_state, average)


def make_meta(step, **metrics) -> checkpoint.Meta:
  cfg = Config(seed=3, model=Model(width=12))
  return checkpoint.Meta(
    step, cfg, Vocabulary('char', 'ab\U0001f600\u2028'), 'print', metrics, 'why'
  )


def abstract(state: State) -> State:
  device = jax.sharding.SingleDeviceSharding(jax.devices()[0])
  return jax.tree.map(
    lambda x: jax.ShapeDtypeStruct(x.shape, x.dtype, sharding=device), state
  )


def save_steps(workdir, losses: dict[int, float], keep=2) -> None:
  with checkpoint.Checkpointer(workdir, keep=keep) as saver:
    for step, loss in losses.items():
      saver.save(make_state(step), make_meta(step, val_loss=loss))


@pytest.fixture(scope='module')
def two_steps(tmp_path_factory):
  workdir = tmp_path_factory.mktemp('run')
  save_steps(workdir, {1: 1.0, 2: 2.0})
  return workdir


@pytest.fixture
def copy(two_steps, tmp_path):
  """A checkpointed run to damage: steps 1 and 2, best 1."""
  return shutil.copytree(two_steps, tmp_path / 'run')


def largest_file(folder: pathlib.Path) -> pathlib.Path:
  found = [p for p in (folder / 'state').rglob('*') if p.is_file()]
  return max(found, key=lambda p: p.stat().st_size)


# --- exactness ---------------------------------------------------------------


@pytest.mark.parametrize('ema', [False, True])
def test_restore_gives_every_bit_back(tmp_path, ema):
  state = make_state(5, ema=ema)
  with checkpoint.Checkpointer(tmp_path / 'new' / 'run') as saver:
    assert saver.save(state, make_meta(5, val_loss=math.nan, loss=1.5))
    back, meta = saver.restore(abstract(state))
  assert jax.tree.structure(back) == jax.tree.structure(state)
  assert checkpoint.tree_sha256(back) == checkpoint.tree_sha256(state)
  assert meta.config == make_meta(5).config
  assert meta.vocabulary == make_meta(5).vocabulary
  assert (meta.step, meta.fingerprint, meta.withheld) == (5, 'print', 'why')
  assert math.isnan(meta.metrics['val_loss']) and meta.metrics['loss'] == 1.5


def test_arrays_may_be_donated_while_the_save_runs(tmp_path):
  step = jax.jit(lambda s: jax.tree.map(lambda x: x * 0, s), donate_argnums=0)
  state = State(
    jnp.int32(1), jnp.int32(0), {'w': jnp.ones((512, 1024))}, (), None
  )
  wanted = checkpoint.tree_sha256(state)
  with checkpoint.Checkpointer(tmp_path) as saver:
    saver.save(state, make_meta(1))
    for _ in range(3):
      state = step(state)
  assert checkpoint.tree_sha256(checkpoint.restore_raw(tmp_path, 1)) == wanted


def test_report_digests_equal_those_in_memory(two_steps):
  report = checkpoint.report(two_steps)
  state = make_state(2)
  assert report['params_sha256'] == checkpoint.tree_sha256(state.params)
  assert report['opt_state_sha256'] == checkpoint.tree_sha256(state.opt_state)
  assert report['ema_sha256'] is None
  assert report['params'] == 6 * 4 + 2 * 4 * 8 + 4
  assert (report['steps'], report['best_step']) == ([1, 2], 1)
  assert report['data_offset'] == 7
  json.dumps(report, allow_nan=False)


def test_restore_params_prefers_the_average(tmp_path, two_steps):
  state = make_state(4, ema=True)
  with checkpoint.Checkpointer(tmp_path) as saver:
    saver.save(state, make_meta(4))
  digest = checkpoint.tree_sha256
  want = abstract(state).params
  got = checkpoint.restore_params(tmp_path, 4, want)
  assert digest(got) == digest(state.ema)
  raw = checkpoint.restore_params(tmp_path, 4, want, ema=False)
  assert digest(raw) == digest(state.params)
  none = checkpoint.restore_params(two_steps, 2, want)
  assert digest(none) == digest(make_state(2).params)


def test_digest_tells_apart_what_differs_by_a_bit_a_name_or_a_shape():
  digests = [
    checkpoint.tree_sha256(tree)
    for tree in (
      {'a': np.float32(0.0)},
      {'a': np.float32(-0.0)},
      {'a': np.int32(0)},
      {'b': np.float32(0.0)},
      {'a': np.zeros((1,), np.float32)},
      {'a': np.zeros((2, 3), np.float32)},
      {'a': np.zeros((3, 2), np.float32)},
      {'a': {'a': np.float32(0.0)}},
      {},
      jax.random.key(0),
      jax.random.key(1),
    )
  ]
  assert len(set(digests)) == len(digests)
  one = {'x': jnp.bfloat16(1.5), 'y': np.arange(6).reshape(2, 3)}
  other = {'y': np.asfortranarray(one['y']), 'x': one['x']}
  assert checkpoint.tree_sha256(one) == checkpoint.tree_sha256(other)


# --- which are kept ----------------------------------------------------------


def test_keeps_the_latest_and_the_best(tmp_path):
  losses = {1: 3.0, 2: 1.0, 3: math.nan, 4: 1.0, 5: 2.0, 6: math.inf}
  save_steps(tmp_path, losses)
  assert checkpoint.steps(tmp_path) == [2, 5, 6]
  assert checkpoint.best_step(tmp_path) == 2
  assert checkpoint.resolve_step(tmp_path, 'best') == 2
  assert checkpoint.resolve_step(tmp_path) == 6
  assert checkpoint.resolve_step(tmp_path, '5') == 5
  # A program started again applies the same rule.
  save_steps(tmp_path, {7: 0.5}, keep=1)
  assert checkpoint.steps(tmp_path) == [7]


def test_steps_of_a_course_that_was_left_are_gone(tmp_path):
  """The best of them would never be reached again, nor resumed from."""
  save_steps(tmp_path, {1: 3.0, 2: 1.0, 3: 2.0}, keep=3)
  with checkpoint.Checkpointer(tmp_path, keep=3) as saver:
    saver.restore(abstract(make_state()), 1)
    saver.forget_after(1)
    assert checkpoint.steps(tmp_path) == [1]
    assert saver.save(make_state(4), make_meta(4, val_loss=2.5))
  assert checkpoint.best_step(tmp_path) == 4


def test_a_damaged_step_is_not_kept_as_the_best(tmp_path):
  save_steps(tmp_path, {1: 2.0, 2: 3.0, 3: 1.0}, keep=3)
  cut(tmp_path / 'checkpoints' / '3')
  with checkpoint.Checkpointer(tmp_path, keep=1, warn=lambda _: None) as saver:
    saver.restore(abstract(make_state()))
    saver.save(make_state(4), make_meta(4, val_loss=4.0))
    saver.wait()
    assert checkpoint.find_damage(tmp_path, 1) == ''  # best of the whole ones


def test_a_step_is_saved_once(tmp_path):
  with checkpoint.Checkpointer(tmp_path) as saver:
    assert saver.save(make_state(1), make_meta(1))
    assert not saver.save(make_state(2), make_meta(1))
  with checkpoint.Checkpointer(tmp_path) as saver:
    assert not saver.save(make_state(2), make_meta(1))
  raw = checkpoint.restore_raw(tmp_path, 1)
  assert raw['step'] == 1


# --- damage ------------------------------------------------------------------


def cut(folder):
  os.truncate(largest_file(folder), 10)


def flip(folder):
  path = largest_file(folder)
  data = bytearray(path.read_bytes())
  data[len(data) // 2] ^= 1
  path.write_bytes(data)


def lose(folder):
  largest_file(folder).unlink()


def garble_meta(folder):
  (folder / 'meta' / 'metadata').write_text('{"format": ')


def garble_manifest(folder):
  (folder / 'files.json').write_text('[1, 2]')


def empty_manifest(folder):
  (folder / 'files.json').write_text('{}')


def half_a_manifest(folder):
  path = folder / 'files.json'
  whole = json.loads(path.read_text())
  kept = {name: whole[name] for name in whole if name.startswith('meta')}
  path.write_text(json.dumps(kept))


def unmerged(folder):
  """Every file as it was written, and no array to be found in them."""
  (folder / 'state' / 'manifest.ocdbt').unlink()
  path = folder / 'files.json'
  whole = json.loads(path.read_text())
  del whole['state/manifest.ocdbt']
  path.write_text(json.dumps(whole))


@pytest.mark.parametrize(
  'damage',
  [
    cut,
    flip,
    lose,
    garble_meta,
    garble_manifest,
    empty_manifest,
    half_a_manifest,
    unmerged,
  ],
)
def test_a_damaged_newest_falls_back_aloud(copy, damage):
  damage(copy / 'checkpoints' / '2')
  said = []
  with checkpoint.Checkpointer(copy, warn=said.append) as saver:
    back, meta = saver.restore(abstract(make_state()))
    assert meta.step == 1
    assert len(said) == 1
    assert 'checkpoint 2 is damaged' in said[0] and '\n' not in said[0]
    want = checkpoint.tree_sha256(make_state(1))
    assert checkpoint.tree_sha256(back) == want
    # The work is done again, and takes the damaged one's place.
    assert saver.save(make_state(2), make_meta(2))
  assert checkpoint.find_damage(copy, 2) == ''
  assert checkpoint.steps(copy) == [1, 2]


def test_a_damaged_step_asked_for_is_an_error(copy):
  cut(copy / 'checkpoints' / '2')
  with pytest.raises(UserError, match=r'checkpoint 2 is damaged: .* bytes'):
    checkpoint.resolve_step(copy, 2)


def test_all_damaged_is_one_line(copy):
  for step in '12':
    cut(copy / 'checkpoints' / step)
  with pytest.raises(UserError, match='every checkpoint in') as caught:
    checkpoint.resolve_step(copy, warn=lambda _: None)
  assert '\n' not in str(caught.value)


def test_damage_is_never_a_reason_to_delete_the_good_ones(copy):
  cut(copy / 'checkpoints' / '2')
  with checkpoint.Checkpointer(copy, keep=1, warn=lambda _: None) as saver:
    saver.restore(abstract(make_state()))
    saver.save(make_state(3), make_meta(3))
    saver.wait()
    assert checkpoint.find_damage(copy, 3) == ''
    assert checkpoint.find_damage(copy, 1) == ''  # the best


def test_a_commit_without_its_manifest_is_still_whole(copy):
  (copy / 'checkpoints' / '2' / 'files.json').unlink()
  said = []
  assert checkpoint.resolve_step(copy, warn=said.append) == 2
  assert len(said) == 1
  assert 'checkpoint 2 has no files.json' in said[0]
  assert checkpoint.resolve_step(copy, 2, said.append) == 2
  assert len(said) == 2


def test_a_file_that_stays_as_it_is_is_hashed_once(copy, monkeypatch):
  """A server that looks for newer steps does not read all of them again."""
  read = []

  def sha256(path):
    read.append(path)
    return whole(path)

  whole = reader_lib.file_sha256
  monkeypatch.setattr(reader_lib, 'file_sha256', sha256)
  for _ in range(3):
    assert checkpoint.resolve_step(copy) == 2
  assert read and len(read) == len(set(read))
  flip(copy / 'checkpoints' / '2')
  assert checkpoint.resolve_step(copy, warn=lambda _: None) == 1


def test_a_save_counts_once_its_arrays_were_opened(copy, monkeypatch):
  """What Orbax wrote but cannot find again is no checkpoint."""
  merge = (
    'orbax.checkpoint._src.serialization.ocdbt_utils'
    '.merge_ocdbt_per_process_files'
  )

  async def nothing(*_, **__):
    pass

  with checkpoint.Checkpointer(copy) as saver:
    with monkeypatch.context() as patched:
      patched.setattr(merge, nothing)
      saver.save(make_state(3), make_meta(3))
      with pytest.raises(UserError, match='could not save step 3'):
        saver.wait()
    assert checkpoint.resolve_step(copy, warn=lambda _: None) == 2
    assert saver.save(make_state(3), make_meta(3))  # it is not taken for one
  assert checkpoint.resolve_step(copy) == 3


def test_a_save_that_fails_is_one_line_and_keeps_the_others(copy):
  with checkpoint.Checkpointer(copy) as saver:
    folder = copy / 'checkpoints'
    folder.rename(copy / 'aside')
    folder.write_text('in the way')
    with pytest.raises(UserError, match='could not save step 3') as caught:
      saver.save(make_state(3), make_meta(3))
      saver.wait()
    assert '\n' not in str(caught.value)
    folder.unlink()
    (copy / 'aside').rename(folder)
    assert saver.save(make_state(3), make_meta(3))
  assert checkpoint.steps(copy) == [1, 2, 3]


# --- mistakes ----------------------------------------------------------------


def test_mistakes_are_one_line(tmp_path, two_steps):
  (tmp_path / 'file').write_text('x')
  (tmp_path / 'empty').mkdir()
  foreign = tmp_path / 'foreign' / 'checkpoints' / '3'
  foreign.mkdir(parents=True)
  (foreign / 'model.pkl').write_bytes(b'cos\nsystem\n(S"false"\ntR.')
  for path, which, words in (
    (tmp_path / 'none', 'latest', 'no run directory'),
    (tmp_path / 'file', 'latest', 'is a file'),
    (tmp_path / 'empty', 'latest', 'holds no checkpoint; train with'),
    (tmp_path / 'foreign', 'latest', 'damaged'),
    (tmp_path / 'foreign', 3, 'not a checkpoint of craft'),
    (two_steps, 9, 'has no step 9; it has 1, 2'),
    (two_steps, 'newest', 'must be a number, latest or best'),
    (two_steps, '-1', 'must be a number, latest or best'),
  ):
    with pytest.raises(UserError, match=words) as caught:
      checkpoint.resolve_step(path, which, warn=lambda _: None)
    assert '\n' not in str(caught.value)
  with pytest.raises(UserError, match='cannot write to'):
    checkpoint.Checkpointer(tmp_path / 'file')


def test_a_mismatch_names_the_array(two_steps):
  def fails_with(state, words):
    with (
      checkpoint.Checkpointer(two_steps) as saver,
      pytest.raises(UserError, match=words),
    ):
      saver.restore(abstract(state))

  state = make_state()
  fails_with(
    make_state(width=5),
    r'blocks/mlp/in/kernel as float32\[2, 4, 8\], .* float32\[2, 5, 8\]',
  )
  fails_with(
    state.replace(params=state.params | {'head': jnp.ones(2)}),
    'lacks params/head',
  )
  fails_with(state.replace(opt_state=()), 'holds opt_state/1/0/count, which')
  fails_with(state.replace(step=jnp.float32(0)), r'holds step as int32\[\]')
  with pytest.raises(UserError, match='holds params/blocks/mlp/in/kernel as'):
    checkpoint.restore_params(
      two_steps, 2, abstract(make_state(width=5)).params
    )


_FOLDER_GOES = """
import pathlib, sys, time
import jax.numpy as jnp
from craft_jax.runs import checkpoint
from craft_jax.errors import UserError
from craft_jax.config.settings import Config
from craft_jax.data.text.vocabulary import Vocabulary

checkpoint.quiet()
state = {
  'step': jnp.int32(3), 'data_offset': jnp.int32(0), 'opt_state': (),
  'params': {f'{i}': jnp.ones((300, 300)) for i in range(60)}, 'ema': None,
}
meta = checkpoint.Meta(3, Config(), Vocabulary.byte(), 'abc', {})
for i in range(20):
  folder = pathlib.Path(sys.argv[1], str(i))
  saver = checkpoint.Checkpointer(folder)
  saver.save(state, meta)
  time.sleep(0.004 * i)  # each attempt fails at another place
  folder.rename(f'{folder}-moved')
  try:
    saver.close()
  except UserError as e:
    print(e)
"""


@pytest.mark.slow
def test_a_save_that_fails_says_nothing_else(tmp_path):
  done = subprocess.run(
    [sys.executable, '-c', _FOLDER_GOES, tmp_path],
    capture_output=True,
    text=True,
  )
  assert done.returncode == 0 and done.stderr == ''
  lines = done.stdout.splitlines()
  assert lines and all('mend the folder' in line for line in lines)
