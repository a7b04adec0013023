"""A request: a prompt and what is asked for, from flags, JSON or Python.

Its fields are the one list of what can be asked for. Flags, the lines of a file
of requests, `:set` and keyword arguments are made from it and checked by it.
Free of jax, so that `--help` is quick.
"""

import argparse
import dataclasses
import functools
import math
from collections.abc import Mapping
from typing import TYPE_CHECKING, Any, NamedTuple, NoReturn

from craft_jax.errors import UserError, hint
from craft_jax.inference.sampling.kinds import KINDS, Kind
from craft_jax.inference.sampling.settings import SampleSettings

if TYPE_CHECKING:  # it imports NumPy
  import craft_jax.data.text.vocabulary

_USUAL = SampleSettings()
# Groups of flags.
_TEXT = 'the text'
_BEAMS = 'beams instead of drawing'
_CHOICE = 'how symbols are chosen'
_PENALTY = 'what makes a symbol less or more likely'
_RULES = 'what may be written'


class Option(NamedTuple):
  """What is known of a field of `Request`.

  Attributes:
    kind: of its values.
    metavar: what stands for a value in the help; '' for a switch.
    help: a line.
    group: of flags.
    least: an integer below it is an error.
    also: another name.
  """

  kind: Kind
  metavar: str
  help: str
  group: str = _TEXT
  least: int | None = None
  also: str = ''


def _option(
  kind: str, default: Any, metavar: str, meaning: str, group: str = _TEXT,
  least: int | None = None, also: str = '',
) -> Any:  # fmt: skip
  option = Option(KINDS[kind], metavar, meaning, group, least, also)
  return dataclasses.field(default=default, metadata={'option': option})


_usual = functools.partial(getattr, _USUAL)


