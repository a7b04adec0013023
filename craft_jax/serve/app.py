"""The routes, and the document that describes them."""

import importlib.resources
import json
from collections.abc import Callable
from typing import Any

from fastapi import FastAPI, Request
from fastapi.exceptions import RequestValidationError
from fastapi.openapi.utils import get_openapi
from fastapi.responses import JSONResponse, Response
from pydantic import BaseModel
from starlette.exceptions import HTTPException

from craft_jax import __version__
from craft_jax.serve import (
  answers,
  bodies,
  chat,
  fields,
  metrics,
  replies,
  stream,
  writing,
)
from craft_jax.serve.errors import ApiError
from craft_jax.serve.logs import Log, described
from craft_jax.serve.service import Service
from craft_jax.text.vocabulary import SPECIALS

_PAGE = {
  '/': ('index.html', 'text/html'),
  '/page.js': ('page.js', 'text/javascript'),
  '/page.css': ('page.css', 'text/css'),
}
_CHATS = '/v1/chat/completions'
# When each status of an error is sent.
WRONG = {
  400: 'the request is wrong; `param` names the field',
  401: 'no key, or one that is not known',
  404: 'there is no such model or path',
  405: 'the path has another method',
  408: 'the request did not arrive in time',
  413: 'the request is too large',
  429: 'too busy, or too many requests; see Retry-After',
  500: 'the model failed',
  503: 'closing down, or out of time',
}


class Json(JSONResponse):
  """In ASCII: half a surrogate, which UTF-8 cannot have, comes back as sent."""

  def render(self, content: Any) -> bytes:
    """The body."""
    return json.dumps(content, allow_nan=False, separators=(',', ':')).encode()


def build(service: Service, log: Log, chats: bool = False) -> FastAPI:
  """All routes of a service; those of chats only if they are wanted."""
  app = FastAPI(
    title='Craft', version=__version__, docs_url=None, redoc_url=None,
    openapi_url=None, default_response_class=Json, redirect_slashes=False,
  )  # fmt: skip
  _add_completions(app, service)
  if chats:
    _add_chats(app, service)
  _add_texts(app, service)
  _add_facts(app, service)
  _add_probes(app, service)
  _add_page(app)
  _add_errors(app, log)
  app.openapi = _openapi(app)  # type: ignore[method-assign]
  return app


def _refusals(*statuses: int) -> dict[int | str, dict[str, Any]]:
  """The errors of a route, for the document."""
  reference = {'$ref': '#/components/schemas/Error'}
  return {
    status: {
      'description': WRONG[status],
      'content': {'application/json': {'schema': reference}},
    }
    for status in statuses
  }


# Of a stream: its data is the object, an error, or `[DONE]`.
_EVENT = {
  'type': 'object',
  'properties': {'data': {'type': 'string'}},
  'required': ['data'],
}
_ANY = (400, 401, 405, 408, 413, 429, 500, 503)
_USUAL = (401, 405, 429, 500, 503)  # of what reads no body


def _texts(kind: type[BaseModel]) -> dict[int | str, dict[str, Any]]:
  """The answers of a route that writes, for the document."""
  return _refusals(*_ANY, 404) | {
    200: {
      'model': kind,
      'description': 'the texts; with `stream` server-sent events of the '
      'same form, the last of which is `[DONE]`',
      'content': {'text/event-stream': {'schema': _EVENT}},
    }
  }


async def _written(
  service: Service,
  body: bodies.CompletionBody,
  request: Request,
  head: type[answers.Head] = answers.Head,
) -> Response:
  """Texts, whole or as they come."""
  deadline = service.limits.deadline
  taken = await writing.take(service, body, head)
  if not body.stream:
    return Json(await stream.finished(taken, request.receive, deadline))
  try:
    await taken.begin()
  except BaseException:
    taken.close('failed')
    raise
  options = body.stream_options
  usage = options is not None and options.include_usage
  return stream.Events(taken, usage, deadline)


def _add_completions(app: FastAPI, service: Service) -> None:
  @app.post(
    '/v1/completions',
    summary='Continue prompts',
    responses=_texts(replies.Completion),
  )
  async def completions(
    body: bodies.CompletionBody, request: Request
  ) -> Response:
    return await _written(service, body, request)


def _add_chats(app: FastAPI, service: Service) -> None:
  @app.post(
    _CHATS,
    summary='Continue a chat',
    responses=_texts(replies.ChatCompletion),
  )
  async def chats(body: chat.ChatBody, request: Request) -> Response:
    try:
      return await _written(service, chat.written(body), request, chat.Head)
    except ApiError as e:
      if e.param == 'prompt':
        e.param = 'messages'
      raise


