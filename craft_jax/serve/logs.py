"""What the server says of itself: a JSON object a line, never a prompt."""

import contextlib
import sys
import time
import traceback
from typing import Any, TextIO

from craft_jax.runtime import strict_json


class Log:
  """Writes lines that nothing in a request can break or forge.

  Args:
    file: where to; None is standard error at the time of writing.
  """

  def __init__(self, file: TextIO | None = None):
    self._file = file

  def note(self, event: str, **more: Any) -> None:
    """A line; a value that is no JSON is shown as text."""
    stamp = time.strftime('%Y-%m-%dT%H:%M:%SZ', time.gmtime())
    line = strict_json.dumps(
      {'time': stamp, 'event': event} | more, default=str
    )
    # A log that nobody reads any more is no reason to serve nobody.
    with contextlib.suppress(OSError):
      print(line, file=self._file or sys.stderr, flush=True)


def described(error: BaseException) -> str:
  """The kind of an error and where it was raised.

  Without its message, which may show what was asked: that of a
  UnicodeEncodeError is the text. JAX's own are about shapes and memory.
  """
  kind = type(error).__name__
  if type(error).__module__.startswith('jax'):
    kind += f': {error}'
  frames = traceback.extract_tb(error.__traceback__)
  return (
    f'{kind} at {frames[-1].filename}:{frames[-1].lineno}' if frames else kind
  )
