"""The exceptions that end a command without a traceback.

`craft_jax.main` prints the message of each as one line. Any other exception is
a bug and keeps its traceback.
"""

import difflib
import itertools
from collections.abc import Iterable, Mapping
from typing import Any

_LONGEST_NAME = 64
_MOST_NAMES = 1000


def hint(name: str, known: Iterable[str]) -> str:
  """Returns `", did you mean 'x'?"` for the nearest known name, or `''`.

  A dotted name also matches by its last part: `width` finds `model.width`.
  Long names and the end of a long list are skipped, because the time grows
  with both.
  """
  if len(name) > _LONGEST_NAME:
    return ''
  known = [
    k for k in itertools.islice(known, _MOST_NAMES) if len(k) <= _LONGEST_NAME
  ]
  dotted = any('.' in k for k in known)
  # Names of one section share a prefix, which makes them look more similar.
  cutoff = 0.6 if dotted else 0.5
  close = difflib.get_close_matches(name, known, n=1, cutoff=cutoff)
  if not close and dotted:
    leaves = {k.rpartition('.')[2]: k for k in known}
    leaf = name.rpartition('.')[2]
    near = difflib.get_close_matches(leaf, leaves, n=1, cutoff=cutoff)
    close = [leaves[n] for n in near]
  return f', did you mean {close[0]!r}?' if close else ''


def one_line(error: BaseException) -> str:
  """The message of an error as one line of at most 200 characters."""
  return (' '.join(str(error).split()) or type(error).__name__)[:200]


class UserError(Exception):
  """A mistake in the input; says what is wrong and what to do. Exit code 2."""


class RunFailed(Exception):
  """A run that cannot continue although its input is valid.

  Attributes:
    code: exit code: 1 for a failure, `INTERRUPTED` if a signal ended the run
      after its state was saved, `PEER_LOST` if another process of the run has
      ended.
  """

  def __init__(self, message: str, code: int = 1):
    super().__init__(message)
    self.code = code


class OutOfMemory(RunFailed):
  """A run that needed more memory than is available.

  The caller should exit without joining threads: those of other devices may
  wait for the device that failed.

  Attributes:
    facts: JSON values; `doing` is the phase of the run, `bytes` the memory
      needed per device or None if unknown.
  """

  def __init__(self, facts: Mapping[str, Any]):
    super().__init__(f'out of memory while {facts["doing"]}')
    self.facts = dict(facts)


class Interrupted(KeyboardInterrupt):
  """A signal that came when nothing had to be saved. Exit code `INTERRUPTED`.

  It is a `BaseException`, so `except Exception` does not catch it.
  """


INTERRUPTED = 75  # EX_TEMPFAIL of sysexits.h: start the run again
PEER_LOST = 69  # EX_UNAVAILABLE of sysexits.h: start all processes again