def _add_texts(app: FastAPI, service: Service) -> None:
  def vocabulary():
    return service.model.trained.vocabulary

  @app.post(
    '/score', summary='How likely texts are', responses=_refusals(*_ANY, 404)
  )
  async def score(body: bodies.ScoreBody) -> dict[str, Any]:
    return {'model': service.name, 'texts': await service.score(body)}

  @app.post(
    '/validate',
    response_model=replies.Valid,
    summary='Whether the model can write in a form',
    responses=_refusals(*_ANY, 404),
  )
  async def validate(body: bodies.ValidateBody) -> dict[str, Any]:
    return await writing.validate(service, body)

  @app.post(
    '/tokenize',
    response_model=replies.Tokens,
    summary='A text as ids',
    responses=_refusals(*_ANY, 404),
  )
  async def tokenize(body: bodies.TokenizeBody) -> dict[str, Any]:
    fields.check_model(body.model, service.name)
    ids = fields.encode(vocabulary(), body.prompt)
    context = service.model.trained.cfg.model.context
    return {'count': len(ids), 'max_model_len': context, 'tokens': ids}

  @app.post(
    '/detokenize',
    response_model=replies.Text,
    summary='Ids as a text',
    responses=_refusals(*_ANY, 404),
  )
  async def detokenize(body: bodies.DetokenizeBody) -> dict[str, Any]:
    fields.check_model(body.model, service.name)
    return {'prompt': fields.decode(vocabulary(), body.tokens)}

  @app.get(
    '/tokenizer_info',
    response_model=replies.TokenizerInfo,
    summary='What the symbols are',
    responses=_refusals(*_USUAL),
  )
  async def tokenizer_info() -> dict[str, Any]:
    known = vocabulary()
    return {
      'tokenizer_class': f'craft-{known.kind}',
      'vocab_size': known.size,
      'model_max_length': service.model.trained.cfg.model.context,
      'bos_token': SPECIALS[0],
      'eos_token': SPECIALS[1],
      'pad_token': SPECIALS[2],
    }


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
    '/v1/models',
    response_model=replies.Models,
    summary='The model',
    responses=_refusals(*_USUAL),
  )
  async def models() -> dict[str, Any]:
    return {'object': 'list', 'data': [shown()]}

  @app.get(
    '/v1/models/{id}',
    response_model=replies.Model,
    summary='One model',
    responses=_refusals(*_USUAL, 404),
  )
  async def model(id: str) -> dict[str, Any]:
    fields.check_model(id, service.name)
    return shown()

  @app.get('/openapi.json', include_in_schema=False)
  async def document() -> dict[str, Any]:
    return app.openapi()


def _add_probes(app: FastAPI, service: Service) -> None:
  @app.get(
    '/health',
    response_model=replies.Status,
    summary='Whether it lives',
    responses=_refusals(405),
  )
  async def health() -> dict[str, str]:
    return {'status': 'ok'}

  @app.get(
    '/ready',
    response_model=replies.Status,
    summary='Whether it takes requests',
    responses=_refusals(405, 503),
  )
  async def ready() -> dict[str, str]:
    if service.draining:
      raise ApiError(503, 'the server is closing down', code='closing')
    return {'status': 'ready'}

  @app.get(
    '/metrics',
    summary='Figures, for Prometheus',
    response_class=Response,
    responses=_refusals(*_USUAL)
    | {200: {'content': {'text/plain': {'schema': {'type': 'string'}}}}},
  )
  async def figures() -> Response:
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
  """Every error in OpenAI's form, whoever raises it."""

  def answer(error: ApiError) -> Json:
    return Json(error.body(), error.status, headers=error.headers())

  @app.exception_handler(ApiError)
  async def known(request: Request, error: ApiError) -> Json:
    return answer(error)

  @app.exception_handler(RequestValidationError)
  async def invalid(request: Request, error: RequestValidationError) -> Json:
    return answer(_first(error))

  @app.exception_handler(HTTPException)
  async def http(request: Request, error: HTTPException) -> Json:
    says = str(error.detail)
    if error.status_code == 404 and request.url.path == _CHATS:
      says = 'chats are not answered; start the server with --chat'
    found = answer(ApiError(error.status_code, says))
    found.headers.update(error.headers or {})
    return found

  @app.exception_handler(stream.Gone)
  async def gone(request: Request, error: stream.Gone) -> Response:
    return Response(status_code=499)  # nobody reads it; the log does

  @app.exception_handler(Exception)
  async def unknown(request: Request, error: Exception) -> Json:
    mark = request.state.request_id
    log.note('error', id=mark, error=described(error))
    return answer(ApiError(500, f'the server failed; the log has {mark}'))


def _first(error: RequestValidationError) -> ApiError:
  """The first mistake, by the name of its field.

  A value that may be of several kinds has a mistake for each of them.
  """
  one = error.errors()[0]
  if one['type'] == 'json_invalid':
    return ApiError(400, f'the body is not JSON: {one["ctx"]["error"]}')
  where = [str(part) for part in one['loc'][1:]]
  name = where[0] if where else None
  if one['type'] == 'extra_forbidden':
    path = '.'.join(where)
    return ApiError(400, f'{path} is not a field of this request', param=name)
  if name is None:
    return ApiError(400, 'the body must be a JSON object, and say so by its '
                    'content type, application/json')  # fmt: skip
  says = {
    'prompt': 'must be a text, a list of texts, ids or lists of ids',
    'suffix': 'is not supported: texts go on only; leave it out',
  }.get(name, one['msg'].replace('Input', 'it'))
  return ApiError(400, f'{name}: {says}', param=name)


def _openapi(app: FastAPI) -> Callable[[], dict[str, Any]]:
  """The document without FastAPI's 422, which is never sent."""

  def document() -> dict[str, Any]:
    if app.openapi_schema:
      return app.openapi_schema
    found = get_openapi(title=app.title, version=app.version, routes=app.routes)
    schemas = found['components']['schemas']
    for name in ('HTTPValidationError', 'ValidationError'):
      schemas.pop(name, None)
    text = {'type': ['string', 'null']}
    error = {'message': {'type': 'string'}, 'type': {'type': 'string'},
             'param': text, 'code': text}  # fmt: skip
    inner = {'type': 'object', 'properties': error, 'required': list(error)}
    schemas['Error'] = {
      'type': 'object',
      'properties': {'error': inner},
      'required': ['error'],
    }
    for path in found['paths'].values():
      for operation in path.values():
        operation['responses'].pop('422', None)
    found['components']['securitySchemes'] = {
      'key': {'type': 'http', 'scheme': 'bearer'}
    }
    found['security'] = [{'key': []}, {}]
    app.openapi_schema = found
    return found

  return document
