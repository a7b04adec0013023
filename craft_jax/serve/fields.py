"""What may be asked for: the bodies of requests, each field checked.

Nothing is accepted and ignored: an unknown field is an error, and so is a value
that has no effect here.
"""

import dataclasses
import random
import re
from collections.abc import Sequence
from typing import Annotated, Any, Literal, NoReturn

import numpy as np
from pydantic import BaseModel, ConfigDict, Field, JsonValue

from craft_jax.errors import UserError
from craft_jax.sample.answers import Prepared, prepare
from craft_jax.sample.prompt import encode_prompt
from craft_jax.sample.request import Request
from craft_jax.serve.errors import ApiError
from craft_jax.serve.limits import Limits
from craft_jax.text.vocabulary import Vocabulary
from craft_jax.trained import Trained

# What a field is called in `sample.Request`, where its messages come from.
_NAMES = {
  'max_chars': 'max_tokens',
  'num_samples': 'n',
  'beams': 'beam_width',
  'json_schema': 'response_format',
  'ignore_end': 'ignore_eos',
}
_NAMED = re.compile(rf'\b({"|".join(_NAMES)})\b')
_MOST_SEED = 2**32

Id = Annotated[int, Field(ge=0, lt=2**31)]
# JSON's own numbers only; text that UTF-8 cannot have is refused by pydantic.
_STRICT = ConfigDict(extra='forbid', strict=True, allow_inf_nan=False)


class StreamOptions(BaseModel):
  """How a stream is sent."""

  model_config = _STRICT
  include_usage: bool = Field(
    False, description='a last event with the usage, null in those before'
  )
  include_obfuscation: Literal[False] = Field(
    False, description='events are not padded'
  )


class JsonSchema(BaseModel):
  """A schema, as OpenAI's clients send it."""

  model_config = _STRICT
  name: str = Field('schema', description='any; has no effect on the text')
  description: str | None = Field(None, description='likewise')
  schema_: dict[str, JsonValue] | bool = Field(
    alias='schema', description='what the text is an instance of'
  )
  strict: Literal[True, None] = Field(
    None, description='a schema is always kept to the letter'
  )


class ResponseFormat(BaseModel):
  """The form of the text."""

  model_config = _STRICT
  type: Literal['text', 'json_schema'] = 'text'
  json_schema: JsonSchema | None = None


class CompletionBody(BaseModel):
  """A request for completions: OpenAI's fields, then those of Craft."""

  model_config = _STRICT
  model: str | None = Field(
    None, description='the name of the model, if any (/v1/models)'
  )
  prompt: str | list[str] | list[Id] | list[list[Id]] = Field(
    '', description='text to continue, or several; or the ids of symbols'
  )
  max_tokens: int | None = Field(
    16, ge=0, lt=2**31, description='characters to write; 0 needs echo'
  )
  temperature: float | None = Field(
    1.0, ge=0, le=100, description='0 is greedy, 1 the model as trained'
  )
  top_p: float | None = Field(
    1.0, ge=0, le=1, description='the most likely symbols that sum to this'
  )
  n: int | None = Field(1, ge=1, lt=2**31, description='texts per prompt')
  best_of: int | None = Field(
    None,
    ge=1,
    lt=2**31,
    description='draw so many and give the n with the highest mean '
    'log-probability; not with stream if over n',
  )
  stream: bool | None = Field(False, description='send text as it is written')
  stream_options: StreamOptions | None = Field(
    None, description='only with stream'
  )
  stop: str | list[str] | None = Field(
    None, description='up to 4 texts before which a text ends'
  )
  logprobs: int | None = Field(
    None,
    ge=0,
    le=5,
    description='log-probabilities of each symbol and of so many others',
  )
  echo: bool | None = Field(
    False, description='begin with the prompt, and with its logprobs'
  )
  seed: int | None = Field(
    None,
    ge=-(2**63),
    lt=2**63,
    description='the same seed writes the same text; taken modulo 2^32',
  )
  presence_penalty: float | None = Field(
    0.0, ge=-2, le=2, description='off the logits of symbols seen lately'
  )
  frequency_penalty: float | None = Field(
    0.0, ge=-2, le=2, description='the same for each time they were seen'
  )
  logit_bias: dict[str, Annotated[float, Field(ge=-100, le=100)]] | None = (
    Field(None, description='by the id of a symbol, added to its logit')
  )
  user: str | None = Field(
    None, description='any mark of the sender; has no effect on the text'
  )
  suffix: None = Field(None, description='not supported: texts go on only')

  top_k: int = Field(
    0, ge=0, lt=2**31, description='the so many most likely; 0 is all'
  )
  min_p: float = Field(
    0.0, ge=0, le=1, description='at least this share of the most likely'
  )
  typical_p: float = Field(
    1.0, ge=0, le=1, description='nearest the entropy, that sum to this'
  )
  repetition_penalty: float = Field(
    1.0, gt=0, le=100, description='above 1 lowers symbols seen lately'
  )
  allowed_chars: str | None = Field(
    None, description='write these characters only'
  )
  regex: str | None = Field(
    None, description='a pattern that the text matches as a whole'
  )
  response_format: ResponseFormat | None = Field(
    None, description='a JSON schema that the text is an instance of'
  )
  beam_width: int = Field(
    0, ge=0, le=64, description='search with so many beams instead of drawing'
  )
  ignore_eos: bool = Field(
    False, description='never end a document: always write max_tokens'
  )


