"""How much is taken on, and what is refused."""

import dataclasses
import math
import time
from collections.abc import Callable
from typing import Any

from craft_jax.errors import UserError
from craft_jax.serve.errors import ApiError

# Symbols of a prompt that are read in the time in which one is written.
READING = 16
# Of the promise: what is taken must begin in this share of it, as the rate that
# is to come is not the one that was measured.
_SURE = 0.8
# Weight of the newest dispatch in the rate. A text whose window slides is read
# for several dispatches: a few dozen are needed for their mix.
_REMEMBERED = 0.03


def _limit(default: float, unit: str, says: str) -> Any:
  return dataclasses.field(default=default, metadata={unit: says})


@dataclasses.dataclass(frozen=True)
class Limits:
  """Of one server; each is a flag of `craft serve`, with this unit and help.

  Raises:
    UserError: one out of range.
  """

  max_wait: float = _limit(
    10.0, 'SECONDS', 'until its first character, as promised to a request; one '
    'that would wait longer is refused',
  )  # fmt: skip
  max_tokens: int = _limit(4096, 'N', 'characters of one text')
  max_texts: int = _limit(128, 'N', 'texts of one request, prompts times n')
  max_prompt: int = _limit(1 << 16, 'N', 'symbols of one prompt')
  max_body: int = _limit(1 << 20, 'BYTES', 'of one request')
  max_headers: int = _limit(1 << 14, 'BYTES', 'of its headers')
  max_connections: int = _limit(1024, 'N', 'open at once')
  constraint_memory: int = _limit(
    1 << 27, 'BYTES', 'of the tables in which the constraints of all requests '
    'lie on the device; a larger constraint is refused, one that has no room '
    'now waits for it',
  )  # fmt: skip
  max_compiling: int = _limit(
    16, 'N', 'constraints that are compiled or wait for it'
  )
  max_searches: int = _limit(
    16, 'N', 'beam searches and scores that run or wait'
  )
  deadline: float = _limit(
    300.0, 'SECONDS', 'for a whole request; 0 is as long as it takes'
  )
  read_deadline: float = _limit(10.0, 'SECONDS', 'until a request has arrived')
  slow_reader: float = _limit(
    20.0, 'SECONDS', 'for which a client may take nothing'
  )
  grace: float = _limit(
    20.0, 'SECONDS', 'for what runs when the server is asked to end'
  )
  requests_per_minute: int = _limit(
    0, 'N', 'of one key, without keys of one address; 0 is any number'
  )

  def __post_init__(self) -> None:
    for field in dataclasses.fields(self):
      value, least = getattr(self, field.name), 1e-3
      if field.name in ('deadline', 'requests_per_minute'):
        least = 0
      if not (math.isfinite(value) and value >= least):
        raise UserError(f'{field.name}={value} must be above 0')


class Admission:
  """Takes a request if its first character comes in time.

  Whoever is taken goes after all the work that was taken before, and that is
  done at a rate that is measured all the time. While slots are free nobody
  waits. Only used from the event loop.

  Args:
    slots: texts that are written at once.
    max_wait: see `Limits`.
    deadline: likewise.

  Attributes:
    rate: symbols a second with all slots in use; 0 is not known yet.
    left: symbols still to be written.
    texts: that are not finished.
  """

  def __init__(self, slots: int, max_wait: float, deadline: float = 0):
    self._slots, self._max_wait = slots, max_wait
    self._deadline = deadline
    self.rate = 0.0
    self._symbols = self._seconds = 0.0  # of late
    self.left = 0.0
    self.texts = 0

  @property
  def wait(self) -> float:
    """Seconds until a request that came now would begin."""
    if self.texts < self._slots or not self.rate:
      return 0.0
    return self.left / self.rate

  def enter(
    self, prompts: int, texts: int, chars: int, beams: int = 0
  ) -> 'Claim':
    """Takes a request.

    Args:
      prompts: symbols of its prompts together, as far as they are read.
      texts: to write.
      chars: of each.
      beams: of all its searches, which run beside the slots.

    Raises:
      ApiError: 429, it would wait too long; 400, it would take too long.
    """
    cost = prompts / READING + texts * chars
    self.check_alone(cost + beams * chars, 'max_tokens')
    self.check_busy()
    self.left += cost
    self.texts += texts
    return Claim(self, cost, texts)

  def check_busy(self) -> None:
    """Refuses whoever comes now, whatever it is; costs next to nothing.

    Raises:
      ApiError: 429, it would wait too long.
    """
    if (wait := self.wait) > (most := _SURE * self._max_wait):
      raise ApiError(
        429,
        f'the server is busy: {self.texts} texts are ahead, which take about '
        f'{wait:.0f} s, too many for the {self._max_wait:g} s that are '
        'promised; send it again later',
        code='server_busy',
        retry_after=wait - most,
      )

  def check_alone(self, cost: float, param: str) -> None:
    """Refuses what has no chance: it would only keep others waiting.

    Args:
      cost: symbols to write; those to read count less.
      param: the field to blame.

    Raises:
      ApiError: 400, it would take longer than the deadline.
    """
    if not (self._deadline and self.rate):
      return
    if (seconds := cost / self.rate) > self._deadline:
      raise ApiError(
        400,
        f'this request alone would take about {seconds:.0f} s, more than the '
        f'{self._deadline:g} s of this server; ask for fewer or shorter texts',
        param=param,
        code='too_long',
      )

  def measured(self, symbols: int, seconds: float) -> None:
    """Takes note of a dispatch in which all slots were in use."""
    # Of sums: a mean of rates would forget what slow dispatches take.
    self._symbols += symbols - _REMEMBERED * self._symbols
    self._seconds += seconds - _REMEMBERED * self._seconds
    if self._seconds > 0:
      self.rate = self._symbols / self._seconds


class Claim:
  """What a request that was taken has yet to be given."""

  def __init__(self, admission: Admission, cost: float, texts: int):
    self._admission, self._left, self._texts = admission, cost, texts

  def wrote(self, symbols: int) -> None:
    """So many symbols are done."""
    symbols_left = max(self._left - symbols, 0.0)
    self._admission.left -= self._left - symbols_left
    self._left = symbols_left

  def finished(self, texts: int) -> None:
    """So many texts are finished."""
    texts = min(texts, self._texts)
    self._texts -= texts
    self._admission.texts -= texts

  def release(self) -> None:
    """Nothing more is to be done; may be called twice."""
    self.wrote(math.ceil(self._left))
    self.finished(self._texts)


class Rates:
  """Requests a minute of each sender: a bucket that fills steadily.

  Args:
    per_minute: and burst.
    now: the clock.
  """

  _MOST_SENDERS = 10_000

  def __init__(
    self, per_minute: int, now: Callable[[], float] = time.monotonic
  ):
    self._per_minute, self._now = per_minute, now
    self._full_at: dict[str, float] = {}  # when the bucket is full again

  def take(self, sender: str) -> None:
    """Counts a request.

    Raises:
      ApiError: 429, too many of them.
    """
    if not self._per_minute:
      return
    now, each = self._now(), 60 / self._per_minute
    full_at = max(self._full_at.get(sender, now), now) + each
    if full_at - now > 60 + each / 2:  # sums are not exact
      raise ApiError(
        429,
        f'more than {self._per_minute} requests a minute; send fewer',
        code='rate_limit_exceeded',
        retry_after=full_at - now - 60,
      )
    if len(self._full_at) >= self._MOST_SENDERS:
      self._full_at = {s: t for s, t in self._full_at.items() if t > now}
    self._full_at[sender] = full_at
