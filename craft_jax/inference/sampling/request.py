"""A request: a prompt and what is asked for, from flags, JSON or Python.

Its fields are the one list of what can be asked for. Flags, the lines of a file
of requests, `:set` and keyword arguments are made from it and checked by it.
Free of jax, so that `--help` is quick.
"""

import argparse
import dataclasses
import math
from collections.abc import Container, Mapping
from typing import TYPE_CHECKING, Any, NoReturn

from craft_jax.errors import UserError, hint
from craft_jax.inference.sampling import options
from craft_jax.inference.sampling.options import (
  BEAMS,
  PENALTY,
  RULES,
  Option,
  Sampling,
  option,
)
from craft_jax.inference.sampling.settings import SampleSettings

if TYPE_CHECKING:  # it imports NumPy
  import craft_jax.data.text.vocabulary


@dataclasses.dataclass(frozen=True)
class Request(Sampling):
  """Everything that can be asked of a text; each field says what it is.

  Raises:
    UserError: a value out of bounds.
  """

  prompt: str | bytes = option('prompt', '', 'TEXT', 'text to continue')
  max_chars: int = option(
    'integer', 400, 'N', 'characters to write, prompt excluded', low=1
  )
  num_samples: int = option(
    'integer', 1, 'N', 'samples, written as one batch', low=1, also='n'
  )
  best_of: int = option(
    'integer', 0, 'N', 'draw N and keep the --num-samples with the highest '
    'mean log-probability per token; 0 keeps all that are drawn', low=0,
  )  # fmt: skip
  beams: int = option(
    'integer', 0, 'N', 'beam search with N beams; gives the best --num-samples',
    BEAMS, low=0,
  )  # fmt: skip
  length_penalty: float = option(
    'number', 1.0, 'X', 'of beams: 0 compares probabilities, 1 their mean',
    BEAMS,
  )  # fmt: skip
  seed: int = option('integer', 0, 'N', 'the same seed writes the same text')
  logprobs: int | None = option(
    'integer', None, 'K', 'report the log-probability of each token and of the '
    'K most likely; needs JSON', low=0,
  )  # fmt: skip
  echo: bool = option(
    'switch', False, '', 'in JSON, the prompt is part of the text'
  )
  ignore_end: bool = option(
    'switch', False, '', 'never end a document: always write --max-chars'
  )
  logit_bias: Mapping[str, float] = option(
    'biases', (), 'C=X', 'add X to the logit of the character C', PENALTY
  )
  regex: str | None = option(
    'text', None, 'TEXT', 'a pattern that the text matches as a whole', RULES
  )
  json_schema: Any = option(  # noqa: RUF009
    'schema', None, 'FILE', 'a file; the text is an instance of this schema',
    RULES,
  )  # fmt: skip
  allowed_chars: str | None = option(
    'text', None, 'TEXT', 'write these characters only', RULES
  )
  forbidden_chars: str | None = option(
    'text', None, 'TEXT', 'never write these characters', RULES
  )
  choices: tuple[str, ...] = option(
    'texts', (), 'TEXT', 'write one of these texts', RULES
  )
  forbid: tuple[str, ...] = option(
    'texts', (), 'TEXT', 'never write any of these texts', RULES
  )
  any_bytes: bool = option(
    'switch', False, '', 'let a byte model write what is not UTF-8', RULES
  )

  def __post_init__(self) -> None:
    for field in dataclasses.fields(self):
      name, declared = field.name, OPTIONS[field.name]
      value = getattr(self, name)
      if value is None and field.default is None:
        continue
      try:
        value = declared.kind.check(value)
      except ValueError:
        _refuse(name, value, declared)
      if declared.low is not None:
        declared.check_bounds(name, value)
      object.__setattr__(self, name, value)
    super().__post_init__()
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
        'beams report no logprobs of single tokens; leave one of the two out'
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
      **{name: getattr(self, name) for name in options.OPTIONS},
      end=documents and not self.ignore_end,
      logit_bias={
        _only_id(char, vocabulary): bias
        for char, bias in self.logit_bias.items()
      },
      constraint=_constraint(self, vocabulary),
      utf8=not self.any_bytes,
    )


OPTIONS = options.options_of(Request)
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
  declared = OPTIONS[name]
  try:
    return (declared.kind.read or declared.kind.parse)(text)
  except ValueError:
    _refuse(name, text, declared)


def _refuse(name: str, value: Any, declared: Option) -> NoReturn:
  raise UserError(f'{name}={value!r} must be {declared.kind.says}')


def add_flags(
  parser: argparse.ArgumentParser,
  leave_out: Container[str] = ('prompt',),
  defaults: Mapping[str, tuple[Any, str]] | None = None,
) -> None:
  """A flag for each field.

  Args:
    parser: of the command.
    leave_out: fields without a flag.
    defaults: of fields whose default is another one here, and what the help
      says of it.
  """
  groups = {name: parser.add_argument_group(name) for name in options.GROUPS}
  for field in dataclasses.fields(Request):
    name, declared = field.name, OPTIONS[field.name]
    if name in leave_out:
      continue
    flag = f'--{name.replace("_", "-")}'
    add = groups[declared.group].add_argument
    if not declared.metavar:
      add(flag, action='store_true', help=declared.help)
      continue
    help, default = declared.help, field.default
    if defaults and name in defaults:
      default, says = defaults[name]
      help += f' (default: {says})'
    more: dict[str, Any] = {'default': default}
    if declared.kind.many:
      # Each is an argument of its own, so it may have spaces and commas.
      more = {'nargs': '+', 'action': 'extend', 'default': []}
    elif isinstance(default, int | float) and '(default' not in help:
      help += f' (default: {default:g})'
    add(
      flag,
      type=declared.kind.parse,
      metavar=declared.metavar,
      help=help,
      **more,
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
      f'logit_bias: {char!r} is {len(ids)} tokens of this model; give a '
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
