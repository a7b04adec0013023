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
Result: 1.7068 bits per byte on the validation part (1.1830 nats, seed 0), and
1.6679 where every byte has half a window before it (`craft eval --stride=128`).
PPMd of order 16 that has read all of the training part needs 1.7278, xz 2.1669.
Time: 13 minutes on 2 CPU cores, of which 12 train. The variant for a GPU does
50 times as much arithmetic and is not measured.
Device: any.

The variants differ in size and length:

  dickens      4 layers of 256, context 256, tables of 2- and 3-grams, 11.7 M
               parameters, most of them in the tables; 1,200 steps of 16
               sequences read half of the training part. For a laptop.
  dickens:gpu  6 layers of 384, context 512, 10.8 M parameters; 6,000 steps of
               64 read it 21 times, hence dropout and averaged weights.
"""

from ml_collections.config_dict import ConfigDict

from craft_jax.config.load import default_config
from craft_jax.config.presets import set_size
from craft_jax.errors import UserError, hint


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
  config.model.depth = 4
  config.model.context = 256
  config.model.ngrams = 3
  config.model.ngram_rows = 16384
  config.train.steps = 1200
  config.train.batch_size = 16
  config.eval.every = 600


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
