"""Streams of server-sent events, and clients that have gone away."""

import asyncio
import contextlib
from collections.abc import AsyncIterator, Iterable
from typing import Any

from starlette.responses import JSONResponse, Response
from starlette.types import Receive, Scope, Send

from craft_jax.runtime import strict_json
from craft_jax.serve.completions import Writing
from craft_jax.serve.errors import ApiError
from craft_jax.serve.responses import Text

# Key in a scope's state: a function that says whether the connection was cut
# because its client took nothing.
CUT = 'craft.cut'
_AT_ONCE = 1 << 12  # items of a list that are encoded in one call


class Gone(Exception):
  """The client has gone away."""

  code = 'disconnected'


@contextlib.asynccontextmanager
async def awaited(
  receive: Receive, deadline: float, end: float | None = None
) -> AsyncIterator[None]:
  """Ends what is done within when nobody waits for it any more.

  Args:
    receive: tells of the client.
    deadline: seconds for the whole request; 0 is no bound.
    end: on the loop's clock, if the request began before.

  Raises:
    ApiError: it took too long.
    Gone: the client has gone away.
  """
  task = asyncio.current_task()
  assert task is not None
  gone = False

  async def watch() -> None:
    nonlocal gone
    while (await receive())['type'] != 'http.disconnect':
      pass
    gone = True
    task.cancel()

  watcher = asyncio.create_task(watch())
  try:
    async with asyncio.timeout_at(end or _end(deadline)):
      yield
  except TimeoutError:
    raise ApiError(
      503,
      f'the request took more than {deadline:g} s; ask for less',
      code='deadline',
      retry_after=1,
    ) from None
  except asyncio.CancelledError:
    if gone:
      task.uncancel()
      raise Gone from None
    raise
  finally:
    watcher.cancel()


def _end(deadline: float) -> float | None:
  """When a request that begins now has to be answered."""
  return asyncio.get_running_loop().time() + deadline if deadline else None


def encoded(value: Any) -> str:
  """JSON, made in many short calls: each of them holds the interpreter lock."""
  if isinstance(value, dict) and not _is_flat(value.values()):
    pairs = (f'{strict_json.dumps(k)}:{encoded(v)}' for k, v in value.items())
    return f'{{{",".join(pairs)}}}'
  if isinstance(value, list) and not _is_flat(value):
    return f'[{",".join(map(encoded, value))}]'
  if isinstance(value, list) and len(value) > _AT_ONCE:
    starts = range(0, len(value), _AT_ONCE)
    pieces = (_dumped(value[i : i + _AT_ONCE])[1:-1] for i in starts)
    return f'[{",".join(pieces)}]'
  return _dumped(value)


def _is_flat(values: Iterable[Any]) -> bool:
  return not any(isinstance(value, dict | list) for value in values)


def _dumped(value: Any) -> str:
  return strict_json.dumps(value, separators=(',', ':'))


class Json(JSONResponse):
  """JSON in ASCII, which breaks no terminal and no log."""

  def render(self, content: Any) -> bytes:
    """Encodes the body."""
    return encoded(content).encode()


def refusal(error: ApiError) -> Json:
  """The answer that an error is."""
  return Json(error.body(), error.status, headers=error.headers())


def event(found: Any) -> bytes:
  """A server-sent event."""
  text = found if isinstance(found, str) else encoded(found)
  return f'data: {text}\n\n'.encode()


class Events(Response):
  """Completions as they are generated: server-sent events.

  Args:
    writing: the texts.
    include_usage: whether a last event has the usage.
    deadline: seconds for all; 0 is no bound.
  """

  media_type = 'text/event-stream'

  def __init__(self, writing: Writing, include_usage: bool, deadline: float):
    super().__init__()
    del self.headers['content-length']
    # nginx would hold events back.
    self.headers['x-accel-buffering'] = 'no'
    self.headers['cache-control'] = 'no-store'
    self._writing, self._include_usage = writing, include_usage
    self._deadline = deadline
    self._end: float | None = None
    self._data = self._events()
    self._first = b''

  async def begin(self, receive: Receive) -> None:
    """Waits for the first event.

    Nothing is sent before: whatever ends the request until then is an answer
    with a status of its own.

    Raises:
      ApiError: it was refused, failed, or took too long.
      Gone: the client has gone away.
    """
    self._end = _end(self._deadline)
    async with _closing(self._writing, receive, self._deadline, self._end):
      await self._writing.begin()
      self._first = await anext(self._data)

  async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
    """Sends all events."""
    reason = 'failed'

    async def put(data: bytes, more: bool = True) -> None:
      await send(
        {'type': 'http.response.body', 'body': data, 'more_body': more}
      )

    try:
      try:
        async with awaited(receive, self._deadline, self._end):
          await send(
            {
              'type': 'http.response.start',
              'status': 200,
              'headers': self.raw_headers,
            }
          )
          await put(self._first)
          async for data in self._data:
            await put(data)
      except ApiError as e:
        reason = e.code or reason
        await put(event(e.body()))
      await put(event('[DONE]'), more=False)
    except Gone as e:
      was_cut = scope.get('state', {}).get(CUT)
      reason = 'slow_reader' if was_cut and was_cut() else e.code
    finally:
      self._writing.close(reason)

  async def _events(self) -> AsyncIterator[bytes]:
    writing, head = self._writing, self._writing.head
    more: dict[str, Any] = {'usage': None} if self._include_usage else {}

    def encode(text: Text) -> bytes:
      choice = text.news()
      return event(head.object([choice], True, **more)) if choice else b''

    async for texts in writing.news():
      for text in texts:
        # The event of a prompt with its log-probabilities may be megabytes.
        if data := await writing.aside([text], encode, text):
          yield data
    if self._include_usage:
      yield event(head.object([], True, usage=writing.usage()))


@contextlib.asynccontextmanager
async def _closing(
  writing: Writing, receive: Receive, deadline: float, end: float | None = None
) -> AsyncIterator[None]:
  """Closes a writing that something ends within, as `awaited` does."""
  try:
    async with awaited(receive, deadline, end):
      yield
  except BaseException as e:
    writing.close(getattr(e, 'code', None) or 'failed')
    raise


async def finished(writing: Writing, receive: Receive, deadline: float) -> None:
  """Waits until all texts are generated.

  Raises:
    ApiError: it failed, or took too long.
    Gone: the client has gone away.
  """
  async with _closing(writing, receive, deadline):
    await writing.begin()
    async for _ in writing.news():
      pass
