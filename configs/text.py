"""Your own text: a file, a folder of text files, or a glob.

  craft train --config=text --config.data.path=my.txt --workdir=runs/mine
  craft train --config=text:small --config.data.path='notes/**/*.md'

Data: what data.path names; the last tenth is for validation. Bytes by
default, so any language and any file works; --config.text.vocabulary=char
makes every character a token.
Result: depends on the text.
Time: about two minutes, that of configs/base.py: same model, same steps.
Device: 2 CPU cores (AMD EPYC with AVX-512-BF16).

Variants are the sizes of configs/base.py: text:nano (the default), text:micro,
text:small, text:medium, text:large.
"""

from ml_collections.config_dict import ConfigDict

from craft_jax.config.load import default_config
from craft_jax.config.presets import set_size


def get_config(variant: str = 'nano') -> ConfigDict:
  """The settings of the run; a variant is a size."""
  config = default_config()
  set_size(config, variant)
  config.data.source = 'path'
  config.model.context = 128
  config.train.steps = 1200
  config.train.batch_size = 16
  return config
