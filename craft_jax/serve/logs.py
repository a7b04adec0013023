"""What the server says of itself: a JSON object a line, never a prompt."""

import json
import sys
import time
from typing import Any, TextIO


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
    line = json.dumps({'time': stamp, 'event': event} | more, default=str)
    print(line, file=self._file or sys.stderr, flush=True)
