"""Checkpoints: state, step, config and vocabulary, through Orbax.

A run directory holds `checkpoints/STEP/` per saved step:

  state/      every array of the training state (Orbax: OCDBT and JSON)
  meta/       one JSON object: config, vocabulary, fingerprint, metrics
  metrics.json  of an evaluation after the save, if there was one
  files.json  size and sha256 of every file above, written after the commit

Only JSON and arrays are read back: nothing in a checkpoint is executed. The
functions read; `Checkpointer` writes.
"""

from craft_jax.runs.checkpoint.meta import Meta, leaf_paths, tree_sha256
from craft_jax.runs.checkpoint.reader import (
  Warn,
  Which,
  best_of,
  best_step,
  find_damage,
  open_meta,
  rank_in,
  readable,
  report,
  resolve_step,
  restore_params,
  restore_raw,
  step_to_use,
  steps,
)
from craft_jax.runs.checkpoint.writer import Checkpointer, quiet

__all__ = [
  'Checkpointer',
  'Meta',
  'Warn',
  'Which',
  'best_of',
  'best_step',
  'find_damage',
  'leaf_paths',
  'open_meta',
  'quiet',
  'rank_in',
  'readable',
  'report',
  'resolve_step',
  'restore_params',
  'restore_raw',
  'step_to_use',
  'steps',
  'tree_sha256',
]
