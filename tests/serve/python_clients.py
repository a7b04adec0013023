"""Clients of other makers for Python, each used as its documentation does.

  python python_clients.py CLIENT URL MODEL FOLDER

Run by an environment of their own: what they need does not go with what Craft
needs. Ends with `FOUND` and JSON of what the client was given.
"""

import json
import os
import pathlib
import sys
from collections.abc import Callable, Mapping
from typing import Annotated, Any

import pydantic

_ASKED = '12 squared'
_USUAL = {'max_tokens': 60, 'seed': 3}
_TOOL = {
  'type': 'function',
  'function': {'name': 'f', 'parameters': {'type': 'object'}},
}
_FENCED = '```json\n\\{"name":"[a-z]{4}","age":[1-9]\\}\n```'
Found = dict[str, Any]


class Person(pydantic.BaseModel):
  """Somebody."""

  model_config = pydantic.ConfigDict(extra='forbid')
  name: Annotated[str, pydantic.Field(max_length=8)]
  age: Annotated[int, pydantic.Field(ge=0, le=120)]


class Anybody(pydantic.BaseModel):
  """Whatever object is written is one."""

  name: str = 'nobody'


def _refused(calls: Mapping[str, Callable[[], Any]]) -> dict[str, Any]:
  """Status and words of the error that each call ends with."""
  found = {}
  for name, call in calls.items():
    try:
      call()
    except Exception as e:
      while getattr(e, 'status_code', None) is None and e.__cause__:
        e = e.__cause__
      found[name] = getattr(e, 'status_code', None), str(e)
  return found


def langchain(url: str, name: str, folder: pathlib.Path) -> Found:
  """LangChain's `ChatOpenAI`, `OpenAI` and `OpenAIEmbeddings`."""
  from langchain_openai import ChatOpenAI, OpenAI, OpenAIEmbeddings

  server = {
    'base_url': url, 'api_key': 'none', 'model': name, 'max_retries': 0,
  }  # fmt: skip
  model = ChatOpenAI(**server, **_USUAL, stream_usage=True)
  whole = model.invoke(_ASKED)
  pieces = list(model.stream(_ASKED))
  again = model.invoke([('system', 'Briefly.'), ('user', _ASKED), whole])
  of_class = model.with_structured_output(Person)
  of_dict = model.with_structured_output(Person.model_json_schema())
  loose = model.with_structured_output(Person.model_json_schema(), strict=False)
  free = model.with_structured_output(None, method='json_mode').invoke(_ASKED)
  called = model.with_structured_output(Person, method='function_calling')
  embeddings = OpenAIEmbeddings(**server, check_embedding_ctx_length=False)
  return {
    'whole': whole.content,
    'text': ''.join(piece.content for piece in pieces),
    'whole_usage': whole.usage_metadata['total_tokens'],
    'usage': sum(
      piece.usage_metadata['total_tokens']
      for piece in pieces
      if piece.usage_metadata
    ),
    'again': again.content,
    'plain': OpenAI(**server, max_tokens=20).invoke(_ASKED),
    'objects': [
      of_class.invoke(_ASKED).model_dump(),
      list(of_class.stream(_ASKED))[-1].model_dump(),
      of_dict.invoke(_ASKED),
      loose.invoke(_ASKED),
    ],
    'free': free,
    'refused': _refused({
      'tools': lambda: model.bind_tools([Person]).invoke(_ASKED),
      'calls': lambda: called.invoke(_ASKED),
      'embeddings': lambda: embeddings.embed_query('a'),
      'responses': lambda: ChatOpenAI(
        **server, use_responses_api=True
      ).invoke(_ASKED),
    }),
  }  # fmt: skip


def instructor(url: str, name: str, folder: pathlib.Path) -> Found:
  """Instructor around OpenAI's client, in its modes that read JSON."""
  import instructor as lib
  import openai

  client = openai.OpenAI(base_url=url, api_key='none', max_retries=0)
  asked = {
    'model': name, 'messages': [{'role': 'user', 'content': _ASKED}],
    'max_retries': 0, **_USUAL,
  }  # fmt: skip

  def completions(mode):
    return lib.from_openai(client, mode=mode).chat.completions

  schema, free = completions(lib.Mode.JSON_SCHEMA), completions(lib.Mode.JSON)
  fenced = completions(lib.Mode.MD_JSON)
  person, whole = schema.create_with_completion(response_model=Person, **asked)
  *_, partial = schema.create_partial(response_model=Person, **asked)
  # What is not an instance is sent back, with what is wrong with it.
  refuses = []
  retried = free.create(
    response_model=_wrong_once(refuses), **asked | {'max_retries': 2}
  )
  return {
    'whole': json.loads(whole.choices[0].message.content),
    'text': partial.model_dump(),
    'whole_usage': whole.usage.total_tokens,
    'usage': whole.usage.prompt_tokens + whole.usage.completion_tokens,
    'again': retried.name,
    'objects': [
      person.model_dump(),
      partial.model_dump(),
      fenced.create(
        response_model=Person,
        # Nothing asks a server for a fence but the words of the prompt.
        extra_body={'regex': _FENCED},
        **asked,
      ).model_dump(),
    ],
    'free': free.create(response_model=Anybody, **asked).model_dump(),
    'refused': _refused({
      mode: lambda mode=mode: completions(lib.Mode[mode]).create(
        response_model=Person, **asked
      )
      for mode in ('TOOLS', 'TOOLS_STRICT')
    }),
  }  # fmt: skip


