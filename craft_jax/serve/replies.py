"""Schemas of the answers, for the document at /openapi.json."""

from typing import Literal

from pydantic import BaseModel, Field


class Logprobs(BaseModel):
  """A list per token of a text, the prompt's before with `echo`."""

  tokens: list[str] = Field(
    description='a character, `bytes:\\xNN` for a byte of a longer one, '
    '`<bos>` or `<eos>`'
  )
  token_logprobs: list[float | None] = Field(
    description='natural logarithms; null for the first of all'
  )
  top_logprobs: list[dict[str, float] | None] = Field(
    description='of the most likely tokens, and of the one in the text'
  )
  text_offset: list[int] = Field(
    description='characters before it, those of the prompt counted'
  )


class Choice(BaseModel):
  """A text."""

  text: str
  index: int
  logprobs: Logprobs | None
  finish_reason: Literal['stop', 'length'] | None = Field(
    description='null while it goes on'
  )


class Usage(BaseModel):
  """Tokens."""

  prompt_tokens: int
  completion_tokens: int
  total_tokens: int


class Completion(BaseModel):
  """The texts, or in a stream what is new of them."""

  id: str
  object: Literal['text_completion']
  created: int = Field(description='seconds since 1970')
  model: str
  choices: list[Choice]
  usage: Usage | None = None


class Token(BaseModel):
  """One of a list of likely tokens."""

  token: str
  logprob: float | None
  bytes: list[int] | None


class WrittenToken(Token):
  """A token of a message."""

  top_logprobs: list[Token]


class SpeechLogprobs(BaseModel):
  """An object per token of a message."""

  content: list[WrittenToken]
  refusal: None


class Speech(BaseModel):
  """What the assistant says."""

  role: Literal['assistant']
  content: str
  refusal: None


class ChatChoice(BaseModel):
  """A message of the assistant."""

  index: int
  message: Speech
  logprobs: SpeechLogprobs | None
  finish_reason: Literal['stop', 'length']


class ChatCompletion(BaseModel):
  """The next message of a chat; in a stream `delta` replaces `message`."""

  id: str
  object: Literal['chat.completion']
  created: int
  model: str
  choices: list[ChatChoice]
  usage: Usage


class Model(BaseModel):
  """The model that is served."""

  id: str
  object: Literal['model']
  created: int
  owned_by: str
  context: int = Field(description='tokens that it looks at')
  step: int = Field(description='of its checkpoint')


class Models(BaseModel):
  """A list of one."""

  object: Literal['list']
  data: list[Model]


class Tokens(BaseModel):
  """The tokens of a text."""

  count: int
  max_model_len: int
  tokens: list[int]


class Text(BaseModel):
  """The text of tokens."""

  prompt: str


class TokenizerInfo(BaseModel):
  """What the tokens are."""

  tokenizer_class: str
  vocab_size: int
  model_max_length: int
  bos_token: str
  eos_token: str
  pad_token: str


class Status(BaseModel):
  """How the server is."""

  status: str


class Valid(BaseModel):
  """Whether the model can write in a form."""

  valid: bool
  message: str | None = Field(description='what is wrong')
  param: str | None = Field(description='the field that it is about')


class ErrorBody(BaseModel):
  """What went wrong."""

  message: str
  type: str
  param: str | None = Field(description='the field that it is about')
  code: str | None


class Error(BaseModel):
  """An error, as OpenAI's."""

  error: ErrorBody
