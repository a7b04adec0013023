"""English spelling to phonemes.
"""

from ml_collections.config_dict import ConfigDict

from craft_jax.config.load import default_config
from craft_jax.config.presets import set_size


def get_config(variant: str = 'nano') -> ConfigDict:
  """The settings of the run; a variant is a size."""
  config = default_config()
  set_size(config, variant)
  config.data.source = 'cmudict'
  config.data.format = 'pairs'
  config.data.order = 'windows'
  config.data.valid_fraction = 0.05
  config.data.test_fraction = 0.05
  config.text.vocabulary = 'char'
  config.model.documents = True
  config.model.context = 96
  config.train.steps = 1200
  config.train.batch_size = 64
  config.log.sample_chars = 0
  return config