@dataclasses.dataclass(frozen=True)
class Request:
  """Everything that can be asked of a text; each field says what it is.

  The settings of `SampleSettings` have the same names here.

  Raises:
    UserError: a value out of range.
  """

  prompt: str | bytes = _option('prompt', '', 'TEXT', 'text to continue')
  max_chars: int = _option(
    'integer', 400, 'N', 'characters to write, prompt excluded', least=1
  )
  num_samples: int = _option(
    'integer', 1, 'N', 'samples, written as one batch', least=1, also='n'
  )
  best_of: int = _option(
    'integer', 0, 'N', 'draw N and keep the --num-samples with the highest '
    'mean log-probability per symbol; 0 keeps all that are drawn', least=0,
  )  # fmt: skip
  temperature: float = _option(
    'number',
    _usual('temperature'),
    'X',
    '0 is greedy, 1 the model as trained',
    _CHOICE,
  )
  top_k: int = _option(
    'integer', _usual('top_k'), 'N', 'choose among the N most likely symbols; '
    '0 is all', _CHOICE,
  )  # fmt: skip
  top_p: float = _option(
    'number', _usual('top_p'), 'X', 'choose among the most likely symbols that '
    'sum to X', _CHOICE,
  )  # fmt: skip
  beams: int = _option(
    'integer', 0, 'N', 'search for the likeliest texts with N beams instead of '
    'drawing; gives the best --num-samples', _BEAMS, least=0,
  )  # fmt: skip
  length_penalty: float = _option(
    'number',
    1.0,
    'X',
    'of beams: 0 compares probabilities, 1 their mean',
    _BEAMS,
  )
  seed: int = _option('integer', 0, 'N', 'the same seed writes the same text')
  logprobs: int | None = _option(
    'integer', None, 'K', 'report of each symbol its log-probability and those '
    'of the K most likely; needs JSON', least=0,
  )  # fmt: skip
  echo: bool = _option(
    'switch', False, '', 'in JSON, the prompt is part of the text'
  )
  ignore_end: bool = _option(
    'switch', False, '', 'never end a document: always write --max-chars'
  )
  min_p: float = _option(
    'number', _usual('min_p'), 'X', 'drop symbols less likely than X times the '
    'most likely', _CHOICE,
  )  # fmt: skip
  typical_p: float = _option(
    'number', _usual('typical_p'), 'X', 'keep the symbols nearest the entropy '
    'that sum to X', _CHOICE,
  )  # fmt: skip
  repetition_penalty: float = _option(
    'number', _usual('repetition_penalty'), 'X', 'above 1 lowers symbols seen '
    'lately', _PENALTY,
  )  # fmt: skip
  presence_penalty: float = _option(
    'number', _usual('presence_penalty'), 'X', 'taken from the logits of '
    'symbols seen lately', _PENALTY,
  )  # fmt: skip
  frequency_penalty: float = _option(
    'number', _usual('frequency_penalty'), 'X', 'the same, for each time they '
    'were seen', _PENALTY,
  )  # fmt: skip
  penalty_window: int = _option(
    'integer', _usual('penalty_window'), 'N', 'how many of the last symbols '
    'are lately, the prompt included', _PENALTY,
  )  # fmt: skip
  logit_bias: Mapping[str, float] = _option(
    'biases', (), 'C=X', 'add X to the logit of the character C', _PENALTY
  )
  regex: str | None = _option(
    'text', None, 'TEXT', 'a pattern that the text matches as a whole', _RULES
  )
  json_schema: Any = _option(  # noqa: RUF009
    'schema', None, 'FILE', 'a file; the text is an instance of this schema',
    _RULES,
  )  # fmt: skip
  allowed_chars: str | None = _option(
    'text', None, 'TEXT', 'write these characters only', _RULES
  )
  forbidden_chars: str | None = _option(
    'text', None, 'TEXT', 'never write these characters', _RULES
  )
  choices: tuple[str, ...] = _option(
    'texts', (), 'TEXT', 'write one of these texts', _RULES
  )
  forbid: tuple[str, ...] = _option(
    'texts', (), 'TEXT', 'never write any of these texts', _RULES
  )
  stop: tuple[str, ...] = _option(
    'texts', (), 'TEXT', 'end before any of these texts', _RULES
  )
  min_chars: int = _option(
    'integer', _usual('min_chars'), 'N', 'characters before which the model '
    'does not end', _RULES,
  )  # fmt: skip
  any_bytes: bool = _option(
    'switch', False, '', 'let a byte model write what is not UTF-8', _RULES
  )

  def __post_init__(self) -> None:
    for field in dataclasses.fields(self):
      name, option = field.name, OPTIONS[field.name]
      value = getattr(self, name)
      if value is None and field.default is None:
        continue
      try:
        value = option.kind.check(value)
      except ValueError:
        _refuse(name, value, option)
      if option.least is not None and value < option.least:
        raise UserError(f'{name}={value} must be at least {option.least}')
      object.__setattr__(self, name, value)
    # Those of the ranges that the settings know.
    SampleSettings(**self._shared())
    if not math.isfinite(self.length_penalty):
      raise UserError(f'length_penalty={self.length_penalty} must be finite')
    if self.min_chars > self.max_chars:
      raise UserError(
        f'min_chars={self.min_chars} is over max_chars={self.max_chars}; raise '
        'one or lower the other'
      )
    self._check_numbers()

  def _check_numbers(self) -> None:
    """What `num_samples` may be beside `best_of` and `beams`."""
    if self.beams and self.best_of:
      raise UserError(
        'best_of draws texts and beams draw none; give one of the two'
      )
    if 0 < self.best_of < self.num_samples:
      raise UserError(
        f'best_of={self.best_of} has no {self.num_samples} texts to give; set '
        f'best_of={self.num_samples} or more'
      )
    if 0 < self.beams < self.num_samples:
      raise UserError(
        f'beams={self.beams} find no {self.num_samples} texts; set '
        f'beams={self.num_samples} or more'
      )
    if self.beams and self.stop:
      raise UserError('beams look for no stop texts; leave one of the two out')
    if self.beams and self.logprobs is not None:
      raise UserError(
        'beams report no logprobs of single symbols; leave one of the two out'
      )

  @property
  def num_drawn(self) -> int:
    """Texts to draw."""
    return self.best_of or self.num_samples

  def changed(self, changes: Mapping[str, Any]) -> 'Request':
    """With other values, by the names of fields.

    Raises:
      UserError: an unknown name, or a value of another kind or out of range.
    """
    return dataclasses.replace(
      self, **{field_name(name): value for name, value in changes.items()}
    )

  def settings(
    self,
    vocabulary: 'craft_jax.data.text.vocabulary.Vocabulary',
    documents: bool,
  ) -> SampleSettings:
    """For the sampler.

    Args:
      vocabulary: of the model.
      documents: whether it was trained on several; without them it has never
        seen an end.

    Raises:
      UserError: what this vocabulary cannot write.
    """
    return SampleSettings(
      **self._shared()
      | {
        'end': documents and not self.ignore_end,
        'logit_bias': {
          _only_id(char, vocabulary): bias
          for char, bias in self.logit_bias.items()
        },
        'constraint': _constraint(self, vocabulary),
        'utf8': not self.any_bytes,
      }
    )

  def _shared(self) -> dict[str, Any]:
    """The settings that need no vocabulary."""
    names = {field.name for field in dataclasses.fields(SampleSettings)}
    shared = names & OPTIONS.keys() - {'logit_bias'}
    return {name: getattr(self, name) for name in shared}


