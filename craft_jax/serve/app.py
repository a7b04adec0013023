"""The routes, and one form for all errors."""

import functools
import importlib.resources
from collections.abc import Callable
from typing import Any

from fastapi import FastAPI, Request
from fastapi.exceptions import RequestValidationError
from fastapi.responses import Response
from starlette.exceptions import HTTPException

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
from craft_jax.serve.openapi import (
  ANY,
  CHATS,
  COMPLETIONS,
  USUAL,
  openapi,
  refusals,
  texts,
)
from craft_jax.serve.routes import Json, route
from craft_jax.serve.service import Service

_PAGE = {
  '/': ('index.html', 'text/html'),
  '/page.js': ('page.js', 'text/javascript'),
  '/page.css': ('page.css', 'text/css'),
}


_LONGEST_PATH = 40  # that is told
_CALLS = frozenset({
  'tools', 'tool_choice', 'parallel_tool_calls', 'functions', 'function_call',
})  # fmt: skip


def build(service: Service, log: Log, chats: bool = False) -> FastAPI:
  """All routes of a service; those of chats only if they are wanted."""
  app = FastAPI(
    title='Craft', version=__version__, docs_url=None, redoc_url=None,
    openapi_url=None, default_response_class=Json, redirect_slashes=False,
  )  # fmt: skip
  app.router.route_class = route(service)
  _add_completions(app, service)
  if chats:
    _add_chats(app, service)
  _add_texts(app, service)
  _add_facts(app, service)
  _add_probes(app, service)
  _add_page(app)
  _add_errors(app, log)
  app.openapi = openapi(app)  # type: ignore[method-assign]
  return app


async def _written(
  service: Service,
  body: schemas.CompletionBody,
  request: Request,
  head: Callable[[str], responses.Head] = responses.Head,
) -> Response:
  """Texts, whole or as they come."""
  deadline = service.limits.deadline
  taken = await completions.take(service, body, head)
  if not body.stream:
    await sse.finished(taken, request.receive, deadline)
    return await taken.aside(taken.texts, lambda: Json(taken.whole()))
  options = body.stream_options
  usage = options is not None and options.include_usage
  events = sse.Events(taken, usage, deadline)
  await events.begin(request.receive)
  return events


def _add_completions(app: FastAPI, service: Service) -> None:
  @app.post(
    COMPLETIONS,
    summary='Continue prompts',
    responses=texts(replies.Completion),
  )
  async def completions(
    body: schemas.CompletionBody, request: Request
  ) -> Response:
    return await _written(service, body, request)


def _add_chats(app: FastAPI, service: Service) -> None:
  @app.post(
    CHATS,
    summary='Continue a chat',
    responses=texts(replies.ChatCompletion),
  )
  async def chats(body: chat.ChatBody, request: Request) -> Response:
    try:
      most = service.limits.max_tokens
      asked = await service.aside(body.size, chat.written, body, most)
      head = functools.partial(chat.Head, most=body.top_logprobs or 0)
      return await _written(service, asked, request, head)
    except ApiError as e:
      if e.param == 'prompt':
        e.param = 'messages'
      raise


def _add_texts(app: FastAPI, service: Service) -> None:
  def vocabulary():
    return service.model.trained.vocabulary

  @app.post(
    '/score', summary='How likely texts are', responses=refusals(*ANY, 404)
  )
  async def score(body: schemas.ScoreBody, request: Request) -> dict[str, Any]:
    async with sse.awaited(request.receive, service.limits.deadline):
      return {'model': service.name, 'texts': await service.score(body)}

  @app.post(
    '/validate',
    response_model=replies.Valid,
    summary='Whether the model can write in a form',
    responses=refusals(*ANY, 404),
  )
  async def validate(
    body: schemas.ValidateBody, request: Request
  ) -> dict[str, Any]:
    async with sse.awaited(request.receive, service.limits.deadline):
      return await completions.validate(service, body)

  @app.post(
    '/tokenize',
    response_model=replies.Tokens,
    summary='A text as ids',
    responses=refusals(*ANY, 404),
  )
  async def tokenize(body: schemas.TokenizeBody) -> dict[str, Any]:
    convert.check_model(body.model, service.name)
    ids = await service.aside(
      body.size, convert.encode, vocabulary(), body.prompt
    )
    context = service.model.trained.cfg.model.context
    return {'count': len(ids), 'max_model_len': context, 'tokens': ids}

  @app.post(
    '/detokenize',
    response_model=replies.Text,
    summary='Ids as a text',
    responses=refusals(*ANY, 404),
  )
  async def detokenize(body: schemas.DetokenizeBody) -> dict[str, Any]:
    convert.check_model(body.model, service.name)
    text = await service.aside(
      body.size, convert.decode, vocabulary(), body.tokens
    )
    return {'prompt': text}

  @app.get(
    '/tokenizer_info',
    response_model=replies.TokenizerInfo,
    summary='What the tokens are',
    responses=refusals(*USUAL),
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
    responses=refusals(*USUAL),
  )
  async def models() -> dict[str, Any]:
    return {'object': 'list', 'data': [shown()]}

  @app.get(
    '/v1/models/{id}',
    response_model=replies.Model,
    summary='One model',
    responses=refusals(*USUAL, 404),
  )
  async def model(id: str) -> dict[str, Any]:
    convert.check_model(id, service.name)
    return shown()

  @app.get('/openapi.json', include_in_schema=False)
  async def document() -> dict[str, Any]:
    return app.openapi()


