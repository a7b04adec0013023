"""How long does a stream, or /health, wait for what another client sends?

`craft serve` with a byte model of one step (speed does not depend on them).
While one client reads a stream and another asks for /health again and again, a
third sends, one after the other: nothing; those of the largest bodies, which
`tests/serve/costly.py` has, that are refused; those that are taken; the largest
beam searches; long texts to score. What is not answered within seconds is given
up. The longest time between two events of the stream and the slowest /health
count, whatever they waited for: all clients share the cores with the server,
and with what else the machine does.

  python benchmarks/serve_waits.py [--pairs 2] [--seconds 15]
"""

import contextlib
import functools
import http.client
import itertools
import json
import os
import pathlib
import runpy
import statistics
import tempfile
import threading
import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from typing import Any

import measure
from serve_load import one_step_run, serving

from craft_jax.runtime import xla_flags

_BAR = 0.1  # seconds, on cores that do nothing else
_TEXT = 'All that is asked.\n'
_SCORED = 100_000  # bytes
_BEAMS = 64
_PROBES = 0.02  # seconds between two of /health
_REFUSED = 'large bodies that are refused'
_MODEL = (
  'text.vocabulary=byte', 'model.width=128', 'model.depth=4',
  'model.num_heads=4', 'model.context=256',
)  # fmt: skip
_CASES = pathlib.Path(__file__).parents[1] / 'tests' / 'serve' / 'costly.py'
_PATIENCE = 5.0  # seconds for an answer
Sent = Iterator[tuple[str, str, bytes]]  # name, path and body


class Waits:
  """Seconds that a client waited, each with when it ended."""

  def __init__(self) -> None:
    """None yet."""
    self.seconds: list[float] = []
    self.ends: list[float] = []

  def note(self, begin: float) -> float:
    """Something came that was waited for since then; when."""
    now = time.perf_counter()
    self.seconds.append(now - begin)
    self.ends.append(now)
    return now


def _post(
  port: int, path: str, body: bytes, patience: float = 300
) -> http.client.HTTPResponse:
  line = http.client.HTTPConnection('127.0.0.1', port, timeout=patience)
  line.request('POST', path, body, {'Content-Type': 'application/json'})
  return line.getresponse()


def _read_streams(port: int, ended: threading.Event, waits: Waits) -> None:
  body = json.dumps(
    {'prompt': _TEXT, 'max_tokens': 4096, 'ignore_eos': True, 'stream': True}
  )
  while not ended.is_set():
    answer = _post(port, '/v1/completions', body.encode())
    assert answer.status == 200, answer.read()
    last = 0.0
    while (line := answer.readline()) and not ended.is_set():
      if line.startswith(b'data: {'):
        last = waits.note(last) if last else time.perf_counter()
    answer.close()


def _probe(port: int, ended: threading.Event, waits: Waits) -> None:
  while not ended.wait(_PROBES):
    begin = time.perf_counter()
    line = http.client.HTTPConnection('127.0.0.1', port, timeout=300)
    line.request('GET', '/health')
    assert line.getresponse().read()
    waits.note(begin)
    line.close()


def _status(port: int, path: str, body: bytes) -> int:
  """What something is answered with; 0 if it takes long."""
  try:
    answer = _post(port, path, body, _PATIENCE)
    answer.read()
  except TimeoutError:
    return 0
  return answer.status


def _measured(port: int, sent: Sent) -> dict[str, Any]:
  """What was waited for while something was sent, and for how long."""
  ended = threading.Event()
  stream, health = Waits(), Waits()
  threads = [
    threading.Thread(target=work, args=(port, ended, waits))
    for work, waits in ((_read_streams, stream), (_probe, health))
  ]
  for thread in threads:
    thread.start()
  spans, statuses = [], []
  try:
    for name, path, body in sent:
      begin = time.perf_counter()
      if body:
        statuses.append(_status(port, path, body))
      else:
        time.sleep(_PROBES)
      spans.append((begin, time.perf_counter(), name))
  finally:
    ended.set()
    for thread in threads:
      thread.join()
  assert stream.seconds and health.seconds
  return {
    'statuses': {str(n): statuses.count(n) for n in sorted(set(statuses))},
    **_figures('stream', stream, spans),
    **_figures('health', health, spans),
  }


