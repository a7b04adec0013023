"""What do drafts that are read ahead save?

A trained model continues passages from the last tenth of a text by 192 tokens:
greedily, drawn at temperature 0.8, and as an object of a JSON schema. Each is
written token by token and with drafts of every kind; the text is the same.
The rates are tokens per second, reading of the passage included.

  python benchmarks/drafts.py --workdir=RUN --data=TEXT [--batch 1] [--pairs 5]
"""

import functools
import pathlib
import time
from collections.abc import Sequence

import measure
import numpy as np

from craft_jax.constrain import compile_schema
from craft_jax.inference.load import load_model
from craft_jax.inference.sampling.generate import decoding_params, generate
from craft_jax.inference.sampling.settings import SampleSettings
from craft_jax.inference.sampling.speculation import Drafts
from craft_jax.runtime import xla_flags

_CHARS = 192
_SCHEMA = {
  'type': 'object',
  'properties': {
    'character_name': {'type': 'string', 'minLength': 1, 'maxLength': 12},
    'profession': {'enum': ['barrister', 'blacksmith', 'convict']},
    'age_in_years': {'type': 'integer', 'minimum': 1, 'maximum': 99},
  },
  'required': ['character_name', 'profession', 'age_in_years'],
}
_PLAIN = 'none'
_FREE = {
  _PLAIN: None,
  'lookup': Drafts(match=4),
  'lookup of 8': Drafts(match=8),
  'first layer': Drafts(layers=1, length=3),
  'first two layers': Drafts(layers=2, length=3),
}
_BOUND = {
  _PLAIN: None,
  'jump-forward': Drafts(),
  'jump-forward by 15': Drafts(length=15),
}


def main() -> None:
  """Prints a table of rates, then one JSON object."""
  parser = measure.arguments(__doc__ or '', 5)
  parser.add_argument('--workdir', required=True, help='a run')
  parser.add_argument('--batch', type=int, default=1, help='texts at once')
  args = parser.parse_args()
  if not args.data:
    parser.error('--data is needed: the passages are taken from it')
  xla_flags.use()
  trained = load_model(args.workdir)
  vocabulary = trained.vocabulary
  params = decoding_params(trained.model, trained.params)
  text = pathlib.Path(args.data).read_text('utf-8', errors='ignore')
  prompts = _passages(
    vocabulary.encode(text[-len(text) // 10 :]),
    args.batch,
    trained.cfg.model.context // 2,
  )
  schema = compile_schema(_SCHEMA, vocabulary)

  def rate(settings: SampleSettings, drafts: Drafts | None) -> float:
    begin, written = time.perf_counter(), 0
    for pieces in generate(
      trained.model, params, vocabulary, prompts, settings, 0, _CHARS,
      drafts=drafts,
    ):  # fmt: skip
      written += sum(len(piece.ids) for piece in pieces)
    return written / (time.perf_counter() - begin)

  settings = {
    'greedy': SampleSettings(0, end=False),
    'drawn': SampleSettings(0.8, end=False),
    'schema': SampleSettings(0.8, constraint=schema),
  }
  variants, bases = {}, {}
  for name, chosen in settings.items():
    kinds = _FREE if chosen.constraint is None else _BOUND
    for kind, drafts in kinds.items():
      variants[f'{name}, {kind}'] = functools.partial(rate, chosen, drafts)
      bases[f'{name}, {kind}'] = f'{name}, {_PLAIN}'
  measure.report_rates(
    (__doc__ or '').splitlines()[0],
    measure.in_turns(variants, args.pairs),
    bases,
    'tokens/s',
    case=f'batch-{args.batch}',
  )


def _passages(
  ids: np.ndarray, number: int, length: int
) -> Sequence[np.ndarray]:
  """Evenly over the text."""
  starts = np.linspace(0, len(ids) - length, number, endpoint=False)
  return [ids[start : start + length] for start in starts.astype(int)]


if __name__ == '__main__':
  main()
