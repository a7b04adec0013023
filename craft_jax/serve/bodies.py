"""What may be asked for: the bodies of requests, each field checked.

Nothing is accepted and ignored: an unknown field is an error, and so is a value
that has no effect here.
"""

from typing import Annotated, Literal

from pydantic import BaseModel, ConfigDict, Field, JsonValue

Id = Annotated[int, Field(ge=0, lt=2**31)]
# JSON's own numbers only; text that UTF-8 cannot have is refused by pydantic.
STRICT = ConfigDict(extra='forbid', strict=True, allow_inf_nan=False)


class StreamOptions(BaseModel):
  """How a stream is sent."""

  model_config = STRICT
  include_usage: bool = Field(
    False, description='a last event with the usage, null in those before'
  )
  include_obfuscation: Literal[False] = Field(
    False, description='events are not padded'
  )


class JsonSchema(BaseModel):
  """A schema, as OpenAI's clients send it."""

  model_config = STRICT
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

  model_config = STRICT
  type: Literal['text', 'json_schema'] = 'text'
  json_schema: JsonSchema | None = None


class Sampling(BaseModel):
  """How text is written: OpenAI's fields, then those of Craft."""

  model_config = STRICT
  model: str | None = Field(
    None, description='the name of the model, if any (/v1/models)'
  )
  temperature: float | None = Field(
    1.0, ge=0, le=100, description='0 is greedy, 1 the model as trained'
  )
  top_p: float | None = Field(
    1.0, ge=0, le=1, description='the most likely symbols that sum to this'
  )
  n: int | None = Field(1, ge=1, lt=2**31, description='texts per prompt')
  stream: bool | None = Field(False, description='send text as it is written')
  stream_options: StreamOptions | None = Field(
    None, description='only with stream'
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


class CompletionBody(Sampling):
  """A request for completions."""

  prompt: str | list[str] | list[Id] | list[list[Id]] = Field(
    '', description='text to continue, or several; or the ids of symbols'
  )
  max_tokens: int | None = Field(
    16, ge=0, lt=2**31, description='characters to write; 0 needs echo'
  )
  best_of: int | None = Field(
    None,
    ge=1,
    lt=2**31,
    description='draw so many and give the n with the highest mean '
    'log-probability; not with stream if over n',
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
  suffix: None = Field(None, description='not supported: texts go on only')


class ValidateBody(BaseModel):
  """A constraint to be tried without writing anything."""

  model_config = STRICT
  model: str | None = None
  regex: str | None = Field(None, description='as in a completion')
  response_format: ResponseFormat | None = Field(
    None, description='as in a completion'
  )
  allowed_chars: str | None = Field(None, description='as in a completion')
  max_tokens: int | None = Field(
    None, ge=1, lt=2**31, description='characters in which it must be done'
  )


class ScoreBody(BaseModel):
  """A request for the likelihood of texts."""

  model_config = STRICT
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

  model_config = STRICT
  model: str | None = None
  prompt: str = Field(description='the text')
  add_special_tokens: Literal[False] = Field(
    False, description='there are none to add'
  )


class DetokenizeBody(BaseModel):
  """Symbols to be made a text of."""

  model_config = STRICT
  model: str | None = None
  tokens: list[Id] = Field(description='their ids')
