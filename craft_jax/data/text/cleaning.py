"""Text cleaning by named steps, applied in the given order.

A step is a pure function `text -> (cleaned text, characters changed)`. The
`utf8-*` steps decide how bytes become text and have to come first; without one
the bytes must be valid UTF-8.
"""

import collections
import dataclasses
import re
import string
import unicodedata
from collections.abc import Callable, Iterable, Sequence

import numpy as np

from craft_jax.data.text import utf8
from craft_jax.errors import UserError, hint


@dataclasses.dataclass(frozen=True)
class StepReport:
  """Report of one cleaning step.

  Attributes:
    name: name of the step.
    changed: number of input characters removed or replaced; for the `utf8-*`
      steps, number of invalid bytes.
    lossy: whether anything changed, so that the original text's bytes can no
      longer be counted.
    example: the first change as `'before' -> 'after'`, or ''.
  """

  name: str
  changed: int
  lossy: bool
  example: str


def check_steps(steps: Sequence[str]) -> None:
  """Raises `UserError` if a step is unknown or a `utf8-*` step is not first."""
  for position, name in enumerate(steps):
    if name not in STEP_NAMES:
      raise UserError(
        f'text.clean: unknown step {name!r}{hint(name, STEP_NAMES)}; the '
        f'steps are {", ".join(STEP_NAMES)}'
      )
    if name in _DECODING and position:
      raise UserError(
        f'text.clean: {name} must be the first step, not after '
        f'{steps[position - 1]}; move it to the front, once'
      )


def clean(
  data: bytes, steps: Sequence[str] = (), name: str = 'the text'
) -> tuple[str | bytes, list[StepReport]]:
  """Applies cleaning steps to a text.

  Args:
    data: raw bytes of the text.
    steps: names from `STEP_NAMES`.
    name: name of the text, for error messages.

  Returns:
    The text as a `str`, or `data` itself if there are no steps; and a report
    per step.

  Raises:
    UserError: a step is unknown or misplaced, or the bytes are not UTF-8 and
      neither utf8-replace nor utf8-drop comes first.
  """
  check_steps(steps)
  if not steps:
    return data, []
  reports = []
  if steps[0] in _DECODING:
    text, report = _decode(data, steps[0], name)
    reports.append(report)
  else:
    text = utf8.decode_strict(data, name)
  for step in steps[len(reports) :]:
    result, changed = _STEPS[step](text)
    example = _example(text, result) if changed else ''
    reports.append(StepReport(step, changed, changed > 0, example))
    text = result
  return text, reports


def combine(reports: Iterable[Sequence[StepReport]]) -> list[StepReport]:
  """Sums the reports of several texts that went through the same steps."""
  return [
    StepReport(
      same_step[0].name,
      sum(report.changed for report in same_step),
      any(report.lossy for report in same_step),
      next((r.example for r in same_step if r.example), ''),
    )
    for same_step in zip(*reports, strict=True)
  ]


# --- bytes to text -----------------------------------------------------------


def _decode(data: bytes, step: str, name: str) -> tuple[str, StepReport]:
  if step == 'utf8-strict':
    return utf8.decode_strict(data, name), StepReport(step, 0, False, '')
  try:
    return data.decode('utf-8'), StepReport(step, 0, False, '')
  except UnicodeDecodeError as e:
    errors = _DECODING[step]
    text = data.decode('utf-8', errors)
    changed = len(data) - len(data.decode('utf-8', 'ignore').encode('utf-8'))
    start = utf8.boundary(data, max(e.start - 8, 0))
    end = utf8.boundary(data, min(e.start + 8, len(data)))
    after = data[start:end].decode('utf-8', errors)
    example = f'{data[start:end]!r} -> {after!r}'
    return text, StepReport(step, changed, True, example)


# --- text to text ------------------------------------------------------------

# An ASCII character never combines with what precedes it, so that normalizing
# these pieces separately equals normalizing the whole text.
_NORMAL_PIECE = re.compile(r'[\x00-\x7f]?[^\x00-\x7f]+')


def _nfc(text: str) -> tuple[str, int]:
  return _normalize(text, 'NFC')


