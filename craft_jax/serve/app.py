"""The application: its routes, and one form for all errors."""

import importlib.resources
import inspect
import re
from collections.abc import Callable, Coroutine
from typing import Any

from fastapi import FastAPI, Request
from fastapi.responses import Response
from fastapi.routing import APIRoute
from starlette.exceptions import HTTPException
from starlette.requests import ClientDisconnect

from craft_jax.data.text.vocabulary import SPECIALS
from craft_jax.runtime.version import __version__
from craft_jax.serve import (
  chat,
  completions,
  convert,
  metrics,
  replies,
  responses,
  schemas,
  sse,
)
from craft_jax.serve.errors import ApiError, closing
from craft_jax.serve.logs import Log, described
from craft_jax.serve.openapi import CHATS, COMPLETIONS, ERRORS, openapi, texts
from craft_jax.serve.service import Service

_PAGE = {
  '/': ('index.html', 'text/html'),
  '/page.js': ('page.js', 'text/javascript'),
  '/page.css': ('page.css', 'text/css'),
}
_LONGEST_PATH = 40  # characters of a path in an error
_JSON = re.compile(r'application/([^\s/;]+\+)?json')


def build(service: Service, log: Log, chats: bool = False) -> FastAPI:
  """Builds the application of a service.

  Args:
    service: answers the requests.
    log: takes note of unforeseen errors.
    chats: whether /v1/chat/completions is served.
  """
  app = FastAPI(
    title='Craft', version=__version__, docs_url=None, redoc_url=None,
    openapi_url=None, default_response_class=sse.Json, redirect_slashes=False,
    responses=ERRORS,
  )  # fmt: skip
  app.router.route_class = _route(service)
  _add_completions(app, service, chats)
  _add_texts(app, service)
  _add_facts(app, service)
  _add_page(app)
  _add_errors(app, log)
  app.openapi = openapi(app)  # type: ignore[method-assign]
  return app


def _route(service: Service) -> type[APIRoute]:
  """The class of routes whose `body` is parsed and checked in a thread.

  FastAPI does both on the event loop, and checks a body to its end: one with a
  million mistakes for ten seconds. The answer is encoded in a thread too.
  """

  class Route(APIRoute):
    """A route; one without a `body` is FastAPI's."""

    def get_route_handler(
      self,
    ) -> Callable[[Request], Coroutine[Any, Any, Response]]:
      """The function that answers a request."""
      names = inspect.signature(self.endpoint).parameters
      if 'body' not in names:
        return super().get_route_handler()
      kind = names['body'].annotation

      async def answer(request: Request) -> Response:
        body = await _body(service, request, kind)
        convert.check_model(body.model, service.name)
        given = {'body': body, 'request': request}
        found = await self.endpoint(**{name: given[name] for name in names})
        if isinstance(found, Response):
          return found
        return await service.aside(body.size, sse.Json, found)

      return answer

  return Route


async def _body(
  service: Service, request: Request, kind: type[schemas.RequestBody]
) -> schemas.RequestBody:
  """Reads and checks the body of a request.

  Raises:
    ApiError: the body is cut off, no JSON or wrong.
  """
  try:
    data = await request.body()
  except ClientDisconnect as e:
    raise ApiError(400, 'the request ended within its body') from e
  media = request.headers.get('content-type', '').partition(';')[0]
  if not data or not _JSON.fullmatch(media.strip().lower()):
    raise ApiError(400, schemas.NO_OBJECT)
  return await service.aside(len(data), schemas.read, kind, data)


def _add_completions(app: FastAPI, service: Service, chats: bool) -> None:
  async def written(
    body: schemas.CompletionBody, request: Request, head: responses.Head
  ) -> Response:
    """Generates texts, whole or as a stream."""
    deadline = service.limits.deadline
    taken = await completions.take(service, body, head)
    if not body.stream:
      await sse.finished(taken, request.receive, deadline)
      return await taken.aside(taken.texts, lambda: sse.Json(taken.whole()))
    options = body.stream_options
    usage = options is not None and options.include_usage
    events = sse.Events(taken, usage, deadline)
    await events.begin(request.receive)
    return events

  @app.post(
    COMPLETIONS, summary='Continue prompts', responses=texts(replies.Completion)
  )
  async def complete(
    body: schemas.CompletionBody, request: Request
  ) -> Response:
    return await written(body, request, responses.Head(service.name))

  if not chats:
    return

  @app.post(
    CHATS, summary='Continue a chat', responses=texts(replies.ChatCompletion)
  )
  async def converse(body: chat.ChatBody, request: Request) -> Response:
    try:
      most = service.limits.max_tokens
      asked = await service.aside(body.size, chat.written, body, most)
      head = chat.Head(service.name, body.top_logprobs or 0)
      return await written(asked, request, head)
    except ApiError as e:
      if e.param == 'prompt':
        e.param = 'messages'
      raise


