"""uvicorn around the app: sockets, signals, and an orderly end."""

import asyncio
import contextlib
import re
import signal
import socket
from collections.abc import Callable, Iterator
from typing import Any, cast

import h11
import uvicorn
from starlette.types import ASGIApp
from uvicorn.protocols.http.h11_impl import H11Protocol

from craft_jax.runtime import strict_json
from craft_jax.serve.admission import Limits
from craft_jax.serve.errors import ApiError
from craft_jax.serve.middleware import SAFE_HEADERS
from craft_jax.serve.service import Service
from craft_jax.serve.sse import CUT

# Bytes of an answer in the kernel: more would only hide that nobody takes it.
_SEND_BUFFER = 1 << 16
_LEAST_TAKEN = 1 << 12  # bytes, in the time in which a client takes nothing
_TOLD = 1.0  # seconds before the end at which requests get an error
# Bytes of a request for one callback of the event loop. h11 takes about 30 us
# for each header and each chunk of a body, and a chunk may be six bytes long.
_RECEIVED = 1 << 12
_LINGERS = 2.0  # seconds in which what follows a refused request is discarded
# A bare line feed, and a line that is folded (RFC 9112, 5.2).
_AMBIGUOUS = re.compile(rb'(?<!\r)\n|\n[ \t]')


class Connection(h11.Connection):
  """h11's connection, which refuses framing that a proxy may read differently.

  RFC 9112 leaves these to the recipient: to accept a bare line feed as the end
  of a line (2.2), to unfold lines (5.2), and to prefer `Transfer-Encoding` to a
  `Content-Length` (6.3, "ought to be handled as an error").
  """

  def next_event(self) -> Any:
    """The next event of h11.

    Raises:
      h11.RemoteProtocolError: the request is malformed or ambiguous.
    """
    if self.their_state is h11.IDLE:
      head = self.trailing_data[0].partition(b'\r\n\r\n')[0]
      if _AMBIGUOUS.search(head):
        raise h11.RemoteProtocolError('a line of the head has no clear end')
    event = super().next_event()
    if isinstance(event, h11.Request):
      names = {name for name, _ in event.headers}
      if b'transfer-encoding' in names and (
        b'content-length' in names or event.http_version < b'1.1'
      ):
        raise h11.RemoteProtocolError('two ways to tell the length of a body')
    return event


