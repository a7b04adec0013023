"""How much of the plain decoding rate is left when requests come and go?

As many clients as slots, each sending its next request when its last is done,
beside `generate`, whose rows all begin and end together: two full batches.
Every prompt is new, so each is read, between two dispatches and alone. Under
`mixed lengths` requests write from half to one and a half times the mean. The
rates are characters per second, prompts included, until as many are written as
`generate` writes. Parameters are random: speed does not depend on them.

  python benchmarks/engine.py [--size cpu|gpu] [--slots 16] [--steps 0]
"""

import functools
import itertools
import time
from collections.abc import Callable, Iterator
from typing import Any

import jax
import measure
import numpy as np

from craft_jax.config.load import load_config
from craft_jax.data.text.vocabulary import Vocabulary
from craft_jax.inference.engine.engine import Engine
from craft_jax.inference.engine.requests import Request
from craft_jax.inference.sampling.generate import decoding_params, generate
from craft_jax.inference.sampling.settings import SampleSettings
from craft_jax.model.build import build
from craft_jax.model.precision import platform_of
from craft_jax.model.protocol import Model
from craft_jax.runtime import xla_flags

_SIZES = {'cpu': 'shakespeare_cpu', 'gpu': 'shakespeare'}
# Together at most a context, though some write half as much again.
_CHARS = {'cpu': 32, 'gpu': 128}
_PROMPT = {'cpu': 16, 'gpu': 64}
_SETTINGS = SampleSettings(0.8, top_k=50, end=False)
_BASE = 'generate'
_BAR = 0.8  # of the plain rate, wanted at least


def main() -> None:
  """Prints a table of rates, then one JSON object."""
  parser = measure.arguments(__doc__ or '', 5)
  parser.add_argument('--size', choices=_SIZES, default='gpu')
  parser.add_argument('--slots', type=int, default=16)
  parser.add_argument(
    '--steps',
    type=int,
    default=0,
    help="turns per dispatch (default: the engine's)",
  )
  args = parser.parse_args()
  xla_flags.use()
  cfg = load_config(
    _SIZES[args.size],
    measure.overrides(args, 'data.path=none', 'model.precision=auto'),
  )
  variants = _variants(
    cfg, args.slots, args.steps, _PROMPT[args.size], _CHARS[args.size]
  )
  measure.report_rates(
    (__doc__ or '').splitlines()[0],
    measure.in_turns(variants, args.pairs),
    dict.fromkeys(variants, _BASE),
    'characters/s',
    dict.fromkeys(set(variants) - {_BASE}, _BAR),
  )


def _variants(
  cfg: Any, slots: int, steps: int, prompt: int, chars: int
) -> dict[str, Callable[[], float]]:
  """Characters per second of one run of each."""
  vocabulary = Vocabulary.from_text(
    ''.join(chr(ord('0') + i) for i in range(65))
  )
  model = build(cfg.model, vocabulary.size, platform_of(jax.devices()[0]))
  params = decoding_params(model, _random(model))
  rng = np.random.default_rng(0)
  lengths = np.linspace(chars // 2, chars + chars // 2, slots).astype(int)
  shuffled = rng.permutation(lengths).tolist()

  def draw() -> np.ndarray:
    return rng.integers(0, 65, prompt).astype(vocabulary.dtype)

  def plain() -> float:
    begin, written = time.perf_counter(), 0
    for first in range(0, 2 * slots, slots):
      prompts = [draw() for _ in range(slots)]
      for pieces in generate(
        model, params, vocabulary, prompts, _SETTINGS, first, chars
      ):
        written += sum(len(piece.text) for piece in pieces)
    assert written == 2 * slots * chars
    return written / (time.perf_counter() - begin)

  engine = Engine(model, params, vocabulary, slots=slots, steps=steps)
  engine.warm()

  def through(lengths: list[int]) -> float:
    requests = (
      Request(draw(), chars, _SETTINGS) for chars in itertools.cycle(lengths)
    )
    return saturated(engine, requests, slots, 2 * slots * chars)

  return {
    _BASE: plain,
    'engine, equal lengths': lambda: through([chars]),
    'engine, mixed lengths': lambda: through(shuffled),
  }


def saturated(
  engine: Engine, requests: Iterator[Request], clients: int, least: int
) -> float:
  """Characters per second while so many requests are always under way.

  Args:
    engine: warm, and idle.
    requests: as many as are asked for.
    clients: each sends its next request when its last is done.
    least: characters after which it ends.
  """
  under_way, written = set(), 0
  begin = time.perf_counter()
  while written < least:
    while len(under_way) < clients:
      under_way.add(engine.submit(next(requests)))
    for handle, piece in engine.step():
      written += len(piece.text)
      if piece.finish_reason:
        under_way.remove(handle)
  rate = written / (time.perf_counter() - begin)
  for handle in under_way:
    engine.cancel(handle)
  engine.step()  # waits for the dispatch under way
  return rate


@functools.partial(jax.jit, static_argnums=0)
def _random(model: Model) -> Any:
  """Parameters, none of them zero, by one program."""
  noise = functools.partial(jax.random.normal, jax.random.key(1))
  return jax.tree.map(
    lambda leaf: leaf + 0.02 * noise(leaf.shape),
    model.init(jax.random.key(0)),
  )


if __name__ == '__main__':
  main()