def _add_texts(app: FastAPI, service: Service) -> None:
  @app.post('/score', summary='How likely texts are')
  async def score(body: schemas.ScoreBody, request: Request) -> dict[str, Any]:
    async with sse.awaited(request.receive, service.limits.deadline):
      return {'model': service.name, 'texts': await service.score(body)}

  @app.post(
    '/validate',
    response_model=replies.Valid,
    summary='Whether the model can write in a form',
  )
  async def validate(
    body: schemas.ValidateBody, request: Request
  ) -> dict[str, Any]:
    async with sse.awaited(request.receive, service.limits.deadline):
      return await completions.validate(service, body)

  @app.post('/tokenize', response_model=replies.Tokens, summary='A text as ids')
  async def tokenize(body: schemas.TokenizeBody) -> dict[str, Any]:
    trained = service.model.trained
    ids = await service.aside(
      body.size, convert.encode, trained.vocabulary, body.prompt
    )
    context = trained.cfg.model.context
    return {'count': len(ids), 'max_model_len': context, 'tokens': ids}

  @app.post('/detokenize', response_model=replies.Text, summary='Ids as a text')
  async def detokenize(body: schemas.DetokenizeBody) -> dict[str, Any]:
    vocabulary = service.model.trained.vocabulary
    text = await service.aside(
      body.size, convert.decode, vocabulary, body.tokens
    )
    return {'prompt': text}


def _add_facts(app: FastAPI, service: Service) -> None:
  def shown() -> dict[str, Any]:
    return {
      'id': service.name,
      'object': 'model',
      'created': service.created,
      'owned_by': 'craft',
      'context': service.model.trained.cfg.model.context,
      'step': service.model.trained.meta.step,
    }

  @app.get(
    '/tokenizer_info',
    response_model=replies.TokenizerInfo,
    summary='What the tokens are',
  )
  async def tokenizer_info() -> dict[str, Any]:
    known = service.model.trained.vocabulary
    return {
      'tokenizer_class': f'craft-{known.kind}',
      'vocab_size': known.size,
      'model_max_length': service.model.trained.cfg.model.context,
      'bos_token': SPECIALS[0],
      'eos_token': SPECIALS[1],
      'pad_token': SPECIALS[2],
    }

  @app.get('/v1/models', response_model=replies.Models, summary='The model')
  async def models() -> dict[str, Any]:
    return {'object': 'list', 'data': [shown()]}

  @app.get('/v1/models/{id}', response_model=replies.Model, summary='One model')
  async def model(id: str) -> dict[str, Any]:
    convert.check_model(id, service.name)
    return shown()

  @app.get('/openapi.json', include_in_schema=False)
  async def document() -> dict[str, Any]:
    return app.openapi()

  @app.get('/health', response_model=replies.Status, summary='Whether it lives')
  async def health() -> dict[str, str]:
    return {'status': 'ok'}

  @app.get(
    '/ready',
    response_model=replies.Status,
    summary='Whether it takes requests',
  )
  async def ready() -> dict[str, str]:
    if service.draining:
      raise closing()
    return {'status': 'ready'}

  @app.get(
    '/metrics',
    summary='Metrics, for Prometheus',
    response_class=Response,
    responses={
      200: {'content': {'text/plain': {'schema': {'type': 'string'}}}}
    },
  )
  async def prometheus() -> Response:
    return Response(
      service.metrics.text(), headers={'content-type': metrics.CONTENT_TYPE}
    )


def _add_page(app: FastAPI) -> None:
  folder = importlib.resources.files('craft_jax.serve') / 'page'

  def route(name: str, kind: str) -> Callable[[], Any]:
    data = (folder / name).read_bytes()

    async def page() -> Response:
      return Response(
        data, media_type=kind, headers={'cache-control': 'no-cache'}
      )

    return page

  for path, (name, kind) in _PAGE.items():
    app.get(path, include_in_schema=False)(route(name, kind))


def _add_errors(app: FastAPI, log: Log) -> None:
  """Sends every error in OpenAI's form, wherever it is raised."""

  @app.exception_handler(ApiError)
  async def known(request: Request, error: ApiError) -> Response:
    return sse.refusal(error)

  @app.exception_handler(HTTPException)
  async def http(request: Request, error: HTTPException) -> Response:
    says = _unserved(request, error)
    found = sse.refusal(ApiError(error.status_code, says))
    found.headers.update(error.headers or {})
    return found

  @app.exception_handler(sse.Gone)
  async def gone(request: Request, error: sse.Gone) -> Response:
    return Response(status_code=499)  # nobody reads it; the log does

  @app.exception_handler(Exception)
  async def unknown(request: Request, error: Exception) -> Response:
    mark = request.state.request_id
    log.note('error', id=mark, error=described(error))
    says = f'the server failed; the log has {mark}'
    return sse.refusal(ApiError(500, says))


def _unserved(request: Request, error: HTTPException) -> str:
  """The message for a path or a method that is not served."""
  path, allowed = request.url.path, (error.headers or {}).get('Allow')
  path = path if len(path) <= _LONGEST_PATH else f'{path[:_LONGEST_PATH]}…'
  if error.status_code == 404 and path == CHATS:
    return f'{path}: chats are not answered; start the server with --chat'
  if error.status_code == 404:
    there = [
      route.path
      for route in request.app.routes
      if getattr(route, 'include_in_schema', False)
    ]
    return f'{path} is not served; there are {", ".join(there)}'
  if error.status_code == 405 and allowed:
    return f'{path} takes {allowed}, not {request.method}'
  return str(error.detail)
