"""Schemas of the requests: bodies, each field checked.

Nothing is accepted and ignored: an unknown field is an error, and so is a value
that has no effect here. A body is checked up to its first mistake: pydantic
would describe each of a million.
"""

import codecs
import dataclasses
import functools
import json
import re
from collections.abc import Callable
from typing import Annotated, Any, Literal, TypeVar

import pydantic_core
from pydantic import (
  AfterValidator,
  BaseModel,
  ConfigDict,
  Field,
  GetJsonSchemaHandler,
  PrivateAttr,
  ValidationError,
  WithJsonSchema,
  WrapValidator,
  create_model,
  model_validator,
)
from pydantic_core import CoreSchema

from craft_jax.inference.sampling import options
from craft_jax.inference.sampling.options import Option
from craft_jax.runtime import strict_json
from craft_jax.serve.errors import ApiError

T = TypeVar('T')
NO_OBJECT = (
  'the body must be a JSON object, and say so by its content type, '
  'application/json'
)
_SAYS = {
  'prompt': 'must be a text, a list of texts, ids or lists of ids',
  'suffix': 'is not supported: texts go on only; leave it out',
}
_CALLS = frozenset({
  'tools', 'tool_choice', 'parallel_tool_calls', 'functions', 'function_call',
})  # fmt: skip
_SURROGATE = re.compile('[\ud800-\udfff]')
_NULL = {'type': 'null'}
_MAY_OVERFLOW = re.compile(rb'[0-9.][eE][+]?[0-9]{2}|[0-9]{290}')
Each = Annotated[list[T], Field(fail_fast=True)]
_MOST_PROMPTS = 1 << 14  # of which `--max-texts` takes some
Id = Annotated[int, Field(ge=0, lt=2**31)]


def _each(given: Any, check: Callable[[Any], Any]) -> Any:
  """Checks items one by one: `fail_fast` exists for lists only."""
  if not isinstance(given, dict):
    return check(given)
  return {k: v for key in given for k, v in check({key: given[key]}).items()}


@functools.cache
def _names(kind: type[BaseModel]) -> frozenset[str]:
  """The fields of a schema by the names that are sent."""
  return frozenset(f.alias or n for n, f in kind.model_fields.items())


def _check_off(value: bool) -> bool:
  if value:
    raise ValueError('must be false')
  return value


# Not `Literal[False]`, which takes 0.
Off = Annotated[
  bool,
  AfterValidator(_check_off),
  WithJsonSchema({'const': False, 'type': 'boolean'}),
]


class Body(BaseModel):
  """An object in a request; a number is no bool and no text.

  Null leaves a field out, known or not: clients send all the fields of OpenAI's
  API that way.
  """

  model_config = ConfigDict(extra='forbid', strict=True, allow_inf_nan=False)

  @model_validator(mode='before')
  @classmethod
  def _check_names(cls, given: Any) -> Any:
    """Leaves nulls out, and refuses the first unknown field."""
    if not isinstance(given, dict):
      return given
    given = {name: value for name, value in given.items() if value is not None}
    known = _names(cls)
    for name in given:
      if name not in known:
        one = pydantic_core.InitErrorDetails(
          type='extra_forbidden', loc=(name,), input=given[name]
        )
        raise ValidationError.from_exception_data(cls.__name__, [one])
    return given

  @classmethod
  def __get_pydantic_json_schema__(
    cls, core_schema: CoreSchema, handler: GetJsonSchemaHandler
  ) -> dict[str, Any]:
    """Adds null to the types of whatever may be left out."""
    found = handler(core_schema)
    schema = handler.resolve_ref_schema(found)
    for name, one in schema['properties'].items():
      if name in schema.get('required', ()) or _NULL in one.get('anyOf', ()):
        continue
      about = {
        key: one.pop(key)
        for key in ('default', 'description', 'title')
        if key in one
      }
      kinds = one.get('anyOf', [one])
      schema['properties'][name] = {'anyOf': [*kinds, _NULL]} | about
    schema['additionalProperties'] = _NULL
    return found


class RequestBody(Body):
  """The whole body of a request."""

  model: str | None = Field(
    None, description='the name of the model, if any (/v1/models)'
  )
  _size: int = PrivateAttr(0)

  @property
  def size(self) -> int:
    """Bytes that were sent, to which any work on it is in proportion."""
    return self._size


