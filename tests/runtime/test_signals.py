"""Interrupts without a run; tests/reliability has those of real runs."""

import signal

import pytest

from craft_jax.errors import Interrupted
from craft_jax.runtime.signals import Interrupts


def test_an_interrupt_that_was_lost_is_raised_again():
  """An exception ends in a callback of the interpreter if it hits one."""
  with Interrupts() as interrupts:
    with pytest.raises(Interrupted, match='SIGTERM'):
      signal.raise_signal(signal.SIGTERM)
    with pytest.raises(Interrupted, match='SIGTERM'):
      interrupts.defer()


def test_several_processes_agree_first():
  with Interrupts() as interrupts:
    with pytest.raises(Interrupted):
      signal.raise_signal(signal.SIGTERM)
    interrupts.defer(lambda wanted: wanted)
    assert interrupts.requested()
