"""A writer that is slow, broken or hangs costs a warning and no more."""

import threading
import time

import pytest

from craft_jax.runs.background import Background


class Recorder:
  """Notes what it is told; fails or waits where asked."""

  def __init__(self, told, fail_at=None, gate=None):
    self._told, self._fail_at, self._gate = told, fail_at, gate

  def log(self, step, figures):
    if self._gate:
      self._gate.wait(30)
    if step == self._fail_at:
      raise ConnectionError('no\nroute')
    self._told.append(('log', step, figures))

  def text(self, step, text):
    self._told.append(('text', step, text))

  def finish(self, summary):
    self._told.append(('finish', summary))

  def close(self):
    self._told.append(('close',))


@pytest.fixture
def said():
  return []


def test_all_arrives_in_order_and_a_copy_is_taken(said):
  told = []
  writer = Background('it', lambda: Recorder(told), said.append)
  figures = {'loss': 1.0}
  writer.log(1, figures)
  figures['loss'] = 2.0
  writer.text(1, 'hi')
  writer.finish({'step': 1})
  writer.close()
  writer.close()
  writer.log(2, {})  # too late: nowhere
  assert told == [
    ('log', 1, {'loss': 1.0}), ('text', 1, 'hi'), ('finish', {'step': 1}),
  ]  # fmt: skip
  assert not said


def test_a_run_without_a_summary_is_closed_once(said):
  told = []
  writer = Background('it', lambda: Recorder(told), said.append)
  writer.close()
  writer.close()
  assert told == [('close',)] and not said


def test_a_failure_is_told_once_and_ends_it(said):
  told = []
  writer = Background('it', lambda: Recorder(told, fail_at=2), said.append)
  for step in range(1, 6):
    writer.log(step, {})
  writer.finish({})
  assert told == [('log', 1, {})]
  (line,) = said
  assert 'nothing more goes to it: no route' in line and '\n' not in line


def test_a_library_that_exits_at_the_start(said):
  def make():
    raise SystemExit('no account')

  writer = Background('it', make, said.append)
  writer.log(1, {})
  writer.close()
  assert len(said) == 1 and 'no account' in said[0]


def test_training_never_waits(said):
  """Neither for one row nor for a full queue, nor at the end for ever."""
  gate, told = threading.Event(), []
  writer = Background(
    'it', lambda: Recorder(told, gate=gate), said.append, 3, 0.2
  )
  begin = time.monotonic()
  for step in range(100):
    writer.log(step, {})
  writer.close()
  assert time.monotonic() - begin < 10  # the gate alone is 30
  assert len(said) == 1 and 'falls behind' in said[0]
  gate.set()


def test_one_that_does_not_end(said):
  gate = threading.Event()
  writer = Background(
    'it', lambda: Recorder([], gate=gate), said.append, 9, 0.2
  )
  writer.log(1, {})
  writer.close()
  assert len(said) == 1 and 'has not ended after' in said[0]
  gate.set()
