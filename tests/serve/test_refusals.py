"""What is refused has a status, whatever form the answer would have had."""

import asyncio
import dataclasses
import json
import threading
import time

import pytest

from craft_jax.inference import surprisal
from craft_jax.inference.engine.scheduler import Full
from craft_jax.serve import app as app_lib
from craft_jax.serve import completions
from craft_jax.serve.admission import Work
from craft_jax.serve.errors import closing
from craft_jax.serve.middleware import Guard
from tests.serve.conftest import in_process

_HEADERS = [(b'host', b'localhost'), (b'content-type', b'application/json')]


async def _ask(app, path, body, gone=None):
  """Status, headers and body of one request to an ASGI app.

  The client goes away at the event `gone`.
  """
  data, found = json.dumps(body).encode(), {}
  gone = gone or asyncio.Event()
  sent = iter([{'type': 'http.request', 'body': data, 'more_body': False}])

  async def receive():
    if (message := next(sent, None)) is None:
      await gone.wait()
      return {'type': 'http.disconnect'}
    return message

  async def send(message):
    if message['type'] == 'http.response.start':
      found['status'] = message['status']
      found['headers'] = dict(message['headers'])
    else:
      found['body'] = found.get('body', b'') + message['body']

  scope = {
    'type': 'http', 'method': 'POST', 'path': path, 'raw_path': path.encode(),
    'query_string': b'', 'headers': _HEADERS, 'state': {}, 'root_path': '',
    'scheme': 'http', 'http_version': '1.1', 'client': ('127.0.0.1', 1),
    'asgi': {'version': '3.0'},
  }  # fmt: skip
  await app(scope, receive, send)
  return found['status'], found['headers'], found['body']


def _app(service):
  built = app_lib.build(service, service._log, chats=True)
  return Guard(built, service, [], {'localhost'}, [], service._log)


def _fails(service, monkeypatch):
  def broken(*args):
    raise RuntimeError('out of memory')

  worker = service.running
  monkeypatch.setattr(worker._engine, 'step', broken)
  monkeypatch.setattr(worker, '_make', broken)


def _is_full(service, monkeypatch):
  def full(request):
    raise Full('the queue is full')

  monkeypatch.setattr(service.running._engine, 'submit', full)


def _closes(service, monkeypatch):
  def ends(job):
    service.running._tell(job, closing())

  monkeypatch.setattr(service.running, '_submit', ends)


def _never_begins(service, monkeypatch):
  monkeypatch.setattr(service.running, '_submit', lambda job: None)
  soon = dataclasses.replace(service.limits, deadline=0.05)
  monkeypatch.setattr(service, 'limits', soon)


@pytest.mark.parametrize('path, asked', [
  ('/v1/completions', {'prompt': '1'}),
  ('/v1/chat/completions', {'messages': [{'role': 'user', 'content': '1'}]}),
])  # fmt: skip
def test_a_stream_begins_with_its_first_text(
  model_dir, tmp_path, monkeypatch, path, asked
):
  """All that can be refused before it is, as without a stream."""
  kinds = {
    _is_full: (429, 'server_busy'), _closes: (503, 'closing'),
    _never_begins: (503, 'deadline'), _fails: (500, 'failed'),
  }  # fmt: skip

  async def all():
    async with in_process(model_dir, tmp_path) as service:
      app = _app(service)
      for kind, expected in kinds.items():
        for more in ({}, {'stream': True}):
          with monkeypatch.context() as patch:
            kind(service, patch)
            body = asked | more | {'max_tokens': 5}
            status, headers, body = await _ask(app, path, body)
          error = json.loads(body)['error']
          assert (status, error['code']) == expected
          assert int(headers[b'retry-after']) >= 1
      assert not service.admission._claims

  asyncio.run(all())


@pytest.mark.parametrize('path, asked', [
  ('/score', {'text': 'a'}), ('/validate', {'regex': 'a'}),
  ('/v1/completions', {'prompt': 'a', 'beam_width': 2}),
  ('/v1/completions', {'prompt': 'ab', 'echo': True, 'logprobs': 1}),
])  # fmt: skip
def test_what_nobody_awaits_ends(model_dir, tmp_path, monkeypatch, path, asked):
  """As the client has gone, or as it is out of time; and so do its claims."""
  begun = threading.Event()

  def endless(*args, **options):
    while True:
      begun.set()
      time.sleep(0.001)
      yield 1

  async def endless_task(*args):
    begun.set()
    await asyncio.Event().wait()

  monkeypatch.setattr(surprisal, 'score_steps', endless)
  monkeypatch.setattr(completions, 'beam_steps', endless)
  monkeypatch.setattr(completions, 'echo_steps', endless)

  async def all():
    async with in_process(model_dir, tmp_path) as service:
      monkeypatch.setattr(service.compiler, 'run', endless_task)
      app = _app(service)
      for seconds, status in ((0, 499), (0.05, 503)):
        begun.clear()
        service.limits = dataclasses.replace(service.limits, deadline=seconds)
        gone = asyncio.Event()
        task = asyncio.create_task(_ask(app, path, asked, gone))
        # Out of time, it may be refused before its thread begins.
        while not (begun.is_set() or task.done()):
          await asyncio.sleep(0.01)
        if status == 499:
          gone.set()
        assert (await task)[0] == status
        assert not service.admission._claims
        while service.lingers:  # the turn under way
          await asyncio.sleep(0.01)

  asyncio.run(all())


_DRAWN = [
  {}, {'n': 3}, {'best_of': 3}, {'stream': True}, {'echo': True, 'logprobs': 1},
  {'regex': '[a-z]+'}, {'messages': [{'role': 'user', 'content': 'a'}]},
]  # fmt: skip
_BESIDE = [
  {'beam_width': 2}, {'echo': True, 'logprobs': 0},
  {'echo': True, 'logprobs': 0, 'max_tokens': 0},
  {'echo': True, 'logprobs': 0, 'stream': True}, {'text': 'many words'},
]  # fmt: skip


def test_every_kind_of_request_is_counted(model_dir, tmp_path):
  """Whichever side is full, what has to go there is told so at once."""

  async def all():
    async with in_process(model_dir, tmp_path) as service:
      app, admission = _app(service), service.admission

      async def ask(fields):
        path = '/v1/completions'
        if 'messages' in fields:
          path = '/v1/chat/completions'
        if 'text' in fields:
          path = '/score'
        elif 'messages' not in fields:
          fields = {'prompt': 'many words', 'max_tokens': 4} | fields
        status, headers, body = await _ask(app, path, fields)
        if status != 200:
          assert json.loads(body)['error']['code'] == 'server_busy'
          assert int(headers[b'retry-after']) >= 1
        return status

      much = 300 * round(admission.rate)
      ahead = admission.enter(Work(texts=2, chars=much // 3))
      assert [await ask(fields) for fields in _DRAWN] == [429] * len(_DRAWN)
      assert await ask({'text': 'many words'}) == 200
      ahead.release()
      ahead = admission.enter(Work(beams=1, chars=much // 2))
      # A search goes after searches, and lets the others have turns.
      assert [await ask(fields) for fields in _BESIDE] == [
        429,
        200,
        200,
        200,
        200,
      ]
      assert await ask({'n': 3}) == 200
      ahead.release()
      for fields in _DRAWN + _BESIDE:
        assert await ask(fields) == 200
      assert not admission._claims
      # The speeds of both kinds are known by then, unless all was compiled.
      for fields in _BESIDE:
        await ask(fields)
      assert admission.beams.rate and admission.scores.rate

  asyncio.run(all())
