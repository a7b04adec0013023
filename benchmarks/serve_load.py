"""How much of the engine's rate reaches real clients, and how soon?

`craft serve` with the model of `shakespeare` (10 M parameters, trained for one
step: speed does not depend on them), asked over real sockets for streams of 128
characters after new prompts of 64.

`in turn`: 32 clients, each of which asks again when it is answered, beside the
engine alone with as many requests, and beside a FastAPI function around
`generate` of `transformers` with GPT-2 of the same size, as one writes it and
with a lock. `open`: clients that ask at random times (Poisson) whatever becomes
of what they asked before, each for a 32nd of the engine's rate: 32 ask for all
of it, 320 for ten times as much. Waiting counts from the moment a request is
due. The promise is that of `--max-wait`. Clients and server share the cores;
the engine has them alone.

  python benchmarks/serve_load.py [--pairs 3] [--seconds 20]
"""

import contextlib
import functools
import itertools
import json
import pathlib
import random
import re
import statistics
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from typing import Any

import measure
import workers
from clients import Load, ask
from engine import saturated

from craft_jax.config.load import load_config
from craft_jax.inference.engine.engine import Engine
from craft_jax.inference.engine.requests import Request
from craft_jax.inference.load import load_model
from craft_jax.inference.sampling.generate import decoding_params
from craft_jax.inference.sampling.settings import SampleSettings
from craft_jax.runtime import xla_flags
from craft_jax.serve.admission import Limits

_PROMPT, _CHARS = 64, 128  # as `engine` has them
_TOKENS = ''.join(chr(ord('0') + i) for i in range(65))
_CLIENTS = 32  # that ask for the engine's rate
_OPEN = (1, 8, _CLIENTS, 128, 10 * _CLIENTS)
_ALONE, _FULL = 'engine', f'{_CLIENTS} clients, in turn'
_PEER = 'FastAPI and transformers'
_SLOTS = 16
_BEGUN = 0.2  # share of the time after which the rate is counted
# Least ratios wanted: of the engine's rate, of each peer's, under overload.
_OF_ENGINE, _OF_PEER, _OVERLOADED = 0.75, 10.0, 0.95


# --- loads ---


def _prompt() -> str:
  return ''.join(random.choices(_TOKENS, k=_PROMPT))


def _bodies(stream: bool) -> Iterator[dict[str, Any]]:
  more: dict[str, Any] = {}
  if stream:
    more = {
      'temperature': 0.8, 'top_k': 50, 'ignore_eos': True, 'stream': True,
    }  # fmt: skip
  while True:
    yield {'prompt': _prompt(), 'max_tokens': _CHARS} | more


def _in_turn(port: int, seconds: float, stream: bool = True) -> Load:
  """Clients that ask again when they are answered."""
  begin = time.perf_counter()
  end = begin + seconds
  answers = ask(port, _bodies(stream), [begin] * _CLIENTS, end)
  return Load(begin + _BEGUN * seconds, end, answers)


def _open(port: int, seconds: float, per_second: float) -> Load:
  """Requests at random times, however many are under way."""
  begin = due = time.perf_counter()
  dues = []
  while (due := due + random.expovariate(per_second)) < begin + seconds:
    dues.append(due)
  return Load(
    begin + _BEGUN * seconds, begin + seconds, ask(port, _bodies(True), dues)
  )


# --- servers ---


@contextlib.contextmanager
def serving(command: Sequence[str], folder: pathlib.Path) -> Iterator[int]:
  """A server as a process; its port, which it says first."""
  with (folder / 'errors').open('w+') as errors:
    process = subprocess.Popen(
      [sys.executable, *command],
      stdout=subprocess.PIPE, stderr=errors, text=True,
    )  # fmt: skip
    try:
      assert process.stdout
      line = process.stdout.readline()
      if not (found := re.search(r':\s?(\d+)[/,]', line)):
        errors.seek(0)
        raise RuntimeError(errors.read().strip() or 'it said nothing')
      yield int(found[1])
    finally:
      process.terminate()
      process.wait()


def one_step_run(folder: pathlib.Path, settings: Sequence[str]) -> pathlib.Path:
  """A run of `shakespeare` of one step, of tokens of its own."""
  text, workdir = folder / 'text.txt', folder / 'run'
  text.write_text(''.join(_prompt() + _TOKENS for _ in range(400)))
  flags = [
    f'data.path={text}', 'train.stop_at_step=1', 'train.batch_size=1',
    'log.sample_chars=0', *settings,
  ]  # fmt: skip
  subprocess.run(
    [
      *(sys.executable, '-m', 'craft_jax.main', 'train', '--quiet'),
      *('--config=shakespeare', f'--workdir={workdir}'),
      *(f'--config.{flag}' for flag in flags),
    ],
    check=True, stdout=sys.stderr,
  )  # fmt: skip
  return workdir


def _engine(workdir: pathlib.Path, seconds: float) -> Any:
  """A function that has the engine work; characters per second."""
  trained = load_model(str(workdir), 'latest', True)
  params = decoding_params(trained.model, trained.params)
  engine = Engine(trained.model, params, trained.vocabulary, slots=_SLOTS)
  engine.warm()
  settings = SampleSettings(0.8, top_k=50, end=False)
  requests = (
    Request(trained.vocabulary.encode(_prompt()), _CHARS, settings)
    for _ in itertools.count()
  )
  run = functools.partial(saturated, engine, requests, _CLIENTS)
  run(4 * _SLOTS * _CHARS)  # the first is slower
  least = round(seconds * run(4 * _SLOTS * _CHARS))
  return lambda: run(least)


