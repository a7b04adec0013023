"""The first run: a byte model of the Python standard library's source text.

  craft train --config=base --workdir=runs/first

Data: the sources of Python's own standard library, about 10 MB, on every
machine; whole files for validation.
Result: 1.81 bits per byte on the validation files, and a sample that looks like
Python.
Time: 126 s from start to finish, start-up and evaluation included.
Device: 2 CPU cores (AMD EPYC with AVX-512-BF16).

The sizes of the same recipe, one dial for width, depth, heads and learning
rate (give the larger ones an accelerator and more --config.train.steps):

  craft train --config=base:nano     0.8 M parameters, this very model
  craft train --config=base:micro    4.7 M
  craft train --config=base:small    10.6 M
  craft train --config=base:medium   85 M
  craft train --config=base:large    302 M
"""

from ml_collections.config_dict import ConfigDict

from craft_jax.config.load import default_config
from craft_jax.config.presets import set_size


def get_config(variant: str = 'nano') -> ConfigDict:
  """The settings of the run; a variant is a size."""
  config = default_config()
  set_size(config, variant)
  config.data.split = 'file'
  config.data.valid_fraction = 0.05
  config.model.context = 128
  config.train.steps = 1200
  config.train.batch_size = 16
  config.log.sample_prompt = 'def '
  return config