def _wrong_once(seen: list[Any]) -> type[pydantic.BaseModel]:
  """A model whose first instance is refused."""

  class Late(Anybody):
    @pydantic.model_validator(mode='after')
    def _check(self) -> 'Late':
      seen.append(self)
      if len(seen) == 1:
        raise ValueError('not yet')
      return self

  return Late


def litellm(url: str, name: str, folder: pathlib.Path) -> Found:
  """LiteLLM as a library, by its `openai/` models."""
  import litellm as lib

  server = {
    'api_base': url, 'api_key': 'none', 'max_retries': 0, 'num_retries': 0,
  }  # fmt: skip
  model = {'model': f'openai/{name}', **server}
  message = {'role': 'user', 'content': _ASKED}
  asked = {**model, 'messages': [message], **_USUAL}
  whole = lib.completion(**asked)
  pieces = list(
    lib.completion(**asked, stream=True, stream_options={'include_usage': True})
  )
  reply = whole.choices[0].message
  again = lib.completion(**asked | {'messages': [message, reply, message]})
  schema = {
    'type': 'json_schema',
    'json_schema': {
      'name': 'p', 'strict': True, 'schema': Person.model_json_schema(),
    },
  }  # fmt: skip

  def content(form):
    found = lib.completion(**asked, response_format=form)
    return json.loads(found.choices[0].message.content)

  return {
    'whole': reply.content,
    'text': ''.join(
      choice.delta.content or '' for piece in pieces for choice in piece.choices
    ),
    'whole_usage': whole.usage.total_tokens,
    'usage': pieces[-1].usage.total_tokens,
    'again': again.choices[0].message.content,
    'plain': lib.text_completion(
      model=f'text-completion-openai/{name}', prompt=_ASKED, max_tokens=20,
      **server,
    ).choices[0].text,
    'objects': [content(Person), content(schema)],
    'free': content({'type': 'json_object'}),
    'refused': _refused({
      'tools': lambda: lib.completion(**asked, tools=[_TOOL]),
      'embeddings': lambda: lib.embedding(**model, input=['a']),
      'responses': lambda: lib.responses(**model, input='a'),
    }),
  }  # fmt: skip


def llm(url: str, name: str, folder: pathlib.Path) -> Found:
  """Datasette's `llm`, as a command and as a library."""
  os.environ['LLM_USER_PATH'] = str(folder)
  usual = {'model_name': name, 'api_base': url}
  models = [
    {'model_id': 'chat', 'supports_schema': True, 'supports_tools': True},
    {'model_id': 'text', 'completion': True},
  ]  # fmt: skip
  # JSON is YAML, too.
  (folder / 'extra-openai-models.yaml').write_text(
    json.dumps([usual | model for model in models])
  )
  import click.testing
  import llm as lib
  from llm.cli import cli

  def run(*words):
    flags = [f for pair in _USUAL.items() for f in ('-o', *map(str, pair))]
    done = click.testing.CliRunner().invoke(cli, ['-m', *words, *flags])
    assert not done.exit_code, done.output
    return done.stdout.removesuffix('\n')

  model = lib.get_model('chat')
  whole = model.prompt(_ASKED, stream=False, **_USUAL)
  stream = model.prompt(_ASKED, stream=True, **_USUAL)
  text = ''.join(stream)
  told = [whole.usage(), stream.usage()]
  talk = model.conversation()
  talk.prompt(_ASKED, **_USUAL).text()
  schema = Person.model_json_schema()

  def add(a: int) -> int:
    """Adds."""
    return a

  return {
    'whole': whole.text(),
    'text': text,
    'whole_usage': told[0].input + told[0].output,
    'usage': told[1].input + told[1].output,
    'again': talk.prompt(_ASKED, **_USUAL).text(),
    'plain': run('text', _ASKED),
    'objects': [
      json.loads(model.prompt(_ASKED, schema=Person, **_USUAL).text()),
      json.loads(run('chat', _ASKED, '--schema', json.dumps(schema))),
    ],
    'free': json.loads(run('chat', _ASKED, '-o', 'json_object', '1')),
    'refused': _refused(
      {'tools': model.prompt(_ASKED, tools=[add], **_USUAL).text}
    ),
  }


CLIENTS = {of.__name__: of for of in (langchain, instructor, litellm, llm)}

if __name__ == '__main__':
  client, url, name, folder = sys.argv[1:]
  found = CLIENTS[client](f'{url}/v1', name, pathlib.Path(folder))
  print('FOUND', json.dumps(found))