def _peers(
  stack: contextlib.ExitStack, folder: pathlib.Path, seconds: float
) -> dict[str, Callable[[], Any]]:
  """Functions that ask the peers in turn; without those that cannot start."""
  model = load_config('shakespeare', ['data.path=none']).model
  names = ('context', 'width', 'depth', 'num_heads')
  shape = {name: getattr(model, name) for name in names}
  shape['vocabulary_size'] = len(_TOKENS)
  script = str(workers.PEERS / 'torch_serve.py')
  found = {}
  for name, flags in ((_PEER, ['--threads']), (f'{_PEER}, a lock', [])):
    command = [script, json.dumps(shape), *flags]
    try:
      port = stack.enter_context(serving(command, folder))
    except RuntimeError as e:
      print(f'{name} is left out: {str(e).splitlines()[-1]}')
      continue
    found[name] = functools.partial(_peer_rate, port, seconds)
  return found


def _peer_rate(port: int, seconds: float) -> dict[str, float]:
  """Until the last is answered: it gives texts as a whole, many at a time."""
  load = _in_turn(port, seconds, stream=False)
  events = [event for answer in load.answers for event in answer.events]
  begin = min(answer.due for answer in load.answers)
  taken = max(at for at, _ in events) - begin
  return {'rate': sum(number for _, number in events) / taken}


# --- all together ---


def main() -> None:
  """Prints a table, then one JSON object."""
  parser = measure.arguments(__doc__ or '', 3)
  parser.add_argument(
    '--seconds', type=float, default=20, help='of each load (default: 20)'
  )
  args = parser.parse_args()
  xla_flags.use()
  with (
    contextlib.ExitStack() as stack,
    tempfile.TemporaryDirectory() as folder,
  ):
    root = pathlib.Path(folder)
    workdir = one_step_run(root, args.set)
    alone = _engine(workdir, args.seconds / 2)
    serve = ['-m', 'craft_jax.main', 'serve', f'--workdir={workdir}',
             '--port=0', f'--slots={_SLOTS}']  # fmt: skip
    port = stack.enter_context(serving(serve, root))
    per_client = alone() / _CHARS / _CLIENTS  # requests a second

    def asked(clients: int) -> dict[str, float]:
      return _open(port, args.seconds, clients * per_client).figures()

    found = measure.in_turns(
      {
        _ALONE: lambda: {'rate': alone()},
        _FULL: lambda: _in_turn(port, args.seconds).figures(),
        **_peers(stack, root, args.seconds),
      }
      | {_opened(n): functools.partial(asked, n) for n in _OPEN},
      args.pairs,
    )
  _report(found)


def _opened(clients: int) -> str:
  return f'{clients} client{"s" * (clients > 1)}, open'


def _report(found: Mapping[str, Sequence[Mapping[str, float]]]) -> None:
  question = (__doc__ or '').splitlines()[0]
  bars = {
    _FULL: (_ALONE, _OF_ENGINE),
    _opened(_CLIENTS): (_ALONE, _OF_ENGINE),
    _opened(10 * _CLIENTS): (_FULL, _OVERLOADED),
  }
  print(f'{question}\n{measure.hardware()}')
  print(
    f'{"":34}{"chars/s":>9}{"ratio":>7}{"bar":>6}{"answers/s":>11}'
    f'{"refused":>9}{"first p50":>11}{"p99":>7}{"each p50":>10}{"p99":>7}'
  )
  rows = {}
  for name, rounds in found.items():
    row: dict[str, Any] = {
      key: statistics.median(of[key] for of in rounds) for key in rounds[0]
    }
    base, bar = bars.get(name, (_ALONE, None))
    ours = rounds
    if name.startswith(_PEER):  # how much faster than it the server is
      base, bar, ours = name, _OF_PEER, found[_FULL]
    pairs = zip(ours, found[base], strict=True)
    ratios = [one['rate'] / of_base['rate'] for one, of_base in pairs]
    row |= {
      'of': base,
      'ratio': statistics.median(ratios),
      'ratio_quartiles': measure.quartiles(ratios),
      'bar': bar,
    }
    if 'first_p99' in row:
      row['most_first_p99'] = Limits().max_wait
    rows[name] = row
    print(_in_words(name, row))
  measure.conclude(
    question, len(found[_ALONE]), rows, bars='ratio at least',
    command=measure.command(),
  )  # fmt: skip


def _in_words(name: str, row: Mapping[str, Any]) -> str:
  line = f'{name:34}{row["rate"]:9,.0f}{row["ratio"]:7.2f}{row["bar"] or "":>6}'
  if 'first_p99' in row:
    line += (
      f'{row["requests_per_second"]:11.1f}{row["refused"]:9.1%}'
      f'{row["first_p50"]:10.3f}s{row["first_p99"]:6.2f}s'
      f'{1e3 * row["each_p50"]:8.1f}ms{1e3 * row["each_p99"]:5.0f}ms'
    )
  return line


if __name__ == '__main__':
  main()
