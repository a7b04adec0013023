"""Chats with a model that only continues text: a thin wrapper of completions.

A chat is written out as a play is, speech by speech, and the model goes on with
the next one. What is asked, taken, written and streamed is a completion.
"""

import re
from typing import Annotated, Any, Literal

from pydantic import Field

from craft_jax.data.text.vocabulary import SPECIALS
from craft_jax.serve import responses, schemas
from craft_jax.serve.errors import ApiError

_NAMES = {'user': 'User', 'assistant': 'Assistant'}
# Between speeches, and therefore never within one.
_END = '\n\n'
_BLANK = re.compile(r'\n\s*\n')
_MAX_TOKENS = 256


class Part(schemas.Body):
  """A part of a message; text only."""

  type: Literal['text']
  text: str


class Message(schemas.Body):
  """What somebody said."""

  role: Literal['system', 'developer', 'user', 'assistant']
  content: str | schemas.Each[Part]
  name: Annotated[str, Field(pattern=r'^[\w -]{1,64}$')] | None = Field(
    None, description='of the speaker, in place of User or Assistant'
  )


class ChatBody(schemas.Sampling):
  """A request for the next speech of a chat."""

  messages: Annotated[schemas.Each[Message], Field(min_length=1)] = Field(
    description='the chat so far: role, content and name of each'
  )
  max_tokens: int | None = Field(
    None, ge=1, lt=2**31, description=f'characters; {_MAX_TOKENS} if left out'
  )
  max_completion_tokens: int | None = Field(
    None, ge=1, lt=2**31, description='the same by its newer name'
  )
  stop: str | list[str] | None = Field(
    None, description='up to 3 more texts before which the speech ends'
  )
  logprobs: bool = Field(False, description='log-probabilities of each token')
  top_logprobs: int | None = Field(
    None,
    ge=0,
    le=5,
    description='and of the so many most likely; needs logprobs',
  )


def written(body: ChatBody, most: int) -> schemas.CompletionBody:
  """The completion that a chat is.

  Args:
    body: what is asked.
    most: characters, if it does not say.

  Raises:
    ApiError: 400.
  """
  if body.top_logprobs is not None and not body.logprobs:
    raise ApiError(400, 'top_logprobs need logprobs=true', param='top_logprobs')
  if None not in (body.max_tokens, body.max_completion_tokens):
    raise ApiError(
      400,
      'max_tokens and max_completion_tokens are the same; give one',
      param='max_tokens',
    )
  stop = [body.stop] if isinstance(body.stop, str) else body.stop or []
  if len(stop) > 3:
    raise ApiError(
      400, f'{len(stop)} texts to stop at are more than 3', param='stop'
    )
  shared = {name: getattr(body, name) for name in schemas.Sampling.model_fields}
  asked = schemas.CompletionBody(
    **shared
    | {
      'prompt': script(body.messages),
      'max_tokens': (
        body.max_tokens or body.max_completion_tokens or min(_MAX_TOKENS, most)
      ),
      'logprobs': (body.top_logprobs or 0) if body.logprobs else None,
      'stop': [_END, *stop],
    }
  )
  asked._size = body.size
  return asked


def script(messages: list[Message]) -> str:
  """A chat as a play, up to the name of who speaks next.

  Blank lines within a message become line breaks: the content of a speech
  cannot go over into another's. The assistant has the name that it had last.
  """
  name, speeches = _NAMES['assistant'], []
  for message in messages:
    text = message.content
    if not isinstance(text, str):
      text = '\n'.join(part.text for part in text)
    text = _BLANK.sub('\n', text.replace('\r\n', '\n')).strip('\n')
    if message.role in _NAMES:
      speaker = message.name or _NAMES[message.role]
      if message.role == 'assistant':
        name = speaker
      text = f'{speaker}:\n{text}'.rstrip('\n')
    speeches.append(text)
  return _END.join([*speeches, f'{name}:\n'])


class Head(responses.Head):
  """What all objects of one chat have in common.

  Args:
    model: its name.
    most: likely tokens that are told of each.
  """

  prefix = 'chatcmpl'

  def __init__(self, model: str, most: int = 0):
    super().__init__(model)
    self._most = most
    self._begun: set[int] = set()  # choices of which there were pieces

  def whole(self, choices: list[dict], **more: Any) -> dict[str, Any]:
    """As of completions, in the form of chats."""
    shown = [
      {
        'index': choice['index'],
        'message': {
          'role': 'assistant', 'content': choice['text'], 'refusal': None,
        },
        'logprobs': _logprobs(choice['logprobs'], self._most),
        'finish_reason': choice['finish_reason'],
      }
      for choice in choices
    ]  # fmt: skip
    return self._object('chat.completion', shown, more)

  def piece(self, choices: list[dict], **more: Any) -> dict[str, Any]:
    """Likewise; the first of each choice says who speaks."""
    shown = []
    for choice in choices:
      delta = {'content': choice['text']} if choice['text'] else {}
      if choice['index'] not in self._begun:
        self._begun.add(choice['index'])
        delta = {'role': 'assistant', 'content': choice['text']}
      shown.append(
        {
          'index': choice['index'],
          'delta': delta,
          'logprobs': _logprobs(choice['logprobs'], self._most),
          'finish_reason': choice['finish_reason'],
        }
      )
    return self._object('chat.completion.chunk', shown, more)


def _logprobs(found: dict[str, Any] | None, most: int) -> dict[str, Any] | None:
  """An object per token, where completions have lists.

  Those tell the token that was written beside the most likely; here it counts
  as one of them, or is left out.
  """
  if found is None:
    return None
  content = []
  rows = zip(
    found['tokens'], found['token_logprobs'], found['top_logprobs'],
    strict=True,
  )  # fmt: skip
  for token, logprob, top in rows:
    others = sorted((top or {}).items(), key=lambda pair: -pair[1])
    content.append(
      _entry(token, logprob)
      | {'top_logprobs': [_entry(*other) for other in others[:most]]}
    )
  return {'content': content, 'refusal': None}


def _entry(token: str, logprob: float) -> dict[str, Any]:
  return {'token': token, 'logprob': logprob, 'bytes': _bytes(token)}


def _bytes(token: str) -> list[int] | None:
  if token.startswith('bytes:'):
    return [int(token.removeprefix('bytes:\\x'), 16)]
  return None if token in SPECIALS else list(token.encode())
