"""Answers that notice when their reader has gone, or takes nothing."""

import asyncio
import contextlib
from collections.abc import AsyncIterator, Iterable
from typing import Any

from starlette.responses import Response
from starlette.types import Receive, Scope, Send

from craft_jax.runtime import strict_json
from craft_jax.serve.completions import Writing
from craft_jax.serve.errors import ApiError
from craft_jax.serve.responses import Text

# In a scope's state: says whether the connection was cut as its client took
# nothing.
CUT = 'craft.cut'
_AT_ONCE = 1 << 12  # items of a list that are encoded in one call


class Gone(Exception):
  """The client has gone away."""


@contextlib.asynccontextmanager
async def watched(receive: Receive) -> AsyncIterator[None]:
  """Raises `Gone` within as soon as the client has gone away."""
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
    yield
  except asyncio.CancelledError:
    if gone:
      task.uncancel()
      raise Gone from None
    raise
  finally:
    watcher.cancel()


def encoded(value: Any) -> str:
  """JSON, made in many short calls: each of them holds the interpreter."""
  if isinstance(value, dict) and not _is_flat(value.values()):
    return _joined(
      '{}', (f'{strict_json.dumps(k)}:{encoded(v)}' for k, v in value.items())
    )
  if isinstance(value, list) and not _is_flat(value):
    return _joined('[]', map(encoded, value))
  if isinstance(value, list) and len(value) > _AT_ONCE:
    starts = range(0, len(value), _AT_ONCE)
    pieces = (_dumped(value[i : i + _AT_ONCE])[1:-1] for i in starts)
    return _joined('[]', pieces)
  return _dumped(value)


def _is_flat(values: Iterable[Any]) -> bool:
  return not any(isinstance(value, dict | list) for value in values)


def _joined(ends: str, pieces: Iterable[str]) -> str:
  return ends[0] + ','.join(pieces) + ends[1]


def _dumped(value: Any) -> str:
  return strict_json.dumps(value, separators=(',', ':'))


def event(found: Any) -> bytes:
  """One of a stream."""
  text = found if isinstance(found, str) else encoded(found)
  return f'data: {text}\n\n'.encode()


class Events(Response):
  """Completions as they are written: server-sent events.

  Args:
    writing: the texts.
    include_usage: whether a last event has the usage.
    deadline: seconds for all; 0 is none.
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

    Until then nothing is sent: whatever ends it is an answer with a status of
    its own.

    Raises:
      ApiError: it was refused, failed, or took too long.
      Gone: nobody wants it any more.
    """
    self._end = _end(self._deadline)
    async with _answered(self._writing, receive, self._deadline, self._end):
      await self._writing.begin()
      self._first = await anext(self._data)

  async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
    """Sends all there is."""
    reason = 'failed'

    async def put(data: bytes, more: bool = True) -> None:
      await send(
        {'type': 'http.response.body', 'body': data, 'more_body': more}
      )

    try:
      async with watched(receive):
        await send(
          {
            'type': 'http.response.start',
            'status': 200,
            'headers': self.raw_headers,
          }
        )
        try:
          async with asyncio.timeout_at(self._end):
            await put(self._first)
            async for data in self._data:
              await put(data)
        except TimeoutError:
          reason = 'deadline'
          await put(event(out_of_time(self._deadline).body()))
        except ApiError as e:
          reason = e.code or 'failed'
          await put(event(e.body()))
        await put(event('[DONE]'), more=False)
    except Gone:
      reason = 'disconnected'
      if (was_cut := scope.get('state', {}).get(CUT)) and was_cut():
        reason = 'slow_reader'
    finally:
      self._writing.close(reason)

  async def _events(self) -> AsyncIterator[bytes]:
    writing, head = self._writing, self._writing.head
    more: dict[str, Any] = {}
    if self._include_usage:
      more = {'usage': None}

    def piece(text: Text) -> bytes:
      choice = text.news()
      return event(head.piece([choice], **more)) if choice else b''

    async for texts in writing.news():
      for text in texts:
        # That of a prompt with its log-probabilities may be megabytes.
        if data := await writing.aside([text], piece, text):
          yield data
    if self._include_usage:
      yield event(head.piece([], usage=writing.usage()))


@contextlib.asynccontextmanager
async def awaited(receive: Receive, deadline: float) -> AsyncIterator[None]:
  """Ends what is done within when nobody wants it any more.

  Raises:
    ApiError: it took too long.
    Gone: the client has gone away.
  """
  try:
    async with watched(receive), asyncio.timeout_at(_end(deadline)):
      yield
  except TimeoutError:
    raise out_of_time(deadline) from None


def _end(deadline: float) -> float | None:
  """When a request that begins now has to be answered."""
  return asyncio.get_running_loop().time() + deadline if deadline else None


@contextlib.asynccontextmanager
async def _answered(
  writing: Writing, receive: Receive, deadline: float, end: float | None
) -> AsyncIterator[None]:
  """Closes a writing that something ends within; see `Events.begin`."""
  reason = 'failed'
  try:
    async with watched(receive), asyncio.timeout_at(end):
      yield
    reason = ''
  except TimeoutError:
    reason = 'deadline'
    raise out_of_time(deadline) from None
  except Gone:
    reason = 'disconnected'
    raise
  except ApiError as e:
    reason = e.code or 'failed'
    raise
  finally:
    if reason:
      writing.close(reason)


async def finished(writing: Writing, receive: Receive, deadline: float) -> None:
  """Waits until all is written.

  Raises:
    ApiError: it failed, or took too long.
    Gone: nobody wants it any more.
  """
  async with _answered(writing, receive, deadline, _end(deadline)):
    await writing.begin()
    async for _ in writing.news():
      pass


def out_of_time(deadline: float) -> ApiError:
  """What a request that takes too long is told."""
  return ApiError(
    503,
    f'the request took more than {deadline:g} s; ask for less',
    code='deadline',
    retry_after=1,
  )
