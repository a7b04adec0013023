"""Ten megabytes of English prose as bytes: the works of Dickens.

  craft train --config=dickens --config.data.path=dickens.txt
  craft train --config=dickens:gpu --config.data.path=dickens.txt

Large enough that a model does not learn it by heart in one reading, small
enough that compressors are a fair measure: benchmarks/compressors.py asks them
about the same split. Bytes, since such files are seldom clean UTF-8.

Data: one file that you give, such as `dickens` of the Silesia corpus
(10,192,446 bytes, eight of them not ASCII, which are not UTF-8 either); any
prose of that size does. The first 90 % are for training, then 5 % for
validation and 5 % for a test that no run looks at:
  craft eval --workdir=DIR --split=test
Result: not measured yet.
Time: not measured yet. By arithmetic the default is 0.41 PFLOP: more than an
hour at 100 GFLOP/s. The variant for a GPU is 38 times as much.
Device: any.

The variants differ in size and length:

  dickens      6 layers of 256, context 256, 4.9 M parameters; 3,000 steps of 16
               sequences read the training part 1.3 times. For a laptop.
  dickens:gpu  6 layers of 384, context 512, 10.8 M parameters; 6,000 steps of
               64 read it 21 times, hence dropout and averaged weights.
"""

from ml_collections.config_dict import ConfigDict

from craft_jax.config import default_config
from craft_jax.errors import UserError, hint
from craft_jax.sizes import set_size


def get_config(variant: str = 'laptop') -> ConfigDict:
  """The settings of the run; a variant is a kind of machine."""
  if variant not in _VARIANTS:
    raise UserError(
      f'unknown variant {variant!r}{hint(variant, _VARIANTS)}; there are '
      + ' and '.join(_VARIANTS)
    )
  config = default_config()
  config.data.source = 'path'
  config.data.valid_fraction = 0.05
  config.data.test_fraction = 0.05
  _VARIANTS[variant](config)
  return config


def _laptop(config: ConfigDict) -> None:
  set_size(config, 'micro')
  config.model.context = 256
  config.train.steps = 3000
  config.train.batch_size = 16
  config.eval.every = 1000


def _gpu(config: ConfigDict) -> None:
  set_size(config, 'small')
  config.model.context = 512
  config.model.dropout = 0.1
  config.optim.warmup_steps = 100
  config.train.steps = 6000
  config.train.batch_size = 64
  config.train.ema = 0.999
  config.eval.every = 500
  config.eval.stride = 128
  config.checkpoint.every = 1000


_VARIANTS = {'laptop': _laptop, 'gpu': _gpu}
