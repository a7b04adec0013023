"""The log of the server: a JSON object per line, never a prompt."""

import contextlib
import sys
import time
import traceback
from typing import Any, TextIO

from craft_jax.runtime import strict_json


class Log:
  """A log whose lines nothing in a request can break or forge.

  Args:
    file: to write to; None is standard error at the time of writing.
  """

  def __init__(self, file: TextIO | None = None):
    self._file = file

  def note(self, event: str, **more: Any) -> None:
    """Writes a line; a value that JSON cannot hold is written as text."""
    stamp = time.strftime('%Y-%m-%dT%H:%M:%SZ', time.gmtime())
    line = strict_json.dumps(
      {'time': stamp, 'event': event} | more, default=str
    )
    # A closed log is no reason to stop serving.
    with contextlib.suppress(OSError):
      print(line, file=self._file or sys.stderr, flush=True)


def described(error: BaseException) -> str:
  """The type of an error and where it was raised.

  Its message is left out, since it may show a prompt: a UnicodeEncodeError has
  the text. JAX's own messages are about shapes and memory.
  """
  kind = type(error).__name__
  if type(error).__module__.startswith('jax'):
    kind += f': {error}'
  frames = traceback.extract_tb(error.__traceback__)
  return (
    f'{kind} at {frames[-1].filename}:{frames[-1].lineno}' if frames else kind
  )
