"""OpenAI's own Python client, its retries off."""

import asyncio

import openai
import pytest

KEY = 'a-key-of-this-test'


def client_of(server, key='none', kind=openai.OpenAI):
  return kind(base_url=f'{server.url}/v1', api_key=key, max_retries=0)


@pytest.fixture(scope='module')
def client(server):
  with client_of(server) as found:
    yield found


def test_a_completion(client, server):
  found = client.completions.create(
    model=server.name, prompt='12 squared', max_tokens=9, seed=1, n=2,
    logprobs=2, echo=True, temperature=0.5, top_p=0.9, best_of=2,
    presence_penalty=0.1, frequency_penalty=0.1, logit_bias={'101': 1},
    stop=['\n'], user='me',
  )  # fmt: skip
  assert [choice.index for choice in found.choices] == [0, 1]
  for choice in found.choices:
    assert choice.text.startswith('12 squared')
    assert choice.finish_reason in ('stop', 'length')
    assert ''.join(choice.logprobs.tokens[:10]) == '12 squared'
    assert choice.logprobs.token_logprobs[0] is None
  assert found.usage.prompt_tokens == 10


def test_a_stream(client, server):
  fields = {
    'model': server.name, 'prompt': 'é 12', 'max_tokens': 60, 'seed': 4,
  }  # fmt: skip
  want = client.completions.create(**fields)
  with client.completions.create(
    **fields, stream=True, stream_options={'include_usage': True}
  ) as stream:
    events = list(stream)
  assert ''.join(c.text for e in events for c in e.choices) == (
    want.choices[0].text
  )
  assert events[-1].usage == want.usage


def test_many_at_once(server):
  async def ask():
    async with client_of(server, kind=openai.AsyncOpenAI) as client:
      fields = {'model': server.name, 'max_tokens': 30}

      async def whole(prompt):
        found = await client.completions.create(
          prompt=prompt, seed=int(prompt), **fields
        )
        return found.choices[0].text

      async def pieces(prompt):
        stream = await client.completions.create(
          prompt=prompt, seed=int(prompt), stream=True, **fields
        )
        return ''.join([e.choices[0].text async for e in stream])

      prompts = [str(i) for i in range(24)]
      return [
        await asyncio.gather(*map(kind, prompts)) for kind in (whole, pieces)
      ]

  whole, pieces = asyncio.run(ask())
  assert whole == pieces and len(set(whole)) > 12


def test_the_extensions(client, server):
  fields = {'model': server.name, 'prompt': '', 'max_tokens': 20}
  found = client.completions.create(
    **fields, extra_body={'regex': '[0-9]{4}', 'top_k': 50}
  )
  assert found.choices[0].text.isdigit() and len(found.choices[0].text) == 4
  schema = {'name': 'x', 'schema': {'type': 'boolean'}}
  found = client.completions.create(
    **fields,
    extra_body={
      'response_format': {'type': 'json_schema', 'json_schema': schema}
    },
  )
  assert found.choices[0].text in ('true', 'false')


def test_errors(client, server):
  create = client.completions.create
  with pytest.raises(openai.NotFoundError) as caught:
    create(model='gpt', prompt='a')
  assert (
    caught.value.code == 'model_not_found' and caught.value.param == 'model'
  )
  with pytest.raises(openai.BadRequestError) as caught:
    create(model=server.name, prompt='a', suffix='b')
  assert caught.value.param == 'suffix'
  with pytest.raises(openai.BadRequestError, match='nothing'):
    create(model=server.name, prompt='a', extra_body={'nothing': 1})
  with pytest.raises(openai.BadRequestError):
    create(model=server.name, prompt='a', stream=True, best_of=2)


def test_models(client, server):
  assert [model.id for model in client.models.list()] == [server.name]
  assert client.models.retrieve(server.name).object == 'model'
  with pytest.raises(openai.NotFoundError):
    client.models.retrieve('other')


def test_keys_and_rates(start_server):
  server = start_server(
    '--requests-per-minute=3', CRAFT_API_KEYS=f'{KEY},{KEY}-2'
  )
  with (
    client_of(server, 'wrong') as client,
    pytest.raises(openai.AuthenticationError),
  ):
    client.models.list()
  for key in (KEY, f'{KEY}-2'):  # each has its own minute
    with client_of(server, key) as client:
      for _ in range(3):
        client.models.list()
      with pytest.raises(openai.RateLimitError) as caught:
        client.models.list()
      assert 1 <= int(caught.value.response.headers['retry-after']) <= 20