B = TypeVar('B', bound=RequestBody)


def read(kind: type[B], data: bytes) -> B:
  """Parses and checks a body as it was sent.

  Raises:
    ApiError: 400, it is no JSON, not Unicode, or a field is wrong.
  """
  given = _parse(data)
  try:
    found = kind.model_validate(given)
  except ValidationError as e:
    raise _first(e, given) from e
  found._size = len(data)
  return found


def _parse(data: bytes) -> Any:
  """The value of JSON.

  Raises:
    ApiError: 400.
  """
  data = data.removeprefix(codecs.BOM_UTF8)
  try:
    # It makes Infinity of 1e400; only what may be that large is read twice.
    if _MAY_OVERFLOW.search(data):
      strict_json.loads(data)
    return pydantic_core.from_json(data, allow_inf_nan=False)
  except (ValueError, RecursionError) as e:
    error = e
  # The standard library's parser lets text pass that UTF-8 cannot encode.
  try:
    value = json.loads(data.decode('utf-8', 'surrogateescape'))
  except (ValueError, RecursionError):
    value = None
  if (path := _without_unicode(value)) is not None:
    path = [part.encode('utf-8', 'backslashreplace').decode() for part in path]
    where = '.'.join(path) or 'the body'
    raise ApiError(
      400,
      f'{where}: holds half a surrogate pair, or bytes that are not UTF-8',
      param=path[0] if path else None,
    )
  raise ApiError(400, f'the body is not JSON: {error}') from error


def _without_unicode(value: Any) -> list[str] | None:
  """The path of a text or key that UTF-8 cannot encode; None without any."""
  todo: list[tuple[list[str], Any]] = [([], value)]
  while todo:
    path, value = todo.pop()
    pairs: Any = ()
    if isinstance(value, dict):
      pairs = [(key, each) for key in value for each in (value[key], key)]
    elif isinstance(value, list):
      pairs = enumerate(value)
    elif isinstance(value, str) and _SURROGATE.search(value):
      return path
    todo += [
      ([*path, str(key)], inner)
      for key, inner in pairs
      if isinstance(inner, str | dict | list)
    ]
  return None


def _first(error: ValidationError, body: Any) -> ApiError:
  """The first mistake, by the path of its field.

  A value that may be of several types has a mistake for each of them; the
  deepest one is reported.
  """
  found = [(_path(one, body), one) for one in error.errors(include_url=False)]
  where = found[0][0]
  where, one = max(
    (pair for pair in found if pair[0][: len(where)] == where),
    key=lambda pair: len(pair[0]),
  )
  if not where:
    return ApiError(400, NO_OBJECT)
  name, path = where[0], '.'.join(where)
  says = f'{path}: {one["msg"].replace("Input", "it")}'
  if one['type'] == 'extra_forbidden':
    says = f'{path} is not a field of this request'
    if name in _CALLS:
      says += ': no tools are called; for JSON there is response_format'
  elif one['type'] == 'missing':
    says = f'{path}: it is needed'
  elif name in _SAYS:
    says = f'{name}: {_SAYS[name]}'
  return ApiError(400, says, param=name)


def _path(error: Any, body: Any) -> list[str]:
  """The names of fields and numbers of items that lead to a mistake.

  pydantic's own path also names the type that it tried, where there are
  several.
  """
  found, is_missing = [], error['type'] == 'missing'
  for i, part in enumerate(error['loc']):
    if body is error['input'] and not is_missing:
      break  # what follows is a type, though a key may have its name
    if isinstance(body, dict):
      inside = part in body
    else:
      inside = isinstance(body, list) and isinstance(part, int)
    if inside:
      body = body[part]
    if inside or (is_missing and i == len(error['loc']) - 1):
      found.append(str(part))
  return found


class StreamOptions(Body):
  """How a stream is sent."""

  include_usage: bool = Field(
    False, description='a last event with the usage, null in those before'
  )
  include_obfuscation: Off = Field(False, description='events are not padded')


class JsonSchema(Body):
  """A schema, as OpenAI's clients send it."""

  name: str = Field('schema', description='any; has no effect on the text')
  description: str | None = Field(
    None, description='any; has no effect on the text'
  )
  schema_: dict[str, Any] | bool = Field(
    alias='schema', description='what the text is an instance of'
  )
  strict: bool = Field(
    True, description='any; a schema is always kept to the letter'
  )


