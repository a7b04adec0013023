"""The parts of the training recipe, and the tables of docs/recipe.md.

What `ablate.py` runs, which runs of a file are still of today's settings, and
what they say.
"""

import hashlib
import json
import math
import pathlib
import statistics
from collections.abc import Sequence
from typing import Any, NamedTuple

import pages

from craft_jax.config.load import flatten, load_config
from craft_jax.data.sources import SHAKESPEARE_SHA256

RESULTS = pathlib.Path(__file__).parent / 'results'
CONFIG, STEPS, KEPT = 'shakespeare_cpu', 600, 'ablate.jsonl'

Settings = dict[str, Any]

# nanoGPT's block and optimizer, as far as settings tell them (docs/recipe.md
# has what they do not). What equals the recipe stands here too: another
# default must not change the baseline.
BASELINE: Settings = {
  'model.norm': 'layer',
  'model.mlp': 'gelu',
  'model.position': 'learned',
  'model.qk_norm': False,
  'model.logit_cap': 0.0,
  'model.tied': True,
  'model.zero_init': False,
  'model.value_embeddings': False,
  'model.ngrams': 1,
  'model.dropout': 0.0,
  'optim.name': 'adamw',
  'optim.learning_rate': 1e-3,
  'optim.schedule': 'cosine',
  'optim.warmup_steps': 100,
  'optim.final_fraction': 0.1,
  'optim.b1': 0.9,
  'optim.b2': 0.99,
  'optim.eps': 1e-8,
  'optim.weight_decay': 0.1,
  'optim.decay_embeddings': True,
  'optim.clip_norm': 1.0,
  'train.label_smoothing': 0.0,
  'train.z_loss': 0.0,
  'train.ema': 0.0,
}
# What is set where an ingredient is added, and where it is removed.
INGREDIENTS: dict[str, tuple[Settings, Settings]] = {
  'Muon': ({'optim.name': 'muon'}, {'optim.name': 'adamw'}),
  'AdamW at 3e-3': (
    {'optim.learning_rate': 3e-3},
    {'optim.learning_rate': 1e-3},
  ),
  'warm-up of 50 steps': (
    {'optim.warmup_steps': 50},
    {'optim.warmup_steps': 100},
  ),
  'rate falls to zero': (
    {'optim.final_fraction': 0.0},
    {'optim.final_fraction': 0.1},
  ),
  'embeddings do not decay': (
    {'optim.decay_embeddings': False},
    {'optim.decay_embeddings': True},
  ),
  'RoPE': ({'model.position': 'rope'}, {'model.position': 'learned'}),
  'QK norm': ({'model.qk_norm': True}, {'model.qk_norm': False}),
  'RMSNorm': ({'model.norm': 'rms'}, {'model.norm': 'layer'}),
  'ReLU^2': ({'model.mlp': 'relu2'}, {'model.mlp': 'gelu'}),
  'zero init of outputs': (
    {'model.zero_init': True},
    {'model.zero_init': False},
  ),
  'untied head': ({'model.tied': False}, {'model.tied': True}),
  'bigrams': ({'model.ngrams': 2}, {'model.ngrams': 1}),
  'logit cap': ({'model.logit_cap': 15.0}, {'model.logit_cap': 0.0}),
}
# A run is another one if one of these is.
_RECORDED = (
  *BASELINE,
  'model.context',
  'model.width',
  'model.depth',
  'model.num_heads',
  'optim.momentum',
  'optim.muon_learning_rate',
  'train.batch_size',
  'train.steps',
)


class Group(NamedTuple):
  """Runs that are compared with one of them.

  Attributes:
    reference: the run without a change.
    variant: the name of a run, `{}` for the ingredient.
    sign: of the difference to the reference, so that a gain is what the
      ingredient brings.
  """

  reference: str
  variant: str
  sign: int


GROUPS = {
  'added': Group('baseline', 'baseline + {}', -1),
  'removed': Group('recipe', 'recipe - {}', 1),
}
Runs = dict[str, dict[int, dict[str, Any]]]  # by variant and seed


def variants() -> dict[str, Settings]:
  """What every variant changes in the config, the references first."""
  found: dict[str, Settings] = {'baseline': BASELINE, 'recipe': {}}
  for name, (added, removed) in INGREDIENTS.items():
    found[GROUPS['added'].variant.format(name)] = BASELINE | added
    found[GROUPS['removed'].variant.format(name)] = removed
  return found


def chosen(only: str) -> list[str]:
  """Variants with one of the words in their name, and their references."""
  words = only.split(',')
  names = {name for name in variants() if any(word in name for word in words)}
  for group in GROUPS.values():
    prefix = group.variant.format('')
    if any(name.startswith(prefix) for name in names):
      names.add(group.reference)
  return [name for name in variants() if name in names]


def settings_of(overrides: Settings, more: Sequence[str]) -> Settings:
  """What tells a run from another, but for its seed and its text.

  Args:
    overrides: of the variant.
    more: further settings of all runs, `name=value`.
  """
  flat = flatten(load_config(CONFIG, [*assigned(overrides), *more]))
  names = {*_RECORDED, *(item.partition('=')[0] for item in more)}
  return {name: flat[name] for name in sorted(names)}