def _figures(
  what: str, waits: Waits, spans: Sequence[tuple[float, float, str]]
) -> dict[str, Any]:
  longest = max(waits.seconds)
  end = waits.ends[waits.seconds.index(longest)]
  during = [n for begin, to, n in spans if begin < end and end - longest < to]
  return {
    what: longest,
    f'{what}_p50': statistics.median(waits.seconds),
    f'{what}_number': len(waits.seconds),
    f'{what}_during': during[:3],
  }


# --- what is sent ---


def _again(seconds: float, name: str, path: str, body: Any) -> Sent:
  """The same for some seconds, a different text each time."""
  end = time.perf_counter() + seconds
  for i in itertools.count():
    if time.perf_counter() >= end:
      return
    text = json.dumps(body | {'model': None}).replace('@', f'{i:06}')
    yield name, path, text.encode() if path else b''


def _bodies() -> list[tuple[str, str, bytes]]:
  cases = runpy.run_path(str(_CASES))['CASES']
  return [(name, path, text.encode()) for name, (path, text) in cases.items()]


def main() -> None:
  """Prints a table, then one JSON object."""
  parser = measure.arguments(__doc__ or '', 2)
  parser.add_argument(
    '--seconds', type=float, default=15, help='of each load (default: 15)'
  )
  args = parser.parse_args()
  xla_flags.use()
  bodies, refused = _bodies(), set[str]()
  loads: dict[str, Callable[[], Sent]] = {
    'nothing': lambda: _again(args.seconds, 'nothing', '', {}),
    _REFUSED: lambda: (body for body in bodies if body[0] in refused),
    'large bodies that are taken': lambda: (
      body for body in bodies if body[0] not in refused
    ),
    f'searches of {_BEAMS} beams': lambda: _again(
      args.seconds, 'search', '/v1/completions',
      {'prompt': '@', 'max_tokens': 250, 'beam_width': _BEAMS,
       'ignore_eos': True},
    ),
    f'scores of {_SCORED:,} bytes': lambda: _again(
      args.seconds, 'score', '/score', {'text': '@' + 'x' * (_SCORED - 6)}
    ),
  }  # fmt: skip
  begin = os.getloadavg()
  with (
    contextlib.ExitStack() as stack,
    tempfile.TemporaryDirectory() as folder,
  ):
    root = pathlib.Path(folder)
    workdir = one_step_run(root, [*_MODEL, *args.set])
    serve = ['-m', 'craft_jax.main', 'serve', f'--workdir={workdir}',
             '--port=0', '--chat']  # fmt: skip
    port = stack.enter_context(serving(serve, root))

    for name, path, body in bodies:  # which is warm afterwards, too
      if _status(port, path, body) in (400, 404):
        refused.add(name)

    def run(load: Callable[[], Sent]) -> dict[str, Any]:
      result = _measured(port, load())
      print(json.dumps(result), flush=True)
      return result

    found = measure.in_turns(
      {name: functools.partial(run, load) for name, load in loads.items()},
      args.pairs,
    )
  _report(found, [begin[0], os.getloadavg()[0]])


def _report(
  found: Mapping[str, Sequence[Mapping[str, Any]]], load: Sequence[float]
) -> None:
  question = (__doc__ or '').splitlines()[0]
  print(f'{question}\n{measure.hardware()}; load {load[0]:.1f}, {load[1]:.1f}')
  print(f'{"":34}{"stream":>9}{"p50":>8}{"/health":>9}{"p50":>8}')
  rows = {}
  for name, rounds in found.items():
    longest = {w: max(of[w] for of in rounds) for w in ('stream', 'health')}
    medians = {
      f'{w}_p50': statistics.median(of[f'{w}_p50'] for of in rounds)
      for w in longest
    }
    rows[name] = {
      'seconds': max(longest.values()),
      'bar': _BAR if name == _REFUSED else None, **longest, **medians,
      'rounds': rounds,
    }  # fmt: skip
    print(
      f'{name:34}{1e3 * longest["stream"]:7.0f}ms'
      f'{1e3 * medians["stream_p50"]:6.1f}ms{1e3 * longest["health"]:7.0f}ms'
      f'{1e3 * medians["health_p50"]:6.1f}ms'
    )
  measure.conclude(
    question, len(found['nothing']), rows, bars='seconds at most',
    command=measure.command(), load=load,
  )  # fmt: skip


if __name__ == '__main__':
  main()
