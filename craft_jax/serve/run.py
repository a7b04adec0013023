"""uvicorn around the app: sockets, signals, and an orderly end."""

import asyncio
import contextlib
import json
import signal
from collections.abc import Iterator
from typing import Any

import h11
import uvicorn
from starlette.types import ASGIApp
from uvicorn.protocols.http.h11_impl import H11Protocol

from craft_jax.serve.errors import ApiError
from craft_jax.serve.guard import SAFE_HEADERS
from craft_jax.serve.limits import Limits
from craft_jax.serve.service import Service
from craft_jax.serve.stream import ABORT

_TOLD = 1.0  # seconds before the end in which all are told of it


class Protocol(H11Protocol):
  """One connection, with a bound on their number and on the time of headers.

  Attributes:
    limits: of the server.
  """

  limits: Limits
  _clock: asyncio.TimerHandle | None = None  # until headers must be there

  def connection_made(self, transport: Any) -> None:
    """Cuts one too many, and one that says nothing."""
    super().connection_made(transport)
    self.app_state = {ABORT: transport.abort}
    if len(self.connections) > self.limits.max_connections:
      transport.abort()
      return
    self._begin_to_wait()

  def data_received(self, data: bytes) -> None:
    """Starts a clock for headers, and stops it when they are there."""
    super().data_received(data)
    if self.cycle is not None and not self.cycle.response_complete:
      self._forget_clock()
    elif self._clock is None and data:
      # Of a next request, or the rest of one that has its answer.
      self._begin_to_wait()

  def connection_lost(self, exc: Exception | None) -> None:
    """Forgets the clock."""
    self._forget_clock()
    super().connection_lost(exc)

  def _begin_to_wait(self) -> None:
    self._clock = self.loop.call_later(self.limits.read_deadline, self._cut)

  def _forget_clock(self) -> None:
    if self._clock is not None:
      self._clock.cancel()
      self._clock = None

  def _cut(self) -> None:
    self._clock = None
    if self.cycle is None or self.cycle.response_complete:
      self.transport.abort()

  def send_400_response(self, msg: str) -> None:
    """As uvicorn's, in the form of all other errors."""
    body = json.dumps(ApiError(400, msg).body()).encode()
    headers = [
      (b'content-type', b'application/json'),
      (b'content-length', str(len(body)).encode()),
      (b'connection', b'close'),
      *((k.encode(), v.encode()) for k, v in SAFE_HEADERS.items()),
    ]
    with contextlib.suppress(h11.LocalProtocolError):
      for event in (
        h11.Response(status_code=400, headers=headers, reason=b'Bad Request'),
        h11.Data(data=body),
        h11.EndOfMessage(),
      ):
        self.transport.write(self.conn.send(event) or b'')
    self.transport.close()


def protocol(limits: Limits) -> type[Protocol]:
  """uvicorn's, with these limits."""
  return type('Limited', (Protocol,), {'limits': limits})


class Server(uvicorn.Server):
  """Ends with 0 after a signal, within the grace."""

  def __init__(self, config: uvicorn.Config, service: Service):
    super().__init__(config)
    self._service = service

  @contextlib.contextmanager
  def capture_signals(self) -> Iterator[None]:
    """SIGTERM and Ctrl-C ask for the end; nothing is raised afterwards."""
    loop = asyncio.get_running_loop()
    kinds = (signal.SIGTERM, signal.SIGINT)
    for kind in kinds:
      loop.add_signal_handler(kind, self._on_signal, kind)
    try:
      yield
    finally:
      for kind in kinds:
        loop.remove_signal_handler(kind)

  def _on_signal(self, kind: signal.Signals) -> None:
    if self.should_exit and kind == signal.SIGINT:
      self.force_exit = True
      return
    self.should_exit = self._service.draining = True
    grace = self._service.limits.grace
    asyncio.get_running_loop().call_later(
      max(grace - _TOLD, 0.0), self._service.end_all
    )


async def serve(
  app: ASGIApp, service: Service, host: str, port: int, ready: Any
) -> None:
  """Serves until a signal.

  Args:
    app: guarded.
    service: started already; stopped by the end.
    host: to bind.
    port: likewise; 0 takes a free one.
    ready: called with the port, once requests are taken.
  """
  limits = service.limits
  config = uvicorn.Config(
    app,
    host=host,
    port=port,
    http=protocol(limits),
    ws='none',
    lifespan='off',
    log_config=None,
    log_level='critical',
    access_log=False,
    server_header=False,
    proxy_headers=False,
    h11_max_incomplete_event_size=limits.max_headers,
    timeout_graceful_shutdown=max(1, round(limits.grace)),
    timeout_keep_alive=30,
    backlog=limits.max_connections,
  )
  server = Server(config, service)
  task = asyncio.create_task(server.serve())
  try:
    while not server.started and not task.done():
      await asyncio.sleep(0.01)
    if server.started:
      ready(server.servers[0].sockets[0].getsockname()[1])
    await task
  finally:
    await service.stop()
