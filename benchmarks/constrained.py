"""What does a constraint cost the writing of a text?

Sixteen prompts of 128 characters of the model of `shakespeare`, parameters
random, continued by 64 at temperature 0.8: free, by a pattern, by a schema, and
each row by another pattern. Constraints are compiled before; their tables are
put together and on the device in every turn, as `craft sample` does.

  python benchmarks/constrained.py [--pairs 15]
"""

import functools
import string

import jax
import measure

from craft_jax.config.load import load_config
from craft_jax.constrain import compile_regex, compile_schema
from craft_jax.constrain.automaton import Automaton
from craft_jax.data.text.vocabulary import Vocabulary
from craft_jax.inference.sampling.generate import decoding_params, generate
from craft_jax.inference.sampling.settings import SampleSettings
from craft_jax.model.build import build
from craft_jax.model.precision import platform_of

_BATCH, _PROMPT, _CHARS = 16, 128, 64
_TEXT = {'type': 'string', 'minLength': 62, 'maxLength': 62}


def _constraints(vocabulary: Vocabulary) -> dict[str, list[Automaton | None]]:
  """Of each variant those of its rows; all write just `_CHARS` characters."""
  letters = string.ascii_letters
  words = compile_regex('([a-z]+ )+[a-z]+', vocabulary)
  schema = compile_schema(_TEXT, vocabulary)
  others = [
    compile_regex(f'({a}|[a-z]{{1,{n + 2}}} )+', vocabulary)
    for n, a in zip(range(_BATCH), letters, strict=False)
  ]
  return {
    'free': [None] * _BATCH,
    'a pattern': [words] * _BATCH,
    'a schema': [schema] * _BATCH,
    'sixteen patterns': list(others),
  }


def main() -> None:
  """Prints the ratios; the bar is 1.10."""
  args = measure.arguments(__doc__ or '', 15).parse_args()
  flags = measure.overrides(args, 'data.path=none', 'model.precision=auto')
  cfg = load_config('shakespeare', flags)
  vocabulary = Vocabulary.from_text(string.printable[:95])
  model = build(cfg.model, vocabulary.size, platform_of(jax.devices()[0]))
  params = decoding_params(model, jax.jit(model.init)(jax.random.key(0)))
  prompt = vocabulary.encode('0123456789' * _PROMPT)[:_PROMPT]

  def run(automata: list[Automaton | None]) -> None:
    settings = [
      SampleSettings(temperature=0.8, end=False, constraint=automaton)
      for automaton in automata
    ]
    pieces = generate(
      model, params, vocabulary, [prompt] * _BATCH, settings, 0, _CHARS
    )
    written = sum(len(piece.text) for part in pieces for piece in part)
    assert written == _BATCH * _CHARS, written

  constraints = _constraints(vocabulary)
  seconds = measure.alternate(
    {name: functools.partial(run, rows) for name, rows in constraints.items()},
    args.pairs,
  )
  measure.report(
    'What does a constraint cost the writing of a text?',
    seconds,
    'free',
    _CHARS,
    {name: 1.10 for name in constraints if name != 'free'},
  )


if __name__ == '__main__':
  main()