class Protocol(H11Protocol, asyncio.BufferedProtocol):
  """A connection with limits on how many there are and how slow each is.

  Attributes:
    limits: of the server.
    lingers: whether the answer is complete and what still comes is discarded.
  """

  limits: Limits
  lingers = False
  _stall: asyncio.TimerHandle | None = None  # until the client must read
  _was_cut = False
  _clock: asyncio.TimerHandle | None = None  # until headers must be there

  def connection_made(self, transport: Any) -> None:
    """Cuts a connection too many; starts the clock for headers."""
    super().connection_made(transport)
    self.conn = Connection(h11.SERVER, self.limits.max_headers)
    self.transport = cast(asyncio.Transport, Lingering(transport, self))
    self._buffer = bytearray(_RECEIVED)
    self.app_state = {CUT: lambda: self._was_cut}
    line = transport.get_extra_info('socket')
    line.setsockopt(socket.SOL_SOCKET, socket.SO_SNDBUF, _SEND_BUFFER)
    # Wait for whatever the kernel does not take at once.
    transport.set_write_buffer_limits(high=0)
    if len(self.connections) > self.limits.max_connections:
      transport.abort()
      return
    self._begin_to_wait()

  def get_buffer(self, sizehint: int) -> bytearray:
    """The buffer to receive into: a little at a time."""
    return self._buffer

  def buffer_updated(self, nbytes: int) -> None:
    """Passes on what was received."""
    self.data_received(bytes(memoryview(self._buffer)[:nbytes]))

  def data_received(self, data: bytes) -> None:
    """Stops the clock when the headers are complete, or starts another."""
    if self.lingers:
      return
    super().data_received(data)
    if self.lingers:
      return
    if self.cycle is not None and not self.cycle.response_complete:
      self._forget_clock()
    elif self._clock is None and data:
      # A next request, or the rest of one that has its answer.
      self._begin_to_wait()

  def connection_lost(self, exc: Exception | None) -> None:
    """Stops the clocks."""
    self._forget_clock()
    self._forget_stall()
    # uvicorn does so only after an orderly close; the timer keeps all objects.
    self._unset_keepalive_if_required()
    super().connection_lost(exc)

  def pause_writing(self) -> None:
    """Starts a clock in which the client has to read something."""
    super().pause_writing()
    self._watch_stall()

  def resume_writing(self) -> None:
    """Stops the clock: the client has read everything."""
    super().resume_writing()
    self._forget_stall()

  def _watch_stall(self) -> None:
    self._stall = self.loop.call_later(
      self.limits.slow_reader,
      self._cut_stalled,
      self.transport.get_write_buffer_size(),
    )

  def _cut_stalled(self, before: int) -> None:
    # Also where the answer is complete: closing would wait forever.
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
    """Refuses what is not HTTP, in the form of all other errors."""
    body = strict_json.dumps(ApiError(400, msg).body()).encode()
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
    self.linger()

  def linger(self) -> None:
    """Ends the answer, and discards what the client still sends for a while.

    A client that is reset while it sends may never read the answer.
    """
    if self.lingers or self.transport.is_closing():
      return
    self.lingers = True
    self._unset_keepalive_if_required()
    self._forget_clock()
    if self.cycle is not None:
      self.cycle.disconnected = True
      self.cycle.message_event.set()
    self.transport.write_eof()
    self.transport.resume_reading()
    self._clock = self.loop.call_later(_LINGERS, self.transport.abort)


class Lingering:
  """A transport that is not closed while its client is sending.

  Args:
    transport: of a connection.
    protocol: of the same connection.
  """

  def __init__(self, transport: asyncio.Transport, protocol: 'Protocol'):
    self._transport, self._protocol = transport, protocol

  def __getattr__(self, name: str) -> Any:
    return getattr(self._transport, name)

  def close(self) -> None:
    """Closes it, now or when the client has stopped sending."""
    if self._protocol.conn.their_state is h11.SEND_BODY:
      self._protocol.linger()
    elif not self._protocol.lingers:
      self._transport.close()


def protocol(limits: Limits) -> type[Protocol]:
  """The class of connections with these limits."""
  return type('Limited', (Protocol,), {'limits': limits})


class Server(uvicorn.Server):
  """uvicorn's server, which ends with 0 after a signal, within the grace.

  Args:
    config: of uvicorn.
    service: ended with the server.
    ready: called with the port, once requests are accepted.
  """

  def __init__(
    self,
    config: uvicorn.Config,
    service: Service,
    ready: Callable[[int], None],
  ):
    super().__init__(config)
    self._service, self._ready = service, ready

  async def startup(self, sockets: list[socket.socket] | None = None) -> None:
    """Binds the port."""
    await super().startup(sockets)
    if self.started:
      self._ready(self.servers[0].sockets[0].getsockname()[1])

  @contextlib.contextmanager
  def capture_signals(self) -> Iterator[None]:
    """Ends the server at SIGTERM or Ctrl-C, without raising afterwards."""
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
  app: ASGIApp,
  service: Service,
  host: str,
  port: int,
  ready: Callable[[int], None],
) -> None:
  """Serves until a signal.

  Args:
    app: the application behind its middleware.
    service: started already; stopped by the end.
    host: address to bind.
    port: port to bind; 0 takes a free one.
    ready: called with the port, once requests are accepted.
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
  try:
    await Server(config, service, ready).serve()
  finally:
    await service.stop()