def _add_probes(app: FastAPI, service: Service) -> None:
  @app.get(
    '/health',
    response_model=replies.Status,
    summary='Whether it lives',
    responses=refusals(405),
  )
  async def health() -> dict[str, str]:
    return {'status': 'ok'}

  @app.get(
    '/ready',
    response_model=replies.Status,
    summary='Whether it takes requests',
    responses=refusals(405, 503),
  )
  async def ready() -> dict[str, str]:
    if service.draining:
      raise closing()
    return {'status': 'ready'}

  @app.get(
    '/metrics',
    summary='Figures, for Prometheus',
    response_class=Response,
    responses=refusals(*USUAL)
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
    found = answer(ApiError(error.status_code, _unserved(request, error)))
    found.headers.update(error.headers or {})
    return found

  @app.exception_handler(sse.Gone)
  async def gone(request: Request, error: sse.Gone) -> Response:
    return Response(status_code=499)  # nobody reads it; the log does

  @app.exception_handler(Exception)
  async def unknown(request: Request, error: Exception) -> Json:
    mark = request.state.request_id
    log.note('error', id=mark, error=described(error))
    return answer(ApiError(500, f'the server failed; the log has {mark}'))


def _unserved(request: Request, error: HTTPException) -> str:
  """What is told of a path or a method that is not served."""
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


def _first(error: RequestValidationError) -> ApiError:
  """The first mistake, by the name of its field.

  A value that may be of several kinds has a mistake for each of them: that of
  the kind which fits furthest is told.
  """
  errors = error.errors()
  one = errors[0]
  if one['type'] == 'json_invalid':
    return ApiError(400, f'the body is not JSON: {one["ctx"]["error"]}')
  where = _fields(one, error.body)
  for other in errors[1:]:
    inner = _fields(other, error.body)
    if len(inner) > len(where) and inner[: len(where)] == where:
      one, where = other, inner
  if not where:
    return ApiError(400, 'the body must be a JSON object, and say so by its '
                    'content type, application/json')  # fmt: skip
  name, path = where[0], '.'.join(where)
  if one['type'] == 'extra_forbidden':
    more = ''
    if name in _CALLS:
      more = ': no tools are called; for JSON there is response_format'
    return ApiError(
      400, f'{path} is not a field of this request{more}', param=name
    )
  if one['type'] == 'missing':
    return ApiError(400, f'{path}: it is needed', param=name)
  says = {
    'prompt': 'must be a text, a list of texts, ids or lists of ids',
    'suffix': 'is not supported: texts go on only; leave it out',
  }
  if name in says:
    return ApiError(400, f'{name}: {says[name]}', param=name)
  return ApiError(
    400, f'{path}: {one["msg"].replace("Input", "it")}', param=name
  )


def _fields(error: dict[str, Any], body: Any) -> list[str]:
  """The names of fields and numbers of items that lead to a mistake.

  Among them pydantic has the kinds that it tried, where there are several.
  """
  found, place = [], error['loc'][1:]
  for i, part in enumerate(place):
    if body is error['input'] and error['type'] != 'missing':
      break  # what follows is a kind, though a key may have its name
    if isinstance(body, dict):
      inside = part in body
    else:
      inside = isinstance(body, list) and isinstance(part, int)
    if inside:
      body = body[part]
    if inside or (error['type'] == 'missing' and i == len(place) - 1):
      found.append(str(part))
  return found