def _nfkc(text: str) -> tuple[str, int]:
  return _normalize(text, 'NFKC')


def _normalize(text: str, form: str) -> tuple[str, int]:
  if unicodedata.is_normalized(form, text):  # type: ignore[arg-type]
    return text, 0
  pieces = collections.Counter(_NORMAL_PIECE.findall(text))
  changed = sum(n * _renormalized(p, form) for p, n in pieces.items())
  return _normal(text, form), changed


def _normal(text: str, form: str) -> str:
  return unicodedata.normalize(form, text)  # type: ignore[arg-type]


def _renormalized(piece: str, form: str) -> int:
  """Number of characters in clusters that normalization changes."""
  count, cluster = 0, ''
  for character in piece:
    joined = _normal(cluster + character, form)
    if unicodedata.combining(character) or joined != (
      _normal(cluster, form) + _normal(character, form)
    ):
      cluster += character
      continue
    count += len(cluster) * (cluster != _normal(cluster, form))
    cluster = character
  return count + len(cluster) * (cluster != _normal(cluster, form))


_NEWLINE = re.compile('\r\n?|[\x85\u2028\u2029]')


def _newlines(text: str) -> tuple[str, int]:
  return _NEWLINE.subn('\n', text)


# Keeps the carriage return, which the step `newlines` handles.
_CONTROL = re.compile('[\x00-\x08\x0b\x0c\x0e-\x1f\x7f-\x9f\ufeff]')


def _drop_controls(text: str) -> tuple[str, int]:
  return _CONTROL.subn('', text)


_SPACES = re.compile(r'[^\S\n]*\n\s*|[^\S\n]{2,}|[^\S\n ]')


def _spaces(text: str) -> tuple[str, int]:
  changed = 0

  def collapse(match: re.Match[str]) -> str:
    nonlocal changed
    run = match[0]
    lines = min(run.count('\n'), 2)
    changed += len(run) - (lines or ' ' in run)
    return '\n' * lines or ' '

  return _SPACES.sub(collapse, text), changed


def _lower(text: str) -> tuple[str, int]:
  codes, counts = utf8.count_characters(text)
  upper = [(c := chr(code)).lower() != c for code in codes]
  return text.lower(), int(np.sum(counts[upper]))


_DIGITS = {
  str(digit): f' {word} '
  for digit, word in enumerate(
    (
      *('zero', 'one', 'two', 'three', 'four'),
      *('five', 'six', 'seven', 'eight', 'nine'),
    )
  )
}
_ASCII_UPPER = {code: code + 32 for code in range(ord('A'), ord('Z') + 1)}


def _text8(text: str) -> tuple[str, int]:
  # Unchanged are a to z, and one space per run of separators that has one.
  kept = sum(text.count(letter) for letter in string.ascii_lowercase)
  kept += len(re.findall(r' [^A-Za-z0-9]*', text))
  spelt = re.sub('[0-9]', lambda match: _DIGITS[match[0]], text)
  small = spelt.translate(_ASCII_UPPER)
  return re.sub('[^a-z]+', ' ', small), len(text) - kept


_DECODING = {
  'utf8-strict': 'strict',
  'utf8-replace': 'replace',
  'utf8-drop': 'ignore',
}
_STEPS: dict[str, Callable[[str], tuple[str, int]]] = {
  'nfc': _nfc,
  'nfkc': _nfkc,
  'newlines': _newlines,
  'drop-controls': _drop_controls,
  'spaces': _spaces,
  'lower': _lower,
  'text8': _text8,
}
STEP_NAMES = (*_DECODING, *_STEPS)


def _example(before: str, after: str) -> str:
  """The first difference with some context, as `'before' -> 'after'`."""
  at = _first_difference(before, after)
  context = slice(max(at - 8, 0), at + 12)
  return f'{before[context]!r} -> {after[context]!r}'


def _first_difference(before: str, after: str) -> int:
  """Index of the first character that differs, by bisection."""
  low, high = 0, min(len(before), len(after))
  while low < high:
    middle = (low + high + 1) // 2
    if before[low:middle] == after[low:middle]:
      low = middle
    else:
      high = middle - 1
  return low
