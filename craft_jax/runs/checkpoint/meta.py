"""What a checkpoint knows besides arrays, and digests of array trees."""

import dataclasses
import hashlib
import json
import math
from collections.abc import Mapping
from typing import Any

import jax
import numpy as np

from craft_jax.config import load as config_lib
from craft_jax.config.settings import Config
from craft_jax.data.text.vocabulary import Vocabulary
from craft_jax.errors import UserError, one_line
from craft_jax.model.sharding.rules import names_of
from craft_jax.runs import metric_table

_KIND = 'craft_jax checkpoint'
FORMAT = f'{_KIND} 2'


class OtherVersion(UserError):
  """It may be whole, but this version does not know all that it holds."""


@dataclasses.dataclass(frozen=True)
class Meta:
  """What a checkpoint knows besides its arrays.

  Attributes:
    step: optimizer steps done.
    config: the config the run was started with.
    vocabulary: the tokens of the model.
    fingerprint: sha256 of the corpus, see `craft_jax.data`.
    metrics: the last evaluation; `checkpoint.best` names the one of them that
      decides which is best.
    withheld: why bits per byte cannot be given; '' when they can.
    documents: the corpus was several documents, with BOS between two.
    rows: that `metrics.jsonl` had at the time; 0 is not known.
  """

  step: int
  config: Config
  vocabulary: Vocabulary
  fingerprint: str
  metrics: Mapping[str, float] = dataclasses.field(default_factory=dict)
  withheld: str = ''
  documents: bool = False
  rows: int = 0

  @property
  def val_loss(self) -> float:
    """Nats per character of the last evaluation; infinite without one."""
    return metric_table.rank('val_loss', self.metrics)

  def to_tree(self) -> dict[str, Any]:
    """JSON values: a metric that is not finite becomes None."""
    floats = {k: float(v) for k, v in self.metrics.items()}
    metrics = {k: v if math.isfinite(v) else None for k, v in floats.items()}
    return {
      'format': FORMAT,
      'step': int(self.step),
      'config': json.loads(config_lib.to_json(self.config)),
      'vocabulary': json.loads(self.vocabulary.to_json()),
      'fingerprint': self.fingerprint,
      'metrics': metrics,
      'withheld': self.withheld,
      'documents': self.documents,
      'rows': self.rows,
    }

  @staticmethod
  def from_tree(tree: Any) -> 'Meta':
    """Inverse of `to_tree`; what was not finite comes back as NaN.

    Raises:
      OtherVersion: of another format, or with settings that are gone.
      UserError: not made by `to_tree`, or damaged.
    """
    found = tree.get('format') if isinstance(tree, dict) else None
    if not isinstance(found, str) or not found.startswith(_KIND):
      raise UserError('it was not written by craft')
    if found != FORMAT:
      raise OtherVersion(
        f'it is of format {found!r}, and this version reads {FORMAT!r}; use '
        'the version of craft that wrote it'
      )
    try:
      metrics = {
        k: math.nan if v is None else float(v)
        for k, v in tree['metrics'].items()
      }
      return Meta(
        step=int(tree['step']),
        config=_config(tree['config']),
        vocabulary=Vocabulary.from_json(json.dumps(tree['vocabulary'])),
        fingerprint=str(tree['fingerprint']),
        metrics=metrics,
        withheld=str(tree['withheld']),
        documents=bool(tree['documents']),
        rows=int(tree.get('rows', 0)),  # not in older ones
      )
    except (KeyError, TypeError, ValueError, AttributeError) as e:
      raise UserError(f'its meta is damaged ({one_line(e)})') from e


def _config(tree: Any) -> Config:
  try:
    return config_lib.from_json(json.dumps(tree))
  except UserError as e:
    raise OtherVersion(str(e)) from e


def leaf_paths(tree: Any) -> dict[str, Any]:
  """`{'mu/embed/embedding': leaf, ...}` sorted by path; None has no leaves.

  Fields of a namedtuple, attributes and dict keys read the same, so that a
  state and what Orbax stored of it have equal paths.
  """
  leaves = jax.tree_util.tree_flatten_with_path(tree)[0]
  named = {'/'.join(names_of(path)): leaf for path, leaf in leaves}
  return dict(sorted(named.items()))


def tree_sha256(tree: Any) -> str:
  """sha256 over the sorted paths, dtypes, shapes and bytes of the leaves.

  A typed PRNG key counts as its key data. Arrays must be wholly addressable
  from this process. Two trees have one digest exactly if they are equal bit
  for bit (so -0.0 differs from 0.0, and NaN equals itself).
  """
  digest = hashlib.sha256()
  for path, leaf in leaf_paths(tree).items():
    if isinstance(leaf, jax.Array) and jax.dtypes.issubdtype(
      leaf.dtype, jax.dtypes.prng_key
    ):
      leaf = jax.random.key_data(leaf)
    array = np.ascontiguousarray(jax.device_get(leaf))
    shape = np.shape(leaf)  # ascontiguousarray makes a scalar 1-D
    digest.update(json.dumps([path, array.dtype.name, shape]).encode())
    digest.update(array.reshape(-1).view(np.uint8).data)
  return digest.hexdigest()