class ResponseFormat(Body):
  """The form of the text."""

  type: Literal['text', 'json_object', 'json_schema'] = 'text'
  json_schema: JsonSchema | None = None


class Constrained(RequestBody):
  """What a text has to match."""

  allowed_chars: str | None = Field(
    None, description='write these characters only'
  )
  regex: str | None = Field(
    None, description='a pattern that the text matches as a whole'
  )
  response_format: ResponseFormat | None = Field(
    None,
    description='any JSON object, or a schema that the text is an instance of',
  )


def _field(declared: Option, default: Any) -> Any:
  """The field of the API for an option of the sampler."""
  low = 'gt' if declared.positive else 'ge'
  found = {'default': default, 'low': declared.low, 'high': declared.high}
  found |= declared.api or {}
  return Field(
    found['default'],
    le=found['high'],
    description=declared.help,
    **{low: found['low']},
  )


_Options = create_model(
  '_Options',
  __base__=Constrained,
  **{
    field.name: (type(field.default), _field(declared, field.default))
    for field in dataclasses.fields(options.Sampling)
    if (declared := options.OPTIONS[field.name]).api is not None
  },
)  # type: ignore[call-overload]


class Sampling(_Options):  # type: ignore[valid-type, misc]
  """How text is generated: the options of the sampler, and more."""

  n: int = Field(1, ge=1, lt=2**31, description='texts per prompt')
  stream: bool = Field(False, description='send text as it is written')
  stream_options: StreamOptions | None = Field(
    None, description='only with stream'
  )
  seed: int | None = Field(
    None,
    ge=-(2**63),
    lt=2**63,
    description='the same seed writes the same text; taken modulo 2^32',
  )
  logit_bias: (
    Annotated[
      dict[str, Annotated[float, Field(ge=-100, le=100)]],
      WrapValidator(_each),
    ]
    | None
  ) = Field(None, description='by the id of a token, added to its logit')
  user: str | None = Field(
    None, description='any mark of the sender; has no effect on the text'
  )
  beam_width: int = Field(
    0, ge=0, le=64, description='beam search with N beams; 0 disables'
  )
  ignore_eos: bool = Field(
    False, description='never end a document: always write max_tokens'
  )


class CompletionBody(Sampling):
  """A request for completions."""

  prompt: (
    str
    | Each[str]
    | Each[Id]
    | Annotated[Each[Each[Id]], Field(max_length=_MOST_PROMPTS)]
  ) = Field(
    '', description='text to continue, or several; or the ids of tokens'
  )
  max_tokens: int = Field(
    16, ge=0, lt=2**31, description='characters to write; 0 needs echo'
  )
  best_of: int | None = Field(
    None,
    ge=1,
    lt=2**31,
    description='draw N texts and return the n with the highest mean '
    'log-probability; not with stream if over n',
  )
  stop: str | Each[str] | None = Field(
    None, description='up to 4 texts before which a text ends'
  )
  logprobs: int | None = Field(
    None,
    ge=0,
    le=5,
    description='log-probabilities of each token and of the K most likely; 0 '
    'reports the generated tokens only',
  )
  echo: bool = Field(
    False, description='begin with the prompt, and with its logprobs'
  )
  suffix: None = Field(None, description='not supported: texts go on only')


class ValidateBody(Constrained):
  """A constraint to be tried without generating anything."""

  max_tokens: int | None = Field(
    None, ge=1, lt=2**31, description='characters in which it must be done'
  )


class ScoreBody(RequestBody):
  """A request for the likelihood of texts."""

  text: str | Each[str] = Field(description='a text, or several')
  stride: int | None = Field(
    None,
    ge=0,
    lt=2**31,
    description='tokens by which windows advance; 0 is the context, and half '
    'of it if not given',
  )
  per_char: bool = Field(False, description='the nats of each character too')


class TokenizeBody(RequestBody):
  """A text to tokenize."""

  prompt: str = Field(description='the text')
  add_special_tokens: Off = Field(False, description='there are none to add')


class DetokenizeBody(RequestBody):
  """Tokens to decode."""

  tokens: Each[Id] = Field(description='their ids')
