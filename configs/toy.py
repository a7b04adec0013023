"""The smallest real run: a look at everything in seconds; tests use it.

  craft train --config=toy --workdir=runs/toy

Data: the sources of Python's standard library; whole files for validation.
Result: 3.28 bits per byte; the sample has the look of words.
Time: 17 s from start to finish.
Device: 2 CPU cores (AMD EPYC with AVX-512-BF16).
"""

from ml_collections.config_dict import ConfigDict

from craft_jax.config.load import default_config


def get_config() -> ConfigDict:
  """The settings of the run."""
  config = default_config()
  config.data.split = 'file'
  config.data.valid_fraction = 0.02
  config.model.context = 64
  config.model.width = 64
  config.model.depth = 2
  config.model.num_heads = 2
  config.optim.warmup_steps = 10
  config.train.steps = 150
  config.train.batch_size = 16
  config.log.sample_prompt = 'def '
  config.log.sample_chars = 120
  return config
