"""From the body of a request to a request of the sampler, or a refusal."""

import contextlib
import dataclasses
import random
import re
from collections.abc import Iterator, Sequence
from typing import Any, NoReturn

import numpy as np

from craft_jax.data.text.streaming import StreamDecoder
from craft_jax.data.text.vocabulary import Vocabulary
from craft_jax.errors import UserError
from craft_jax.inference.engine.resident_constraints import Capacity
from craft_jax.inference.load import Trained
from craft_jax.inference.sampling.answers import Prepared, prepare
from craft_jax.inference.sampling.options import OPTIONS
from craft_jax.inference.sampling.prompt import encode_prompt
from craft_jax.inference.sampling.request import Request
from craft_jax.serve.admission import Limits
from craft_jax.serve.errors import ApiError
from craft_jax.serve.schemas import CompletionBody, ResponseFormat

# Fields of the sampler's request, as its messages name them, and of a body.
_NAMES = {
  'max_chars': 'max_tokens',
  'num_samples': 'n',
  'beams': 'beam_width',
  'json_schema': 'response_format',
  'ignore_end': 'ignore_eos',
}
_NAMED = re.compile(rf'\b({"|".join(_NAMES)})\b')
_CONSTRAINTS = ('regex', 'json_schema', 'allowed_chars')
# Options of the sampler that have the same name in a body.
_SAMPLING = [name for name, one in OPTIONS.items() if one.api is not None]
_ANY_OBJECT = {'type': 'object'}


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
    body: as it was sent.
    prompts: text, or ids.
    request: that of every prompt, without the prompt.
    echo_only: nothing is to be generated.
  """

  body: CompletionBody
  prompts: Sequence[str | list[int]]
  request: Request
  echo_only: bool

  @property
  def constraints(self) -> list[str]:
    """Fields of the sampler's request that constrain the text."""
    return [n for n in _CONSTRAINTS if getattr(self.request, n) is not None]

  def prepare(self, trained: Trained, capacity: Capacity) -> list[Prepared]:
    """Compiles the constraint and encodes the prompts.

    Whatever can be wrong with a constraint is found here, for a completion and
    for `/validate` alike.

    Args:
      trained: the model.
      capacity: states of constraints that the device has room for.

    Raises:
      ApiError: 400.
    """
    self._compile(trained)
    with _refusing():
      first = prepare(trained, self.request)
      try:
        capacity.check(first.settings.constraint)
      except UserError as e:
        fields = [_NAMES.get(name, name) for name in self.constraints]
        param = fields[0] if len(fields) == 1 else None
        raise ApiError(400, str(e), param=param) from e
      biases = _biases(self.body.logit_bias or {}, trained)
      settings = dataclasses.replace(first.settings, logit_bias=biases)
      return [
        _prepared(trained, self.request, prompt, settings)
        for prompt in self.prompts
      ]

  def _compile(self, trained: Trained) -> None:
    """Compiles each constraint alone; they are cached for later requests.

    Raises:
      ApiError: 400, one is wrong.
    """
    for name in self.constraints:
      value = getattr(self.request, name)
      try:
        Request(**{name: value}).settings(trained.vocabulary, False)
      except UserError as e:
        field = _NAMES.get(name, name)
        where = field
        if name == 'json_schema' and value is not _ANY_OBJECT:
          where = f'{field}.json_schema.schema'
        raise ApiError(400, f'{where}: {e}', param=field) from e


