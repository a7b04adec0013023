"""The OpenAPI document: what FastAPI makes of the routes, and their errors."""

from collections.abc import Callable
from typing import Any

from fastapi import FastAPI
from fastapi.openapi.utils import get_openapi
from pydantic import BaseModel

from craft_jax.serve import replies

# Paths that the engine is needed for.
COMPLETIONS, CHATS = '/v1/completions', '/v1/chat/completions'
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
# The header that some of them have.
_HEADERS = {
  401: 'WWW-Authenticate',
  405: 'Allow',
  429: 'Retry-After',
  503: 'Retry-After',
}
_WORD = {'required': True, 'schema': {'type': 'string'}}
# The errors of every route: any request may be too large or lack its key.
ERRORS: dict[int | str, dict[str, Any]] = {
  status: {
    'description': says,
    'model': replies.Error,
    'headers': {_HEADERS[status]: _WORD} if status in _HEADERS else {},
  }
  for status, says in WRONG.items()
}
# Of a stream: its data is the object, an error, or `[DONE]`.
_EVENT = {
  'type': 'object',
  'properties': {'data': {'type': 'string'}},
  'required': ['data'],
}


def texts(kind: type[BaseModel]) -> dict[int | str, dict[str, Any]]:
  """The successful answers of a route that generates text."""
  return {
    200: {
      'model': kind,
      'description': 'the texts; with `stream` server-sent events of the '
      'same form, the last of which is `[DONE]`',
      'content': {'text/event-stream': {'schema': _EVENT}},
    }
  }


def openapi(app: FastAPI) -> Callable[[], dict[str, Any]]:
  """The document without FastAPI's 422, which is never sent."""

  def document() -> dict[str, Any]:
    if app.openapi_schema:
      return app.openapi_schema
    found = get_openapi(title=app.title, version=app.version, routes=app.routes)
    for name in ('HTTPValidationError', 'ValidationError'):
      found['components']['schemas'].pop(name, None)
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