class ScoreBody(BaseModel):
  """A request for the likelihood of texts."""

  model_config = _STRICT
  model: str | None = None
  text: str | list[str] = Field(description='a text, or several')
  stride: int = Field(
    0,
    ge=0,
    lt=2**31,
    description='symbols by which windows advance; 0 is half of the context',
  )
  per_char: bool = Field(False, description='the nats of each character too')


class TokenizeBody(BaseModel):
  """A text to be made symbols of."""

  model_config = _STRICT
  model: str | None = None
  prompt: str = Field(description='the text')
  add_special_tokens: Literal[False] = Field(
    False, description='there are none to add'
  )


class DetokenizeBody(BaseModel):
  """Symbols to be made a text of."""

  model_config = _STRICT
  model: str | None = None
  tokens: list[Id] = Field(description='their ids')


def check_model(name: str | None, served: str) -> None:
  """Refuses the name of another model.

  Raises:
    ApiError: 404.
  """
  if name is not None and name != served:
    raise ApiError(
      404,
      f'there is no model {name!r}; this server has {served!r}',
      param='model',
      code='model_not_found',
    )


@dataclasses.dataclass(frozen=True)
class Wanted:
  """A request for completions, checked but for its constraints.

  Attributes:
    body: as it came.
    prompts: text, or ids.
    request: the same for each prompt, the prompt left out.
    echo_only: nothing is to be written.
  """

  body: CompletionBody
  prompts: Sequence[str | list[int]]
  request: Request
  echo_only: bool

  @property
  def has_constraint(self) -> bool:
    """Whether something is to be compiled."""
    asked = self.request
    return not (
      asked.regex is None
      and asked.json_schema is None
      and asked.allowed_chars is None
    )

  def prepare(self, trained: Trained) -> list[Prepared]:
    """For the sampler, of each prompt; compiles what is to be.

    Raises:
      ApiError: 400.
    """
    with _refusing():
      first = prepare(trained, self.request)
      biases = _biases(self.body.logit_bias or {}, trained)
      settings = dataclasses.replace(first.settings, logit_bias=biases)
      return [
        _prepared(trained, self.request, prompt, settings)
        for prompt in self.prompts
      ]


def read(body: CompletionBody, limits: Limits, context: int) -> Wanted:
  """Checks all that needs no model.

  Raises:
    ApiError: 400.
  """
  prompts = _prompts(body.prompt)
  n = body.n or 1
  best_of = n if body.best_of is None else body.best_of
  if best_of < n:
    _refuse('best_of', f'best_of={best_of} has no n={n} texts to give')
  if body.beam_width and body.beam_width < n:
    _refuse('beam_width', f'beam_width={body.beam_width} finds no n={n} texts')
  if len(prompts) * max(best_of, body.beam_width) > limits.max_texts:
    _refuse(
      'n',
      f'{len(prompts)} prompts times {best_of} texts are more than the '
      f'{limits.max_texts} of one request',
    )
  _check_stream(body, best_of > n)
  stop = [body.stop] if isinstance(body.stop, str) else body.stop or []
  if len(stop) > 4:
    _refuse('stop', f'{len(stop)} texts to stop at are more than 4')
  max_tokens = 16 if body.max_tokens is None else body.max_tokens
  if max_tokens > limits.max_tokens:
    _refuse(
      'max_tokens',
      f'max_tokens={max_tokens} is more than the {limits.max_tokens} of this '
      'server',
    )
  if not max_tokens and not body.echo:
    _refuse('max_tokens', 'max_tokens=0 has nothing to give without echo')
  if body.beam_width and not max_tokens:
    _refuse('max_tokens', 'max_tokens=0 has nothing to search for')
  seed = body.seed
  with _refusing():
    request = Request(
      max_chars=max_tokens or 1,
      num_samples=n,
      best_of=best_of if best_of > n else 0,
      temperature=_or(body.temperature, 1.0),
      top_k=body.top_k,
      top_p=_or(body.top_p, 1.0),
      beams=body.beam_width,
      seed=random.getrandbits(32) if seed is None else seed % _MOST_SEED,
      logprobs=body.logprobs,
      echo=bool(body.echo),
      ignore_end=body.ignore_eos,
      min_p=body.min_p,
      typical_p=body.typical_p,
      repetition_penalty=body.repetition_penalty,
      presence_penalty=_or(body.presence_penalty, 0.0),
      frequency_penalty=_or(body.frequency_penalty, 0.0),
      penalty_window=context,
      regex=body.regex,
      json_schema=_schema(body.response_format),
      allowed_chars=body.allowed_chars,
      stop=tuple(stop),
    )
  return Wanted(body, prompts, request, not max_tokens)


