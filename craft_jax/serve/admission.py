"""Admission: how much work is accepted, and what is refused."""

import dataclasses
import math
import time
from collections.abc import Callable, Hashable
from typing import Any

from craft_jax.errors import UserError
from craft_jax.serve.errors import ApiError

# Tokens of a prompt that are read in the time in which one is generated.
READING = 16
# A request must begin in this share of the promised time, as the rate may fall
# below the one that was measured.
_SURE = 0.8
# Weight of the newest dispatch in the rate. A text whose window slides is read
# for several dispatches: a few dozen are needed for their mix.
_REMEMBERED = 0.03


def _limit(default: float, unit: str, says: str) -> Any:
  return dataclasses.field(default=default, metadata={unit: says})


@dataclasses.dataclass(frozen=True)
class Limits:
  """Limits of a server; each is a flag of `craft serve`: unit and help.

  Raises:
    UserError: one out of range.
  """

  max_wait: float = _limit(
    10.0, 'SECONDS', 'until its first character, as promised to a request (for '
    'beams and scores until their work begins); one that would wait longer is '
    'refused',
  )  # fmt: skip
  max_tokens: int = _limit(4096, 'N', 'characters of one text')
  max_texts: int = _limit(128, 'N', 'texts of one request, prompts times n')
  max_prompt: int = _limit(1 << 16, 'N', 'tokens of one prompt')
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
  deadline: float = _limit(300.0, 'SECONDS', 'for a whole request; 0 disables')
  read_deadline: float = _limit(10.0, 'SECONDS', 'until a request has arrived')
  slow_reader: float = _limit(
    20.0, 'SECONDS', 'for which a client may read nothing'
  )
  grace: float = _limit(
    20.0, 'SECONDS', 'for what runs when the server is asked to end'
  )
  requests_per_minute: int = _limit(
    0, 'N', 'of one API key, or of one address without keys; 0 disables'
  )

  def __post_init__(self) -> None:
    for field in dataclasses.fields(self):
      value, least = getattr(self, field.name), 1e-3
      if field.name in ('deadline', 'requests_per_minute'):
        least = 0
      if not (math.isfinite(value) and value >= least):
        raise UserError(f'{field.name}={value} must be above 0')


class Speed:
  """A moving average of how fast something is done.

  Attributes:
    rate: units a second; 0 is not known yet.
  """

  def __init__(self) -> None:
    self.rate = 0.0
    self._units = self._seconds = 0.0

  def measured(self, units: float, seconds: float) -> None:
    """Takes note of what was done in some seconds."""
    # Of sums: a mean of rates would forget what slow dispatches take.
    self._units += units - _REMEMBERED * self._units
    self._seconds += seconds - _REMEMBERED * self._seconds
    if self._seconds > 0:
      self.rate = self._units / self._seconds


@dataclasses.dataclass(frozen=True)
class Work:
  """What a request has the device do.

  Attributes:
    prompts: tokens of all its prompts that are read before texts.
    texts: texts to generate in slots.
    chars: characters of each text, and of each beam.
    beams: beams of all its searches, which run beside the slots.
    scored: tokens that are read beside the slots, for scores and for echoes
      with their log-probabilities, each as often as it is read.
    constraint: of its texts; equal ones share their tables.
    room: the share of all tables that the constraint fills.
  """

  prompts: float = 0
  texts: int = 0
  chars: int = 0
  beams: int = 0
  scored: float = 0
  constraint: Hashable = None
  room: float = 0.0


