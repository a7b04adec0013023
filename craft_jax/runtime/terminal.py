"""Text of models and users, shown where a terminal or a page obeys it.

A control character in a sample, in a name or in an error would be obeyed: it
clears the screen, hides a line or turns the order of letters round. What goes
to a terminal is therefore escaped in the stream itself, so that no `print` can
forget it. What goes to a pipe or a file stays as it is, to the byte.
"""

import html
import re
import sys
from typing import Any, TextIO

# C0 without tab and newline, DEL and C1; marks and overrides of the direction
# of writing; lone surrogates, which stand for raw bytes; and U+FFFD, which a
# reader could not tell from what a terminal shows for a byte of its own.
_OBEYED = re.compile(
  '[\x00-\x08\x0b-\x1f\x7f-\x9f\u061c\u200e\u200f\u202a-\u202e\u2066-\u2069'
  '\ufffd\ud800-\udfff]'
)


def visible(text: str) -> str:
  r"""The text with `\x1b`, `\u202e` and so on for what would be obeyed.

  A raw byte that is no UTF-8, which is a surrogate from U+DC80 to U+DCFF in
  Craft's texts, is `\x80` to `\xff`.
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
  """The visible text, with HTML's own characters escaped."""
  return html.escape(visible(text))


class Visible:
  """A terminal's stream that writes only what `visible` lets through.

  Attributes:
    stream: the stream itself, for what draws with control sequences.
  """

  def __init__(self, stream: TextIO):
    """Writes to `stream`, which stays open."""
    self.stream = stream

  def write(self, text: str) -> int:
    """Writes the visible text; the length of what was given."""
    self.stream.write(visible(text))
    return len(text)

  def writelines(self, lines: Any) -> None:
    """Writes each."""
    for line in lines:
      self.write(line)

  def __getattr__(self, name: str) -> Any:
    return getattr(self.stream, name)


def protect() -> None:
  """Escapes whatever is printed from now on, where a terminal shows it."""
  for name in ('stdout', 'stderr'):
    stream = getattr(sys, name)
    if stream and not isinstance(stream, Visible) and stream.isatty():
      setattr(sys, name, Visible(stream))


def drawing(stream: Any) -> Any:
  """The stream below, for a bar or colours; its texts must be `visible`."""
  return stream.stream if isinstance(stream, Visible) else stream
