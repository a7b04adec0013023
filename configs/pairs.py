"""Your own pairs: prompts and their completions in a .tsv, .csv or .jsonl file.

  craft train --config=pairs --config.data.path=my.tsv --workdir=runs/mine
  craft train --config=pairs:micro --config.data.path=my.jsonl \\
    --config.data.prompt_field=word --config.data.completion_field=phones

Data: what data.path names; a tenth of the prompts, by their hash, is for
validation. The first line of a .tsv or .csv file names its columns. Bytes by
default; --config.text.vocabulary=char makes every character a token. Pairs
longer than model.context are left out and named; docs/tasks.md says how pairs
become tokens.
Result: depends on the pairs.
Time: about two minutes, that of configs/base.py: same model, same steps.
Device: 2 CPU cores (AMD EPYC with AVX-512-BF16).

Variants are the sizes of configs/base.py: pairs:nano (the default),
pairs:micro, pairs:small, pairs:medium, pairs:large.
"""

from ml_collections.config_dict import ConfigDict

from craft_jax.config.load import default_config
from craft_jax.config.presets import set_size


def get_config(variant: str = 'nano') -> ConfigDict:
  """The settings of the run; a variant is a size."""
  config = default_config()
  set_size(config, variant)
  config.data.source = 'path'
  config.data.format = 'pairs'
  config.data.order = 'windows'
  config.model.documents = True
  config.model.context = 128
  config.train.steps = 1200
  config.train.batch_size = 16
  config.log.sample_chars = 0
  return config