class Admission:
  """Admits a request if it begins in time.

  All work is counted in tokens, in the time in which one is generated with all
  slots in use; that rate is measured all the time. Texts go after everything
  that was admitted before, and begin at once while slots are free and their
  constraint has room. What runs beside the slots (searches, scores) takes
  turns: everything admitted before delays it, but nothing by more than it takes
  itself, except that a search begins when those before it are finished. Only
  used from the event loop.

  Args:
    slots: texts that are generated at once.
    max_wait: seconds until the first character, as promised.
    deadline: seconds for a whole request; 0 is no bound.

  Attributes:
    beams: how fast beams are generated.
    scores: how fast tokens are scored.
    measured: takes the tokens and seconds of a dispatch with all slots in use.
  """

  def __init__(self, slots: int, max_wait: float, deadline: float = 0):
    self._slots, self._max_wait = slots, max_wait
    self._deadline = deadline
    self._drawn, self.beams, self.scores = Speed(), Speed(), Speed()
    self.measured = self._drawn.measured
    self._claims: set[Claim] = set()

  @property
  def rate(self) -> float:
    """Tokens a second with all slots in use; 0 is not known yet."""
    return self._drawn.rate

  @property
  def left(self) -> float:
    """Tokens still to be generated in slots."""
    return sum(claim.left for claim in self._claims)

  @property
  def texts(self) -> float:
    """Slots that unfinished texts keep from others."""
    return sum(claim.texts for claim in self._claims)

  @property
  def wait(self) -> float:
    """Seconds until a text that came now would begin."""
    return self._wait_for_slot(Work())

  def drawn(self, work: Work) -> float:
    """Tokens of the work in slots."""
    if not work.texts:
      return 0.0
    return work.prompts / READING + self.slots_of(work) * work.chars

  def beside(self, work: Work) -> float:
    """Tokens of the work beside the slots."""

    def cost(speed: Speed, unknown: float) -> float:
      known = self.rate and speed.rate
      return self.rate / speed.rate if known else unknown

    beam, score = cost(self.beams, 1.0), cost(self.scores, 1 / READING)
    prompts = 0.0 if work.texts else work.prompts / READING
    return prompts + work.beams * work.chars * beam + work.scored * score

  def slots_of(self, work: Work) -> float:
    """Slots that the texts of a request keep from others.

    A constraint that fills half of the tables keeps half of the slots from
    others with a constraint, whatever is in these slots.
    """
    known = (claim.work.constraint for claim in self._claims)
    room = 0.0 if work.constraint in known else work.room
    return max(work.texts, self._slots * room)

  def _has_room(self, work: Work) -> bool:
    used = {c.work.constraint: c.work.room for c in self._claims if c.texts}
    used[work.constraint] = work.room
    return sum(used.values()) <= 1

  def _wait_for_slot(self, work: Work) -> float:
    free = self.texts < self._slots and self._has_room(work)
    return 0.0 if free or not self.rate else self.left / self.rate

  def _wait_beside(self, beside: float, searches: bool) -> float:
    if not (beside and self.rate):
      return 0.0
    ahead = sum(
      claim.beside
      if searches and claim.work.beams
      else min(claim.beside, beside)
      for claim in self._claims
    )
    return ahead / self.rate

  def enter(self, work: Work, param: str = 'max_tokens') -> 'Claim':
    """Admits a request.

    Args:
      work: all that it has the device do.
      param: the field to name if that is too much.

    Raises:
      ApiError: 429, it would wait too long; 400, it would take too long.
    """
    drawn, beside = self.drawn(work), self.beside(work)
    self.check_alone(drawn + beside, param)
    wait = self._wait_beside(beside, bool(work.beams))
    if work.texts:
      wait += self._wait_for_slot(work)
    self._check_wait(wait)
    claim = Claim(self, work)
    self._claims.add(claim)
    return claim

  def check_busy(self) -> None:
    """Refuses a text that comes now, whatever it is, before its body is read.

    Raises:
      ApiError: 429, it would wait too long.
    """
    self._check_wait(self.wait)

  def _check_wait(self, wait: float) -> None:
    if wait > (most := _SURE * self._max_wait):
      raise ApiError(
        429,
        f'the server is busy: what is ahead takes about {wait:.0f} s, too long '
        f'for the {self._max_wait:g} s that are promised; send it again later',
        code='server_busy',
        retry_after=wait - most,
      )

  def check_alone(self, cost: float, param: str) -> None:
    """Refuses what has no chance: it would only keep others waiting.

    Args:
      cost: tokens to generate; those to read count less.
      param: the field to name.

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


class Claim:
  """The work of an admitted request that is still to be done.

  Attributes:
    work: all that it asked for.
    left: tokens to generate in slots.
    texts: slots that it keeps from others.
    beside: tokens of work beside the slots.
  """

  def __init__(self, admission: Admission, work: Work):
    self._admission, self.work = admission, work
    self.left, self.beside = admission.drawn(work), admission.beside(work)
    self.texts = admission.slots_of(work) if work.texts else 0.0
    # The weight of a token and of a text: one that keeps others from several
    # slots counts as much as all of them.
    self._each = self.texts / work.texts if work.texts else 1.0
    beside = work.scored + work.beams * work.chars
    self._unit = self.beside / beside if beside else 0.0

  def wrote(self, tokens: float) -> None:
    """Takes note of tokens that were generated."""
    self.left = max(self.left - tokens * self._each, 0.0)

  def finished(self, texts: int) -> None:
    """Takes note of texts that are finished."""
    self.texts = max(self.texts - texts * self._each, 0.0)

  def advanced(self, tokens: float) -> None:
    """Takes note of tokens that were scored, or generated by all beams."""
    self.beside = max(self.beside - tokens * self._unit, 0.0)

  def release(self) -> None:
    """Drops what is left of the work; may be called twice."""
    self._admission._claims.discard(self)


class Rates:
  """A rate limit per sender: a token bucket.

  Args:
    per_minute: requests, also at once; 0 is no limit.
    now: the clock, in seconds.
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