OPTIONS: dict[str, Option] = {
  field.name: field.metadata['option'] for field in dataclasses.fields(Request)
}
_NAMES = {option.also: name for name, option in OPTIONS.items() if option.also}
_NAMES |= {name: name for name in OPTIONS}


def field_name(name: str) -> str:
  """The field of a name, which may have hyphens.

  Raises:
    UserError: there is none.
  """
  known = name.replace('-', '_')
  if known not in _NAMES:
    raise UserError(f'there is no setting {name!r}{hint(known, _NAMES)}')
  return _NAMES[known]


def parse_value(name: str, text: str) -> Any:
  """The value of a field from text, as after `:set`.

  Raises:
    UserError: it is of another kind.
  """
  option = OPTIONS[name]
  try:
    return (option.kind.read or option.kind.parse)(text)
  except ValueError:
    _refuse(name, text, option)


def _refuse(name: str, value: Any, option: Option) -> NoReturn:
  raise UserError(f'{name}={value!r} must be {option.kind.says}')


def add_flags(parser: argparse.ArgumentParser) -> None:
  """A flag for each field but the prompt."""
  groups: dict[str, Any] = {}
  for field in dataclasses.fields(Request):
    name, option = field.name, OPTIONS[field.name]
    if name == 'prompt':
      continue
    if option.group not in groups:
      groups[option.group] = parser.add_argument_group(option.group)
    flag = f'--{name.replace("_", "-")}'
    add = groups[option.group].add_argument
    if not option.metavar:
      add(flag, action='store_true', help=option.help)
      continue
    help, more = option.help, {}
    if option.kind.many:
      # Each is an argument of its own, so it may have spaces and commas.
      more = {'nargs': '+', 'action': 'extend', 'default': []}
    elif isinstance(field.default, int | float):
      help += f' (default: {field.default:g})'
    add(
      flag,
      type=option.kind.parse,
      metavar=option.metavar,
      help=help,
      **{'default': field.default} | more,
    )


def from_flags(args: argparse.Namespace, prompt: str | bytes) -> Request:
  """The request of the flags of `add_flags`.

  Raises:
    UserError: a value of another kind or out of range.
  """
  given = {name: value for name, value in vars(args).items() if name in OPTIONS}
  return Request(**given | {'prompt': prompt})


def _only_id(
  char: str, vocabulary: 'craft_jax.data.text.vocabulary.Vocabulary'
) -> int:
  """The id of a character of `logit_bias`."""
  ids = vocabulary.encode(char)
  if len(ids) != 1:
    raise UserError(
      f'logit_bias: {char!r} is {len(ids)} symbols of this model; give a '
      'character that is one'
    )
  return int(ids[0])


def _constraint(
  request: Request, vocabulary: 'craft_jax.data.text.vocabulary.Vocabulary'
) -> Any:
  """Everything that is asked of the text at once; None if nothing is."""
  from craft_jax import constrain

  found = []
  if request.regex is not None:
    found.append(constrain.compile_regex(request.regex, vocabulary))
  if request.json_schema is not None:
    found.append(constrain.compile_schema(request.json_schema, vocabulary))
  if request.choices:
    found.append(constrain.compile_choices(request.choices, vocabulary))
  if request.allowed_chars is not None:
    found.append(constrain.compile_allowed(request.allowed_chars, vocabulary))
  if request.forbidden_chars or request.forbid:
    texts = [*(request.forbidden_chars or ''), *request.forbid]
    found.append(constrain.compile_without(texts, vocabulary))
    if vocabulary.kind == 'byte' and not request.any_bytes:
      found.append(constrain.valid_utf8(vocabulary))
  if len(found) < 2:
    return found[0] if found else None
  return constrain.intersect(*found)
