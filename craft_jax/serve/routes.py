"""Bodies in and objects out, without keeping the event loop from others.

What takes time in proportion to a size is done by `Service.aside`.
"""

import inspect
import re
from collections.abc import Callable, Coroutine
from typing import Any

from fastapi.exceptions import RequestValidationError
from fastapi.responses import JSONResponse
from fastapi.routing import APIRoute
from starlette.requests import ClientDisconnect, Request
from starlette.responses import Response

from craft_jax.serve.errors import ApiError
from craft_jax.serve.schemas import Body, read
from craft_jax.serve.service import Service
from craft_jax.serve.sse import encoded

_JSON = re.compile(r'application/([^\s/;]+\+)?json')
_MISSING = {'type': 'missing', 'loc': ('body',), 'msg': 'Field required'}


class Json(JSONResponse):
  """In ASCII, which breaks no terminal and no log."""

  def render(self, content: Any) -> bytes:
    """The body."""
    return encoded(content).encode()


def route(service: Service) -> type[APIRoute]:
  """Routes whose `body` is read and checked aside, as is their answer written.

  FastAPI does both on the event loop, and checks a body to its end: that of a
  million mistakes for ten seconds.
  """

  class Route(APIRoute):
    """One of them; without a `body` it is FastAPI's."""

    def get_route_handler(
      self,
    ) -> Callable[[Request], Coroutine[Any, Any, Response]]:
      """What answers a request."""
      names = inspect.signature(self.endpoint).parameters
      if 'body' not in names:
        return super().get_route_handler()
      kind = names['body'].annotation

      async def answer(request: Request) -> Response:
        body = await _body(service, request, kind)
        given = {'body': body, 'request': request}
        found = await self.endpoint(**{name: given[name] for name in names})
        if isinstance(found, Response):
          return found
        return await service.aside(body.size, Json, found)

      return answer

  return Route


async def _body(service: Service, request: Request, kind: type[Body]) -> Body:
  """What was sent, checked.

  Raises:
    ApiError: any.
    RequestValidationError: its first mistakes.
  """
  try:
    data = await request.body()
  except ClientDisconnect as e:
    raise ApiError(400, 'the request ended within its body') from e
  media = request.headers.get('content-type', '').partition(';')[0]
  if not data or not _JSON.fullmatch(media.strip().lower()):
    raise RequestValidationError([_MISSING])
  return await service.aside(len(data), read, kind, data)
