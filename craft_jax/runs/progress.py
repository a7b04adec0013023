"""The progress of a run on the terminal: a bar, or plain lines.

Everything goes to standard error, so that results on standard output can be
piped. Leave the context before printing results to a terminal.
"""

import contextlib
import math
import sys
import time
from collections.abc import Callable, Mapping
from types import TracebackType
from typing import Any, TextIO

import rich.console
import rich.live
import rich.text

from craft_jax.runs.metric_table import bar_parts
from craft_jax.runtime.terminal import drawing, visible

_FULL, _EMPTY = '━', '─'
_LEAST_BAR, _MOST_BAR = 8, 30


def clock(seconds: float) -> str:
  """`0:07`, `12:34` or `1:02:03`."""
  minutes, second = divmod(round(max(seconds, 0)), 60)
  hours, minute = divmod(minutes, 60)
  if hours:
    return f'{hours}:{minute:02}:{second:02}'
  return f'{minute}:{second:02}'


def bar_line(
  step: int, total: int, left: str, parts: list[str], width: int, phase: str
) -> str:
  """One line of at most `width` columns.

  The bar shrinks first, then metrics are left off from the last.
  """
  head = f'{step:>{len(str(total))}}/{total}'
  ending = [f'{left} left'] if left else []
  middle = [phase] if phase else []
  parts = list(parts)
  while True:
    text = '  '.join([head, *middle, *ending, *parts])
    room = width - len(text) - 2
    if room >= _LEAST_BAR or not parts:
      break
    parts.pop()
  bar_width = min(max(room, 0), _MOST_BAR)
  if bar_width < _LEAST_BAR:
    return text[:width]
  done = round(bar_width * min(step / max(total, 1), 1.0))
  return f'{_FULL * done}{_EMPTY * (bar_width - done)}  {text}'


class Progress:
  """A live bar on a terminal, plain lines elsewhere, nothing if quiet.

  Warnings are shown even when quiet. A terminal that has gone costs nothing
  but what would have been shown.
  """

  def __init__(
    self,
    total: int,
    *,
    step: int = 0,
    seconds: float = 10.0,
    quiet: bool = False,
    stream: TextIO | None = None,
  ):
    """Makes the display of steps `step` to `total`.

    Args:
      total: the last step.
      step: the step a resumed run starts from.
      seconds: least time between plain lines.
      quiet: show warnings only.
      stream: standard error by default.
    """
    self._console = rich.console.Console(
      file=drawing(stream or sys.stderr), highlight=False, soft_wrap=True
    )
    self._total, self._step, self._seconds = total, step, seconds
    self._quiet, self._phase = quiet, ''
    self._metrics: dict[str, float] = {}
    self._printed, self._printed_at = step, -math.inf
    # The rate counts from the first update: it leaves compilation out.
    self._first: tuple[int, float] | None = None
    live = self._console.is_terminal and not self._console.is_dumb_terminal
    self._live = None if quiet or not live else rich.live.Live(
      console=self._console,
      auto_refresh=False,
      transient=True,
      # A pipe on standard output must get its bytes, not a copy on the bar.
      redirect_stdout=False,
      get_renderable=self._render,
    )  # fmt: skip

  def __enter__(self) -> 'Progress':
    live = self._live
    if live:
      self._show(lambda: live.start(refresh=True))
    return self

  def __exit__(
    self,
    kind: type[BaseException] | None,
    error: BaseException | None,
    trace: TracebackType | None,
  ) -> None:
    if self._live:
      self._show(self._live.stop)
      # The bar vanishes; what it last said stays as an ordinary line.
      self._print(self._plain_line())

  def update(self, step: int, metrics: Mapping[str, float]) -> None:
    """Shows that `step` steps are done, and the metrics that the bar has.

    A metric that is not given again stays, such as the last evaluation.
    """
    self._step = step
    self._metrics |= metrics
    if self._first is None:
      self._first = (step, time.monotonic())
    if self._live:
      self._show(self._live.refresh)
    elif not self._quiet and (
      time.monotonic() - self._printed_at >= self._seconds
      or step == self._total > self._printed
    ):
      self._printed, self._printed_at = step, time.monotonic()
      self._print(self._plain_line())

  def phase(self, text: str) -> None:
    """Says on the bar what keeps the steps waiting; '' when they go on."""
    self._phase = text
    if self._live:
      self._show(self._live.refresh)

  @property
  def doing(self) -> str:
    """The phase that keeps the steps waiting, such as `evaluating`."""
    return self._phase

  def message(self, text: str) -> None:
    """Prints a line above the bar."""
    if not self._quiet:
      self._print(text)

  def warn(self, text: str) -> None:
    """Prints a warning, quiet or not."""
    self._print(f'warning: {text}')

  def _print(self, text: str) -> None:
    if self._console.is_terminal:
      text = visible(text)
    self._show(lambda: self._console.print(text, markup=False))

  def _show(self, draw: Callable[[], Any]) -> None:
    with contextlib.suppress(OSError):
      draw()

  def _left(self) -> str:
    if self._first is None or self._step <= self._first[0]:
      return ''
    done, seconds = (
      self._step - self._first[0],
      time.monotonic() - self._first[1],
    )
    return clock((self._total - self._step) * seconds / done)

  def _plain_line(self) -> str:
    left = self._left()
    ending = [f'{left} left'] if left and self._step < self._total else []
    head = f'step {self._step}/{self._total}'
    return '  '.join([head, *bar_parts(self._metrics), *ending])

  def _render(self) -> rich.text.Text:
    parts = bar_parts(self._metrics)
    width = self._console.width - 1
    line = bar_line(
      self._step, self._total, self._left(), parts, width, self._phase
    )
    text = rich.text.Text(visible(line), no_wrap=True, overflow='crop')
    text.highlight_regex(f'^{_FULL}+', 'cyan')
    text.highlight_regex(f'{_EMPTY}+', 'bright_black')
    return text
