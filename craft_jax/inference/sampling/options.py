"""What a text may be asked for: the one declaration of each option.

A flag of `craft sample`, a field of the API, an array of the slots, the check
of its bounds and its line in the documentation come from it. Free of JAX,
so that `--help` is quick.
"""

import dataclasses
import math
from collections.abc import Mapping
from typing import Any, NamedTuple

from craft_jax.errors import UserError
from craft_jax.inference.sampling.kinds import KINDS, Kind

_MOST = 2**31 - 1  # of an int32
_MOST_PENALTY = 1e4

# Headings of flags, in the order of the help.
TEXT = 'the text'
CHOICE = 'how tokens are chosen'
BEAMS = 'beam search instead of sampling'
PENALTY = 'what makes a token less or more likely'
RULES = 'what may be written'
GROUPS = (TEXT, CHOICE, BEAMS, PENALTY, RULES)


class Option(NamedTuple):
  """What is known of an option.

  Attributes:
    kind: of its values.
    metavar: what stands for a value in the help; '' for a switch.
    help: a line.
    group: its heading in the help.
    low: the least value, which is taken.
    high: the greatest value, which is taken.
    positive: `low` itself is refused.
    note: what a value at a bound does, for errors.
    also: another name.
    api: the field of the API: what differs there (`default`, `low`, `high`), or
      None if it has none.
    slot: dtype of its array in the slots; '' has none.
  """

  kind: Kind
  metavar: str
  help: str
  group: str = TEXT
  low: float | None = None
  high: float | None = None
  positive: bool = False
  note: str = ''
  also: str = ''
  api: Mapping[str, float] | None = None
  slot: str = ''

  def check_bounds(self, name: str, value: float) -> None:
    """Refuses a number out of bounds.

    Raises:
      UserError: it is, or is no number at all.
    """
    low = -math.inf if self.low is None else self.low
    high = math.inf if self.high is None else self.high
    above = value > low or (value == low and not self.positive)
    if above and value <= high and math.isfinite(value):
      return
    if self.low is not None and self.high is not None:
      bounds = f'from {_shown(self.low)} to {_shown(self.high)}'
    else:
      is_float = self.kind is KINDS['number']
      parts = ['finite'] if is_float else []
      if self.low is not None:
        relation = 'above' if self.positive else 'at least'
        parts.append(f'{relation} {_shown(self.low)}')
      bounds = ' and '.join(parts)
    note = f' ({self.note})' if self.note else ''
    raise UserError(f'{name}={value} must be {bounds}{note}')


def _shown(bound: float) -> str:
  return f'{bound:.0f}' if bound == int(bound) else f'{bound:g}'


def option(
  kind: str, default: Any, metavar: str, meaning: str, group: str = TEXT,
  **more: Any,
) -> Any:  # fmt: skip
  """A field of a dataclass that is an option; see `Option`."""
  declared = Option(KINDS[kind], metavar, meaning, group, **more)
  return dataclasses.field(default=default, metadata={'option': declared})


def options_of(kind: type) -> dict[str, Option]:
  """The options among the fields of a dataclass, by name."""
  return {
    field.name: field.metadata['option']
    for field in dataclasses.fields(kind)
    if 'option' in field.metadata
  }


@dataclasses.dataclass(frozen=True)
class Sampling:
  """How the next token is chosen; docs/sampling.md has the order of the steps.

  Raises:
    UserError: a value out of bounds.
  """

  temperature: float = option(
    'number', 0.8, 'X', 'divides the logits; 0 is greedy, 1 the model as '
    'trained', CHOICE, low=0, note='0 is greedy', slot='float32',
    api={'default': 1.0, 'high': 100},
  )  # fmt: skip
  top_k: int = option(
    'integer', 0, 'N', 'top-k: sample from the N most likely tokens; 0 '
    'disables', CHOICE, low=0, high=_MOST, note='0 keeps all', api={},
    slot='int32',
  )  # fmt: skip
  top_p: float = option(
    'number', 1.0, 'X', 'nucleus sampling: keep the most likely tokens whose '
    'probabilities sum to X; 1 disables', CHOICE, low=0, high=1,
    note='1 keeps all', api={}, slot='float32',
  )  # fmt: skip
  min_p: float = option(
    'number', 0.0, 'X', 'min-p: drop tokens less likely than X times the most '
    'likely; 0 disables', CHOICE, low=0, high=1, note='0 keeps all', api={},
    slot='float32',
  )  # fmt: skip
  typical_p: float = option(
    'number', 1.0, 'X', 'locally typical sampling: keep the tokens nearest the '
    'entropy whose probabilities sum to X; 1 disables', CHOICE, low=0, high=1,
    note='1 keeps all', api={}, slot='float32',
  )  # fmt: skip
  repetition_penalty: float = option(
    'number', 1.0, 'X', 'divides the logits above 0 of recent tokens and '
    'multiplies those below; 1 disables', PENALTY, low=0, positive=True,
    note='1 is none', api={'high': 100}, slot='float32',
  )  # fmt: skip
  presence_penalty: float = option(
    'number', 0.0, 'X', 'subtracted from the logits of recent tokens',
    PENALTY, low=-_MOST_PENALTY, high=_MOST_PENALTY,
    api={'low': -2, 'high': 2}, slot='float32',
  )  # fmt: skip
  frequency_penalty: float = option(
    'number', 0.0, 'X', 'subtracted from the logits of recent tokens for each '
    'time they occurred', PENALTY, low=-_MOST_PENALTY, high=_MOST_PENALTY,
    api={'low': -2, 'high': 2}, slot='float32',
  )  # fmt: skip
  penalty_window: int = option(
    'integer', 64, 'N', 'number of last tokens that count as recent, the '
    'prompt included', PENALTY, low=1, high=_MOST, slot='int32',
  )  # fmt: skip
  min_chars: int = option(
    'integer', 0, 'N', 'characters before which the model does not end',
    RULES, low=0, high=_MOST, slot='int32',
  )  # fmt: skip
  stop: tuple[str, ...] = option(
    'texts', (), 'TEXT', 'end before any of these texts', RULES
  )

  def __post_init__(self) -> None:
    for name, declared in options_of(Sampling).items():
      if declared.low is not None:
        declared.check_bounds(name, getattr(self, name))
    if isinstance(self.stop, str) or not all(self.stop):
      raise UserError('stop must be a list of texts, none of them empty')


OPTIONS = options_of(Sampling)
# Those that are an array of the slots, with its dtype.
SLOTS = {name: one.slot for name, one in OPTIONS.items() if one.slot}
