"""Text coloured by surprisal, for terminals and as an HTML page.

Every character is shown in a visible form: control characters and raw bytes
never reach a terminal or a browser.
"""

import html
import itertools
import math
import unicodedata
from collections.abc import Iterator, Sequence
from typing import NamedTuple

import numpy as np
import rich.cells
import rich.text

# Lower bounds in bits of all colours but the first. Black text is readable on
# all of them (ColorBrewer, YlOrRd).
BOUNDS = (0.5, 1.0, 2.0, 3.0, 4.0, 6.0, 8.0)
COLOURS = (
  '#ffffff', '#ffffcc', '#ffeda0', '#fed976',
  '#feb24c', '#fd8d3c', '#fc4e2a', '#e31a1c',
)  # fmt: skip

_NAMED = {' ': '·', '\n': '↵', '\t': '⇥', '\x7f': '␡'}


class Heat(NamedTuple):
  """A text to show.

  Attributes:
    title: heading.
    text: the text, invalid bytes as surrogates U+DC80 to U+DCFF.
    nats: surprisal of each character.
    notes: lines to show below the heading.
  """

  title: str
  text: str
  nats: np.ndarray
  notes: Sequence[str]


def visible(character: str) -> str:
  """A visible and harmless representation of a character."""
  if character in _NAMED:
    return _NAMED[character]
  code = ord(character)
  if code < 0x20:
    return chr(0x2400 + code)  # Unicode's control pictures
  if 0xDC80 <= code <= 0xDCFF:
    return f'\\x{code - 0xDC00:02x}'
  if unicodedata.category(character).startswith('M'):
    return '\u25cc' + character  # a combining mark needs a base
  shows = character.isprintable() and character != '\ufffd'
  return character if shows else f'U+{code:04X}'


def levels(nats: np.ndarray) -> np.ndarray:
  """Index into `COLOURS` of each value; non-finite ones get the last."""
  bits = np.asarray(nats, np.float64) / math.log(2)
  return np.searchsorted(BOUNDS, bits, side='right')


def legend() -> list[str]:
  """Range of each colour in bits."""
  between = [f'{a:g}-{b:g}' for a, b in itertools.pairwise(BOUNDS)]
  return [f'below {BOUNDS[0]:g}', *between, f'{BOUNDS[-1]:g} and more']


def _lines(text: str) -> Iterator[tuple[int, int]]:
  """Start and stop of each line, including its newline."""
  start = 0
  while start < len(text):
    end = text.find('\n', start)
    stop = len(text) if end < 0 else end + 1
    yield start, stop
    start = stop


def coloured(text: str, nats: np.ndarray) -> Iterator[rich.text.Text]:
  """Lines of a text with background colours, for a terminal."""
  styles = [f'black on {colour}' for colour in COLOURS]
  level = levels(nats)
  for start, stop in _lines(text):
    line = rich.text.Text(end='\n')
    for i in range(start, stop):
      line.append(visible(text[i]), styles[level[i]])
    yield line


def coloured_legend() -> rich.text.Text:
  """A line that explains the colours."""
  line = rich.text.Text('bits:')
  for colour, words in zip(COLOURS, legend(), strict=True):
    line.append(' ')
    line.append(f' {words} ', f'black on {colour}')
  return line


def marked(text: str, nats: np.ndarray) -> Iterator[str]:
  """Lines of a text, each followed by a line of digits instead of colours.

  A digit is the surprisal of the character above in bits, rounded down; 9 is 9
  or more.
  """
  bits = np.nan_to_num(np.asarray(nats, np.float64) / math.log(2), nan=9.0)
  digits = np.clip(bits, 0, 9).astype(int)
  for start, stop in _lines(text):
    shown = [visible(character) for character in text[start:stop]]
    yield ''.join(shown)
    yield ''.join(
      str(digit).ljust(rich.cells.cell_len(piece))
      for digit, piece in zip(digits[start:stop], shown, strict=True)
    )


_PAGE = """<!DOCTYPE html>
<html lang="en">
<head>
<meta charset="utf-8">
<meta http-equiv="Content-Security-Policy"
 content="default-src 'none'; style-src 'unsafe-inline'">
<meta name="viewport" content="width=device-width">
<title>{title}</title>
<style>
body {{ background: #fff; color: #000; font-family: sans-serif; margin: 2em; }}
pre {{ line-height: 1.5; white-space: pre-wrap; overflow-wrap: anywhere;
 direction: ltr; unicode-bidi: bidi-override; }}
.legend b {{ padding: 0.2em 0.5em; }}
b {{ font-weight: normal; }}
b:hover {{ outline: 1px solid #000; }}
{styles}
</style>
</head>
<body>
<h1>{title}</h1>
<p class="legend">Bits of surprisal: {legend}</p>
{sections}</body>
</html>
"""


def page(title: str, texts: Sequence[Heat]) -> str:
  """A self-contained HTML page, without scripts or external resources.

  Each character has a tooltip with its bits. All text is escaped.
  """
  styles = '\n'.join(
    f'.h{i} {{ background: {colour}; }}' for i, colour in enumerate(COLOURS)
  )
  key = ' '.join(
    f'<b class="h{i}">{html.escape(words)}</b>'
    for i, words in enumerate(legend())
  )
  return _PAGE.format(
    title=_escaped(title),
    styles=styles,
    legend=key,
    sections=''.join(_section(heat) for heat in texts),
  )


def _section(heat: Heat) -> str:
  notes = ''.join(f'<li>{_escaped(note)}</li>' for note in heat.notes)
  bits = np.asarray(heat.nats, np.float64) / math.log(2)
  spans = ''.join(
    _span(character, amount, level)
    for character, amount, level in zip(
      heat.text, bits.tolist(), levels(heat.nats).tolist(), strict=True
    )
  )
  return (
    f'<h2>{_escaped(heat.title)}</h2>\n<ul>{notes}</ul>\n<pre>{spans}</pre>\n'
  )


def _span(character: str, bits: float, level: int) -> str:
  code = ord(character)
  raw = 0xDC80 <= code <= 0xDCFF
  name = f'byte 0x{code - 0xDC00:02X}' if raw else f'U+{code:04X}'
  ending = '\n' if character == '\n' else ''
  return (
    f'<b class="h{level}" title="{name}: {bits:.2f} bits">'
    f'{html.escape(visible(character))}</b>{ending}'
  )


def _escaped(line: str) -> str:
  """Escapes a line, which may contain a file name, for HTML."""
  shown = ''.join(c if c == ' ' else visible(c) for c in line)
  return html.escape(shown)
