"""Middleware: whatever every request passes before it reaches a route."""

import asyncio
import contextlib
import functools
import hmac
import ipaddress
import re
import time
import uuid
from collections.abc import Collection, Sequence
from typing import Any

from starlette.exceptions import HTTPException
from starlette.responses import Response
from starlette.types import ASGIApp, Message, Receive, Scope, Send

from craft_jax.serve.admission import Rates
from craft_jax.serve.errors import ApiError, closing
from craft_jax.serve.logs import Log
from craft_jax.serve.openapi import CHATS, COMPLETIONS
from craft_jax.serve.service import Service
from craft_jax.serve.sse import refusal

# Paths that need no key: whether the server lives, and the page, which has no
# secrets and asks for the key itself.
OPEN = ('/health', '/ready', '/', '/page.js', '/page.css')
_PATIENCE = 16  # times the longest body, of one that is refused
LOOPBACK = ('localhost', '127.0.0.1', '::1')
# Sent with every answer.
SAFE_HEADERS = {
  'cache-control': 'no-store',
  'x-content-type-options': 'nosniff',
  'x-frame-options': 'DENY',
  'referrer-policy': 'no-referrer',
  'cross-origin-opener-policy': 'same-origin',
  'cross-origin-resource-policy': 'same-origin',
  'permissions-policy': 'camera=(), microphone=(), geolocation=()',
  'content-security-policy': "default-src 'none'; script-src 'self'; "
  "style-src 'self'; connect-src 'self'; img-src 'self' data:; "
  "base-uri 'none'; form-action 'none'; frame-ancestors 'none'",
}
_SAFE = {name.encode(): value.encode() for name, value in SAFE_HEADERS.items()}
_ID = re.compile(r'[A-Za-z0-9_-]{1,64}')
_NAMES = re.compile(r'[A-Za-z0-9-]+(, ?[A-Za-z0-9-]+){0,63}')
_MOST_NAMES = 1024  # characters of them
# A name or an address, and a port.
_HOST = re.compile(r'(\[[0-9A-Fa-f:.]+\]|[^\s:@/\[\]]+)(:[0-9]{1,5})?')


