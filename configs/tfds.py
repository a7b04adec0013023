"""A TFDS text data set that is prepared as array_record, by its name.

  craft train --config=tfds:NAME --config.data.tfds_dir=DIR

Data: every example of the train part is a document; its feature
data.tfds_field is the text. Needs `pip install craft-jax[tfds]`, no TensorFlow.
--config.data.split=given evaluates on the data set's own validation part.
Result: depends on the data set.
Time: that of configs/text.py.
Device: any.
"""

from ml_collections.config_dict import ConfigDict

from craft_jax.config.load import default_config
from craft_jax.config.presets import set_size


def get_config(variant: str = '') -> ConfigDict:
  """The settings of the run; the variant is the name of a TFDS data set."""
  config = default_config()
  set_size(config, 'nano')
  config.data.source = 'tfds'
  config.data.tfds_name = variant
  config.model.context = 128
  config.train.steps = 1200
  config.train.batch_size = 16
  return config