def read(body: CompletionBody, limits: Limits, context: int) -> Wanted:
  """Checks whatever needs no model.

  Raises:
    ApiError: 400.
  """
  prompts = _prompts(body.prompt)
  n, most = body.n, body.max_tokens
  best_of = 0 if body.best_of in (None, n) else body.best_of
  texts = max(best_of or n, body.beam_width)
  stop = [body.stop] if isinstance(body.stop, str) else body.stop or []
  for is_wrong, param, says in (
    (len(prompts) * texts > limits.max_texts, 'n',
     f'{len(prompts)} prompts times {texts} texts are more than the '
     f'{limits.max_texts} of one request'),
    (body.stream_options is not None and not body.stream, 'stream_options',
     'stream_options need stream=true'),
    (body.stream and best_of > n, 'best_of',
     'best_of over n is known at the end only; no stream'),
    (body.stream and body.beam_width, 'beam_width',
     'beams are known at the end only; no stream'),
    (len(stop) > 4, 'stop', f'{len(stop)} texts to stop at are more than 4'),
    (most > limits.max_tokens, 'max_tokens',
     f'max_tokens={most} is more than the {limits.max_tokens} of this server'),
    (not most and not body.echo, 'max_tokens',
     'max_tokens=0 has nothing to give without echo'),
    (not most and body.beam_width, 'max_tokens',
     'max_tokens=0 has nothing to search for'),
  ):  # fmt: skip
    if is_wrong:
      _refuse(param, says)
  seed = random.getrandbits(32) if body.seed is None else body.seed % 2**32
  with _refusing():
    request = Request(
      max_chars=most or 1,
      num_samples=n,
      best_of=best_of,
      beams=body.beam_width,
      seed=seed,
      logprobs=body.logprobs,
      echo=body.echo,
      ignore_end=body.ignore_eos,
      penalty_window=context,
      regex=body.regex,
      json_schema=_schema(body.response_format),
      allowed_chars=body.allowed_chars,
      stop=tuple(stop),
      **{name: getattr(body, name) for name in _SAMPLING},
    )
  return Wanted(body, prompts, request, not most)


def _prompts(given: Any) -> list[str | list[int]]:
  """One or more prompts."""
  if isinstance(given, str):
    return [given]
  if not given:
    _refuse('prompt', 'prompt is an empty list; give a text')
  if isinstance(given[0], int):
    return [given]
  for i, one in enumerate(given):
    if isinstance(one, list) and not one:
      _refuse('prompt', f'prompt.{i} is an empty list; give a text')
  return list(given)


def _schema(form: ResponseFormat | None) -> Any:
  if form is None:
    return None
  if form.type != 'json_schema':
    if form.json_schema is not None:
      _refuse(
        'response_format',
        'response_format.json_schema needs response_format.type=json_schema',
      )
    return _ANY_OBJECT if form.type == 'json_object' else None
  if form.json_schema is None:
    _refuse(
      'response_format',
      'response_format.json_schema is missing, which type=json_schema needs',
    )
  return form.json_schema.schema_


def _biases(given: dict[str, float], trained: Trained) -> dict[int, float]:
  size, found = trained.vocabulary.size, {}
  for key, bias in given.items():
    is_number = key.isascii() and key.isdigit() and len(key) < 10
    if not (is_number and int(key) < size):
      _refuse(
        'logit_bias', f'logit_bias.{key}: this is no id from 0 to {size - 1}'
      )
    found[int(key)] = bias
  return found


def _prepared(trained, request, prompt, settings) -> Prepared:
  """Encodes a prompt whose settings are known."""
  vocabulary = trained.vocabulary
  if isinstance(prompt, str):
    ids = encode_prompt(
      vocabulary, prompt, trained.meta.documents, trained.cfg.data.format
    )
    request = dataclasses.replace(request, prompt=prompt)
    return Prepared(request, None, ids, prompt, settings)
  ids = _ids(vocabulary, prompt, 'prompt')
  # Without the bytes of a last character that the text may complete.
  text = StreamDecoder(vocabulary).feed(ids[ids < vocabulary.num_text_tokens])
  # Not empty, whatever it shows: its tokens are scored.
  request = dataclasses.replace(request, prompt=text or ' ')
  return Prepared(request, None, ids, text, settings)


@contextlib.contextmanager
def _refusing() -> Iterator[None]:
  """Turns errors of the sampler into errors about the fields of a body."""
  try:
    yield
  except UserError as error:
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
  return vocabulary.decode(_ids(vocabulary, ids, 'tokens'))


def _ids(vocabulary: Vocabulary, ids: list[int], param: str) -> np.ndarray:
  if (most := max(ids, default=0)) >= vocabulary.size:
    _refuse(param, f'the id {most} is none of the {vocabulary.size} tokens')
  return np.array(ids, vocabulary.dtype)