class Guard:
  """ASGI middleware: hosts, CORS, API keys, rates, sizes, times, and the log.

  Starlette's own middleware does less than tests/serve/test_security.py asks
  for: its list of hosts knows no IPv6 address and ignores what follows a colon,
  and its CORS sends back any header that a preflight names.

  Args:
    app: the application behind it.
    service: knows whether it is draining, and has the metrics.
    keys: API keys that are accepted; without any, everybody has access.
    hosts: names by which the server may be called; `*` is any.
    origins: sites whose pages may call the server.
    log: gets a line per request.
  """

  def __init__(
    self,
    app: ASGIApp,
    service: Service,
    keys: Sequence[str],
    hosts: Collection[str],
    origins: Collection[str],
    log: Log,
  ):
    self._app, self._service, self._log = app, service, log
    self._keys = [key.encode() for key in keys]
    self._hosts = {_bare(host) for host in hosts}
    self._origins = set(origins)
    self._rates = Rates(service.limits.requests_per_minute)

  async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
    """Passes a request on, or refuses it."""
    if scope['type'] != 'http':
      if scope['type'] == 'lifespan':
        await self._app(scope, receive, send)
      return
    headers = {
      name.decode('latin-1'): value.decode('latin-1')
      for name, value in reversed(scope['headers'])
    }
    mark = _mark(headers.get('x-request-id', ''))
    scope['state']['request_id'] = mark
    seen: dict[str, Any] = {'status': 0}
    begin = time.monotonic()
    origin = headers.get('origin', '')

    async def answer(message: Message) -> None:
      if message['type'] == 'http.response.start':
        seen['status'] = message['status']
        more = {'x-request-id': mark}
        # A body that was not read to its end is not waited for either.
        if self._service.draining or message['status'] in (408, 413):
          more['connection'] = 'close'
        if origin in self._origins:
          asks = headers.get('access-control-request-headers', '')
          more |= _cors(origin, asks)
        given = [
          *message['headers'],
          *((n.encode(), v.encode('latin-1')) for n, v in more.items()),
        ]
        message['headers'] = [*(_SAFE | dict(given)).items()]
      await send(message)

    try:
      sender = self._check(scope, headers)
      if scope['method'] == 'OPTIONS' and origin in self._origins:
        await Response(status_code=204)(scope, receive, answer)
      else:
        if scope['path'] not in OPEN:  # probes are not limited
          self._rates.take(sender)
        if _writes(scope):  # before its body costs anything
          self._service.admission.check_busy()
        await self._app(scope, self._bounded(receive, headers), answer)
    except ApiError as e:
      last: Send = answer
      if e.status == 413:
        last = self._hearing_out(receive, answer)
      with contextlib.suppress(OSError):  # the client may have gone
        await refusal(e)(scope, receive, last)
    finally:
      self._note(scope, mark, seen['status'], time.monotonic() - begin)

  def _check(self, scope: Scope, headers: dict[str, str]) -> str:
    """Authenticates the request.

    Returns:
      Who sent it, for the rate limit: the number of a key, or an address.

    Raises:
      ApiError: 400, 401 or 503.
    """
    # h11 bounds only headers that have not arrived as a whole.
    most = self._service.limits.max_headers
    size = sum(len(name) + len(value) for name, value in scope['headers'])
    if size + len(scope['raw_path']) + len(scope['query_string']) > most:
      raise ApiError(400, f'the headers are over {most} bytes')
    host = headers.get('host', '')
    found = _HOST.fullmatch(host)
    name = _bare(found[1]) if found else host
    if not found or not {'*', name} & self._hosts:
      raise ApiError(
        400,
        f'this server is not {name[:80]!r}; call it by its name, or start it '
        'with --allowed-host',
        code='wrong_host',
      )
    path = scope['path']
    if self._service.draining and path not in OPEN:
      raise closing()
    client = scope.get('client')
    sender = client[0] if client else ''
    if scope['method'] == 'OPTIONS' and headers.get('origin') in self._origins:
      return sender
    if self._keys and path not in OPEN:
      names = [name for name, _ in scope['headers']]
      if names.count(b'authorization') > 1:
        raise ApiError(400, 'more than one Authorization header')
      kind, _, given = headers.get('authorization', '').partition(' ')
      if kind.lower() != 'bearer':
        raise ApiError(
          401, 'no key; send the header "Authorization: Bearer KEY"',
          code='invalid_api_key',
        )  # fmt: skip
      sender = str(self._key(given.strip().encode('latin-1')))
    return sender

  def _key(self, given: bytes) -> int:
    """The number of a key; compares every key, in constant time.

    Raises:
      ApiError: 401, there is no such key.
    """
    found = -1
    for i, key in enumerate(self._keys):
      if hmac.compare_digest(key, given):
        found = i
    if found < 0:
      raise ApiError(401, 'this key is not known', code='invalid_api_key')
    return found

  def _hearing_out(self, receive: Receive, send: Send) -> Send:
    """A `send` that takes some of a refused body before the answer ends.

    A client that is cut off while it sends never reads why.
    """
    left = _PATIENCE * self._service.limits.max_body

    async def last(message: Message) -> None:
      nonlocal left
      if message['type'] != 'http.response.body':
        await send(message)
        return
      await send({**message, 'more_body': True})
      with contextlib.suppress(TimeoutError):
        async with asyncio.timeout(self._service.limits.read_deadline):
          more = True
          while more and left > 0:
            got = await receive()
            left -= len(got.get('body', b''))
            more = got.get('more_body', False)
      await send({'type': 'http.response.body', 'body': b''})

    return last

  def _bounded(self, receive: Receive, headers: dict[str, str]) -> Receive:
    """A `receive` that refuses a body that is too long or too slow."""
    limits, read = self._service.limits, 0
    end = time.monotonic() + limits.read_deadline
    length = headers.get('content-length', '')
    patience = _PATIENCE * limits.max_body
    if length.isdigit() and int(length) > limits.max_body:
      raise _too_large(limits.max_body)
    done = False

    async def take() -> Message:
      nonlocal read, done
      message = await receive()
      read += len(message.get('body', b''))
      done = not message.get('more_body', False)
      return message

    async def bounded() -> Message:
      if done:
        return await receive()
      try:
        async with asyncio.timeout(max(end - time.monotonic(), 0.001)):
          message = await take()
          # Take some of what is refused, as `_hearing_out` does.
          while limits.max_body < read <= patience and not done:
            await take()
      except TimeoutError:
        if read <= limits.max_body:
          raise HTTPException(408, 'the request took too long') from None
      if read > limits.max_body:
        raise HTTPException(413, _too_large(limits.max_body).message)
      return message

    return bounded

  def _note(self, scope: Scope, mark: str, status: int, seconds: float) -> None:
    route = scope.get('route')
    path = getattr(route, 'path', scope['path'] if _writes(scope) else 'other')
    metrics = self._service.metrics
    metrics.requests.labels(path, str(status)).inc()
    if status in (401, 413, 429, 503):
      reason = {401: 'key', 413: 'size', 429: 'busy', 503: 'closing'}[status]
      metrics.rejections.labels(reason).inc()
    self._log.note(
      'request',
      id=mark,
      method=scope['method'][:16],
      path=scope['path'][:256],
      status=status,
      seconds=round(seconds, 4),
    )


def _writes(scope: Scope) -> bool:
  """Whether a request generates text."""
  return scope['method'] == 'POST' and scope['path'] in (COMPLETIONS, CHATS)


def _mark(given: str) -> str:
  """The id that the client gave its request if harmless, else a new one."""
  return given if _ID.fullmatch(given) else uuid.uuid4().hex


@functools.lru_cache(1024)
def _bare(host: str) -> str:
  """A host in the one spelling in which names and addresses are compared."""
  name = host.strip('[]').lower().removesuffix('.')
  try:
    return str(ipaddress.ip_address(name))
  except ValueError:
    return name


def _cors(origin: str, asks: str) -> dict[str, str]:
  """CORS headers for an allowed site.

  OpenAI's clients send headers of their own: those that a preflight asks for
  are allowed if they are names.
  """
  usual = 'authorization, content-type'
  return {
    'access-control-allow-origin': origin,
    'access-control-allow-methods': 'GET, POST',
    'access-control-allow-headers': asks
    if len(asks) <= _MOST_NAMES and _NAMES.fullmatch(asks)
    else usual,
    'access-control-expose-headers': 'retry-after, x-request-id',
    'cross-origin-resource-policy': 'cross-origin',
    'vary': 'origin, access-control-request-headers',
  }


def _too_large(most: int) -> ApiError:
  return ApiError(413, f'the request is over {most} bytes', code='too_large')
