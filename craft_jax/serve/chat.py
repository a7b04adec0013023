"""Chats with a model that only continues text: a thin wrapper of completions.

A chat is written out as a play, speech by speech, and the model continues with
the next one. The request is answered as a completion.
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
  """A request for the next message of a chat."""

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
    description='and of the K most likely ones; needs logprobs',
  )


def written(body: ChatBody, most: int) -> schemas.CompletionBody:
  """The request for a completion that answers a chat.

  Args:
    body: the chat.
    most: characters to generate if the chat does not say, up to 256.

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

  Blank lines within a message become line breaks, so that no message can hold
  the speech of another. The assistant has the name that it had last.
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
    most: likely tokens that are reported beside each.
  """

  prefix, kinds = 'chatcmpl', ('chat.completion', 'chat.completion.chunk')

  def __init__(self, model: str, most: int = 0):
    super().__init__(model)
    self._most = most
    self._begun: set[int] = set()  # choices of which there were events

  def choice(self, choice: dict[str, Any], is_event: bool) -> dict[str, Any]:
    """A choice of a completion as one of a chat.

    The first event of each choice also has the role.
    """
    text, index = choice['text'], choice['index']
    said = {'role': 'assistant', 'content': text}
    if not is_event:
      said['refusal'] = None
    elif index in self._begun:
      said = {'content': text} if text else {}
    self._begun.add(index)
    return {
      'index': index,
      'delta' if is_event else 'message': said,
      'logprobs': _logprobs(choice['logprobs'], self._most),
      'finish_reason': choice['finish_reason'],
    }


def _logprobs(found: dict[str, Any] | None, most: int) -> dict[str, Any] | None:
  """An object per token, where completions have lists.

  Completions report the generated token beside the k most likely ones; here it
  counts as one of the k, or is left out.
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
