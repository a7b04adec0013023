"""uvicorn around the app: sockets, signals, and an orderly end."""

import asyncio
import contextlib
import json
import signal
import socket
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
from craft_jax.serve.stream import CUT

# Of an answer, in the kernel: more would only hide that nobody takes it.
_SEND_BUFFER = 1 << 16
_LEAST_TAKEN = 1 << 12  # bytes, in the time in which a client takes nothing
_TOLD = 1.0  # seconds before the end in which all are told of it


class Protocol(H11Protocol):
  """One connection: not one too many, nor slow to ask or to take an answer.

  Attributes:
    limits: of the server.
  """

  limits: Limits
  _stall: asyncio.TimerHandle | None = None  # until some must be taken
  _was_cut = False
  _clock: asyncio.TimerHandle | None = None  # until headers must be there

  def connection_made(self, transport: Any) -> None:
    """Cuts one too many, and one that says nothing."""
    super().connection_made(transport)
    self.app_state = {CUT: lambda: self._was_cut}
    line = transport.get_extra_info('socket')
    line.setsockopt(socket.SOL_SOCKET, socket.SO_SNDBUF, _SEND_BUFFER)
    # Whatever the kernel does not take at once is waited for.
    transport.set_write_buffer_limits(high=0)
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
    """Forgets the clocks."""
    self._forget_clock()
    self._forget_stall()
    # uvicorn does so only for who closes in order: the timer keeps all of this.
    self._unset_keepalive_if_required()
    super().connection_lost(exc)

  def pause_writing(self) -> None:
    """The client is slow: a clock for taking some."""
    super().pause_writing()
    self._watch_stall()

  def resume_writing(self) -> None:
    """It has taken all."""
    super().resume_writing()
    self._forget_stall()

  def _watch_stall(self) -> None:
    self._stall = self.loop.call_later(
      self.limits.slow_reader,
      self._cut_stalled,
      self.transport.get_write_buffer_size(),
    )

  def _cut_stalled(self, before: int) -> None:
    # Also where the answer is complete: closing would wait for ever.
    if before - self.transport.get_write_buffer_size() >= _LEAST_TAKEN:
      self._watch_stall()
      return
    self._was_cut = True
    self.transport.abort()

  def _forget_stall(self) -> None:
    if self._stall is not None:
      self._stall.cancel()
      self._stall = None

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
      # A second signal is not to kill what is about to end with 0.
      for kind in kinds:
        loop.remove_signal_handler(kind)
        signal.signal(kind, signal.SIG_IGN)

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
