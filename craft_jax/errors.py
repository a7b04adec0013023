"""The exceptions that end a command without a traceback.

`craft_jax.main` prints their one line; bugs raise anything else and keep
their traceback.
"""

import difflib
import itertools
from collections.abc import Iterable, Mapping
from typing import Any

_LONGEST_NAME = 64
_MOST_NAMES = 1000


def hint(name: str, known: Iterable[str]) -> str:
  """`", did you mean 'x'?"` for the nearest of the known names, or `''`.

  A dotted name may also be near by its last part: `width` is near
  `model.width`. Neither a long name nor the end of a long list is looked at,
  since the time is in proportion to both.
  """
  if len(name) > _LONGEST_NAME:
    return ''
  known = [
    k for k in itertools.islice(known, _MOST_NAMES) if len(k) <= _LONGEST_NAME
  ]
  dotted = any('.' in k for k in known)
  # Sections are equal letters that say little.
  cutoff = 0.6 if dotted else 0.5
  close = difflib.get_close_matches(name, known, n=1, cutoff=cutoff)
  if not close and dotted:
    leaves = {k.rpartition('.')[2]: k for k in known}
    leaf = name.rpartition('.')[2]
    near = difflib.get_close_matches(leaf, leaves, n=1, cutoff=cutoff)
    close = [leaves[n] for n in near]
  return f', did you mean {close[0]!r}?' if close else ''


def one_line(error: BaseException) -> str:
  """The error in one short line."""
  return (' '.join(str(error).split()) or type(error).__name__)[:200]


class UserError(Exception):
  """A mistake in the input: what is wrong and what to do. Exit code 2."""


class RunFailed(Exception):
  """A run that cannot go on, through no mistake in the input.

  Attributes:
    code: exit code: 1 for a failure, `INTERRUPTED` where a signal ended the
      run and its state is saved, `PEER_LOST` where another process of the run
      has ended.
  """

  def __init__(self, message: str, code: int = 1):
    super().__init__(message)
    self.code = code


class OutOfMemory(RunFailed):
  """A run that asked for more memory than there was.

  Threads of other devices may wait for the one that failed, so that a program
  should leave without waiting for them.

  Attributes:
    facts: JSON values, of which `doing` says what the run was at and `bytes`
      what it needed on a device, None if that is not known.
  """

  def __init__(self, facts: Mapping[str, Any]):
    super().__init__(f'out of memory while {facts["doing"]}')
    self.facts = dict(facts)


class Interrupted(KeyboardInterrupt):
  """A signal came while nothing had to be saved. Exit code `INTERRUPTED`.

  Like its base no `except Exception` catches it.
  """


INTERRUPTED = 75  # EX_TEMPFAIL: start it again
PEER_LOST = 69  # EX_UNAVAILABLE: start all processes again