def assigned(overrides: Settings) -> list[str]:
  """`name=value` of each, as `load_config` and the flags take them."""
  return [f'{name}={value}' for name, value in overrides.items()]


# --- finished runs -----------------------------------------------------------


def kept_runs(path: pathlib.Path, more: Sequence[str], text_hash: str) -> Runs:
  """The runs of a file that were of today's settings and of this text."""
  found: Runs = {name: {} for name in variants()}
  if not path.exists():
    return found
  records = [json.loads(line) for line in path.read_text().splitlines()]
  for name, overrides in variants().items():
    settings = settings_of(overrides, more)
    for record in records:
      if record['settings'] == settings and record['text'] == text_hash:
        found[name][record['seed']] = record
  return found


def hash_of(text: str) -> str:
  """Of the text that is read; without a path it is the checked download."""
  if not text:
    return SHAKESPEARE_SHA256[:12]
  return hashlib.sha256(pathlib.Path(text).read_bytes()).hexdigest()[:12]


# --- tables ------------------------------------------------------------------


def deviation(runs: Runs) -> float | None:
  """Standard deviation between seeds, of all variants together.

  Three seeds tell little of their own spread; a dozen variants of three
  seeds each tell much of a spread that is about the same for all.
  """
  losses = [
    [run['val_loss'] for run in by_seed.values()]
    for by_seed in runs.values()
    if len(by_seed) > 1
  ]
  if not losses:
    return None
  squares = sum(statistics.variance(of) * (len(of) - 1) for of in losses)
  return math.sqrt(squares / sum(len(of) - 1 for of in losses))


def rows_of(group: Group, runs: Runs) -> dict[str, dict[str, Any]]:
  """The figures of each variant of a group that has runs.

  `gain` is in nats, over the seeds that both have, and `beyond` whether it is
  more than two standard errors of a difference of two means.
  """
  names = [group.reference, *map(group.variant.format, INGREDIENTS)]
  runs = {name: runs[name] for name in names if runs.get(name)}
  base = runs.get(group.reference, {})
  spread = deviation(runs)
  rows = {}
  for name, by_seed in runs.items():
    losses = [run['val_loss'] for run in by_seed.values()]
    row: dict[str, Any] = {
      'seeds': len(losses),
      'val_loss': statistics.mean(losses),
      'deviation': statistics.stdev(losses) if len(losses) > 1 else None,
      'milliseconds': statistics.median(
        run['milliseconds'] for run in by_seed.values()
      ),
      'params': next(iter(by_seed.values()))['params'],
      'bar': None,
    }
    pairs = [(by_seed[seed], base[seed]) for seed in by_seed if seed in base]
    if pairs and name != group.reference:
      differences = [
        ours['val_loss'] - plain['val_loss'] for ours, plain in pairs
      ]
      row['gain'] = group.sign * statistics.mean(differences) + 0.0  # no -0.0
      row['ratio'] = statistics.median(
        ours['milliseconds'] / plain['milliseconds'] for ours, plain in pairs
      )
      if spread is not None:
        error = spread * math.sqrt(2 / len(pairs))
        row['beyond'] = abs(row['gain']) > 2 * error
    rows[name] = row
  return rows


_HEAD = (
  'run', 'seeds', 'nats', 'deviation', 'gain', 'beyond the seeds',
  'time of a step',
)  # fmt: skip


def table(group: Group, runs: Runs) -> str:
  """The rows of a group as a Markdown table; '' without any."""
  rows = rows_of(group, runs)
  if not rows:
    return ''
  lines = []
  for name, row in rows.items():
    beyond = {True: 'yes', False: 'no', None: ''}[row.get('beyond')]
    lines.append(
      (
        name,
        str(row['seeds']),
        f'{row["val_loss"]:.4f}',
        '' if row['deviation'] is None else f'{row["deviation"]:.4f}',
        f'{row["gain"]:+.4f}' if 'gain' in row else '',
        beyond,
        f'x {row["ratio"]:.2f}' if 'ratio' in row else '',
      )
    )
  return pages.table(_HEAD, lines)


def page_tables(results: pathlib.Path) -> dict[str, str]:
  """The table of each group, for every device that has runs."""
  more = [f'train.steps={STEPS}']
  texts = {}
  for name, group in GROUPS.items():
    parts = []
    for path in sorted(results.glob(f'*/{KEPT}')):
      runs = kept_runs(path, more, hash_of(''))
      if found := table(group, runs):
        used = {
          run['jax'] for by_seed in runs.values() for run in by_seed.values()
        }
        versions = ', '.join(sorted(used))
        parts.append(f'`{path.parent.name}`, jax {versions}:\n\n{found}')
    texts[name] = '\n\n'.join(parts) or 'Not measured yet.'
  return texts


def refreshed(page: str, results: pathlib.Path = RESULTS) -> str:
  """The page with the tables between their markers.

  Raises:
    ValueError: a table has no place.
  """
  return pages.refreshed(page, page_tables(results))
