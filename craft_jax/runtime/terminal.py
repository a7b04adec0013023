"""Escapes control characters in untrusted text shown in a terminal or page.

Control characters in a sample, a name or an error could clear the screen, hide
a line or reverse the direction of text. Output to a terminal is therefore
escaped in the stream itself, so that no `print` can forget it. Output to a pipe
or file is not changed.
"""

import html
import re
import sys
from typing import Any, TextIO

# C0 without tab and newline, DEL and C1; bidirectional controls; lone
# surrogates, which stand for raw bytes; and U+FFFD, which terminals also show
# for invalid bytes.
_OBEYED = re.compile(
  '[\x00-\x08\x0b-\x1f\x7f-\x9f\u061c\u200e\u200f\u202a-\u202e\u2066-\u2069'
  '\ufffd\ud800-\udfff]'
)


def visible(text: str) -> str:
  r"""Escapes control characters as `\x1b`, `\u202e` and so on.

  Raw bytes that are not UTF-8, represented by surrogates U+DC80 to U+DCFF,
  become `\x80` to `\xff`.
  """
  return _OBEYED.sub(lambda match: _escaped(ord(match[0])), text)


def _escaped(code: int) -> str:
  if code == 0x0D:
    return '\\r'
  if code < 0x80:
    return f'\\x{code:02x}'
  if 0xDC80 <= code <= 0xDCFF:
    return f'\\x{code - 0xDC00:02x}'
  return f'\\u{code:04x}'


def as_html(text: str) -> str:
  """Escapes control characters and HTML."""
  return html.escape(visible(text))


class Visible:
  """Wraps a terminal's stream and escapes control characters.

  Attributes:
    stream: the wrapped stream, for callers that draw with control sequences.
  """

  def __init__(self, stream: TextIO):
    """Wraps `stream`, which is not closed."""
    self.stream = stream

  def write(self, text: str) -> int:
    """Writes escaped text and returns the length of `text`."""
    self.stream.write(visible(text))
    return len(text)

  def writelines(self, lines: Any) -> None:
    """Writes each of the lines."""
    for line in lines:
      self.write(line)

  def __getattr__(self, name: str) -> Any:
    return getattr(self.stream, name)


def protect() -> None:
  """Escapes everything printed to a terminal from now on."""
  for name in ('stdout', 'stderr'):
    stream = getattr(sys, name)
    if stream and not isinstance(stream, Visible) and stream.isatty():
      setattr(sys, name, Visible(stream))


def drawing(stream: Any) -> Any:
  """The unwrapped stream, for progress bars; callers must use `visible`."""
  return stream.stream if isinstance(stream, Visible) else stream
