"""Clients that ask a server of completions, and what they were given."""

import collections
import dataclasses
import itertools
import json
import re
import selectors
import socket
import time
from collections.abc import Iterable, Iterator, Mapping, Sequence
from typing import Any

import numpy as np


@dataclasses.dataclass
class Answer:
  """What one request was given.

  Attributes:
    due: when it was to be sent.
    status: 200, or what it was refused with.
    events: when text came, and how many characters.
  """

  due: float
  status: int = 0
  events: list[tuple[float, int]] = dataclasses.field(default_factory=list)

  def note(self, data: bytes) -> None:
    """Takes note of the text in an object that has just come."""
    number = sum(len(one['text']) for one in json.loads(data)['choices'])
    if number:
      self.events.append((time.perf_counter(), number))


@dataclasses.dataclass
class Load:
  """What came of a load, from `begin` to `end` (of the steady part)."""

  begin: float
  end: float
  answers: list[Answer]

  def rate(self) -> float:
    """Characters per second."""
    events = [e for answer in self.answers for e in answer.events]
    written = sum(n for at, n in events if self.begin <= at < self.end)
    return written / (self.end - self.begin)

  def figures(self) -> dict[str, float]:
    """Of requests that were due in that time."""
    due = [a for a in self.answers if self.begin <= a.due < self.end]
    taken = [a for a in due if a.status == 200]
    assert {a.status for a in due} <= {200, 429}, {a.status for a in due}
    first = [a.events[0][0] - a.due for a in taken]
    # Of characters that come together, each has its share of the wait.
    each = [
      (at - before) / n
      for answer in taken
      for (before, _), (at, n) in itertools.pairwise(answer.events)
      for _ in range(n)
    ]
    return {
      'rate': self.rate(),
      'requests_per_second': len(taken) / (self.end - self.begin),
      'refused': 1 - len(taken) / len(due),
      **_percentiles('first', first),
      **_percentiles('each', each),
    }


def _percentiles(name: str, values: Sequence[float]) -> dict[str, float]:
  """The median, and what one in a hundred is over."""
  return {
    f'{name}_p{q}': float(np.percentile(values, q, method='higher'))
    for q in (50, 99)
  }


def _request(body: Mapping[str, Any]) -> bytes:
  data = json.dumps(body).encode()
  return (
    b'POST /v1/completions HTTP/1.1\r\nHost: localhost\r\n'
    b'Content-Type: application/json\r\nContent-Length: %d\r\n\r\n%b'
    % (len(data), data)
  )


class _Line:
  """A connection, with one request at a time."""

  def __init__(self, port: int):
    self.socket = socket.create_connection(('127.0.0.1', port))
    self._got = b''

  def ask(self, data: bytes, due: float) -> None:
    """Sends a request."""
    self.answer, self._length = Answer(due), 0
    self.socket.sendall(data)

  def receive(self) -> bool:
    """Takes what has come; whether it was the last of the answer."""
    data = self.socket.recv(1 << 16)
    if not data:
      raise ConnectionError('the server has hung up')
    self._got += data
    if not self.answer.status:
      head, end, rest = self._got.lstrip().partition(b'\r\n\r\n')
      if not end:
        return False
      found = re.search(rb'(?i)content-length: (\d+)', head)
      self._length = int(found[1]) if found else 0
      self.answer.status, self._got = int(head[9:12]), rest
    if not self._length:  # a stream in chunks, the last of which is empty
      *lines, self._got = self._got.split(b'\n')
      for line in lines:
        if line.startswith(b'data: {'):
          self.answer.note(line.removeprefix(b'data: '))
      return b'0\r' in lines
    if len(self._got) < self._length:
      return False
    if self.answer.status == 200:
      self.answer.note(self._got)
    self._got = b''
    return True


def ask(
  port: int,
  bodies: Iterator[Mapping[str, Any]],
  dues: Iterable[float],
  until: float = 0.0,
) -> list[Answer]:
  """Sends requests for completions; their answers.

  A loop of its own: what clients take of the cores, the server lacks.

  Args:
    port: of the server.
    bodies: of the requests, in JSON values.
    dues: when each is to be sent, rising.
    until: up to then whoever is answered asks again.
  """
  todo, answers = collections.deque(dues), list[Answer]()
  idle, busy = list[_Line](), 0
  with selectors.DefaultSelector() as selector:
    while todo or busy:
      wait = max(todo[0] - time.perf_counter(), 0) if todo else None
      for key, _ in selector.select(wait):
        if key.data in idle:  # the server has closed it
          selector.unregister(key.fileobj)
          idle.remove(key.data)
          key.data.socket.close()
        elif key.data.receive():
          idle.append(key.data)
          answers.append(key.data.answer)
          busy -= 1
          if (now := time.perf_counter()) < until:
            todo.append(now)
      while todo and todo[0] <= time.perf_counter():
        if not idle:
          idle.append(_Line(port))
          selector.register(idle[-1].socket, selectors.EVENT_READ, idle[-1])
        idle.pop().ask(_request(next(bodies)), todo.popleft())
        busy += 1
  for line in idle:
    line.socket.close()
  return answers
