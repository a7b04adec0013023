"""Writes text with Craft when told to, by the function of `craft sample`."""

import argparse
import functools
import time

import jax
import jax.numpy as jnp
import worker

from craft_jax.config.load import load_config
from craft_jax.data.text.vocabulary import Vocabulary
from craft_jax.inference.sampling.generate import decoding_params, generate
from craft_jax.inference.sampling.settings import SampleSettings
from craft_jax.model.build import build
from craft_jax.model.precision import platform_of
from craft_jax.runtime import xla_flags

# Floats. On an accelerator a call must take long beside what starting it costs.
_COPIED = {'cpu': 1 << 26, 'other': 1 << 29}


def main() -> None:
  """Serves a model of random parameters, which are as fast as any."""
  parser = argparse.ArgumentParser(description=__doc__)
  parser.add_argument('config')
  parser.add_argument('settings', nargs='*')
  parser.add_argument('--batch', type=int, required=True)
  parser.add_argument('--prompt', type=int, required=True)
  parser.add_argument('--chars', type=int, required=True)
  args = parser.parse_args()
  xla_flags.use()
  cfg = load_config(args.config, args.settings)
  vocabulary = Vocabulary.from_text(
    ''.join(chr(ord('0') + i) for i in range(65))
  )
  model = build(cfg.model, vocabulary.size, platform_of(jax.devices()[0]))
  prompt = vocabulary.encode('0123456789' * 100)[: args.prompt]
  settings = SampleSettings(0.8, top_k=50, end=False)

  @jax.jit
  def init():
    noise = functools.partial(jax.random.normal, jax.random.key(1))
    return jax.tree.map(
      lambda leaf: leaf + 0.02 * noise(leaf.shape),
      model.init(jax.random.key(0)),
    )

  params = decoding_params(model, init())

  def run() -> None:
    pieces = generate(
      model, params, vocabulary, [prompt] * args.batch, settings, 0, args.chars
    )
    written = sum(len(piece.text) for part in pieces for piece in part)
    assert written == args.batch * args.chars

  cache = model.init_cache(args.batch, cfg.model.context)
  worker.serve(
    run,
    precision=model.policy.precision,
    # A step reads all parameters and the cache.
    bytes_per_step=sum(a.nbytes for a in jax.tree.leaves((params, cache))),
    copied_per_second=_copied_per_second(),
    jax=jax.__version__,
  )


def _copied_per_second() -> float:
  """Bytes that an addition reads and writes, at best."""
  array = jnp.ones(_COPIED.get(jax.default_backend(), _COPIED['other']))
  add = jax.jit(lambda x: x + 1)
  add(array).block_until_ready()
  times = []
  for _ in range(5):
    begin = time.perf_counter()
    add(array).block_until_ready()
    times.append(time.perf_counter() - begin)
  return 2 * array.nbytes / min(times)


if __name__ == '__main__':
  main()