def _or(value: Any, usual: Any) -> Any:
  """What null stands for."""
  return usual if value is None else value


def _check_stream(body: CompletionBody, chooses: bool) -> None:
  if body.stream_options is not None and not body.stream:
    _refuse('stream_options', 'stream_options need stream=true')
  if body.stream and chooses:
    _refuse('best_of', 'best_of over n is known at the end only; no stream')
  if body.stream and body.beam_width:
    _refuse('beam_width', 'beams are known at the end only; no stream')


def _prompts(given: Any) -> list[str | list[int]]:
  """One or more prompts."""
  if isinstance(given, str):
    return [given]
  if not given:
    _refuse('prompt', 'prompt is an empty list; give a text')
  if isinstance(given[0], int):
    return [given]
  if any(not one for one in given if isinstance(one, list)):
    _refuse('prompt', 'a prompt is an empty list; give a text')
  return list(given)


def _schema(form: ResponseFormat | None) -> Any:
  if form is None or form.type == 'text':
    if form is not None and form.json_schema is not None:
      _refuse('response_format', 'a json_schema needs type=json_schema')
    return None
  if form.json_schema is None:
    _refuse('response_format', 'type=json_schema needs a json_schema')
  return form.json_schema.schema_


def _biases(given: dict[str, float], trained: Trained) -> dict[int, float]:
  size, found = trained.vocabulary.size, {}
  for key, bias in given.items():
    if not (key.isascii() and key.isdigit() and int(key) < size):
      _refuse(
        'logit_bias', f'logit_bias: {key!r} is no id from 0 to {size - 1}'
      )
    found[int(key)] = bias
  return found


def _prepared(trained, request, prompt, settings) -> Prepared:
  """As `sample.answers.prepare`, the settings being known."""
  vocabulary = trained.vocabulary
  if isinstance(prompt, str):
    ids = encode_prompt(vocabulary, prompt, trained.meta.documents)
    request = dataclasses.replace(request, prompt=prompt)
    return Prepared(request, None, ids, prompt, settings)
  if max(prompt) >= vocabulary.size:
    _refuse(
      'prompt',
      f'the id {max(prompt)} is none of the {vocabulary.size} symbols',
    )
  ids = np.array(prompt, vocabulary.dtype)
  shown = vocabulary.decode_bytes(ids[ids < vocabulary.num_symbols])
  text = shown.decode('utf-8', 'replace')
  # Not empty, whatever it shows: its symbols are what was asked about.
  request = dataclasses.replace(request, prompt=text or ' ')
  return Prepared(request, None, ids, text, settings)


class _refusing:
  """Says what is wrong in the names of the fields here."""

  def __enter__(self) -> None:
    pass

  def __exit__(self, kind: Any, error: Any, trace: Any) -> None:
    if isinstance(error, UserError):
      text = _NAMED.sub(lambda m: _NAMES[m.group()], str(error))
      first = re.match(r'[a-z_]+', text)
      name = first.group() if first else ''
      param = name if name in CompletionBody.model_fields else None
      raise ApiError(400, text, param=param) from error


def _refuse(param: str, message: str) -> NoReturn:
  raise ApiError(400, message, param=param)


def encode(vocabulary: Vocabulary, text: str) -> list[int]:
  """The ids of a text.

  Raises:
    ApiError: 400, a character outside the vocabulary.
  """
  with _refusing():
    return vocabulary.encode(text).tolist()


def decode(vocabulary: Vocabulary, ids: list[int]) -> str:
  """The text of ids, specials left out.

  Raises:
    ApiError: 400, an id outside the vocabulary.
  """
  if ids and max(ids) >= vocabulary.size:
    _refuse(
      'tokens', f'the id {max(ids)} is none of the {vocabulary.size} symbols'
    )
  return vocabulary.decode(np.array(ids, vocabulary.dtype))
