"""tinyshakespeare with nanoGPT's GPU model size: 10.67 M parameters.

  craft train --config=shakespeare --workdir=runs/shakespeare

6 layers, width 384, 6 heads, context 256, 64 sequences a step, 5,000 steps,
character vocabulary, first 90 % for training. A model this size memorises the
text many times over, hence dropout, smoothed targets, decay and averaged
weights. They were tuned at a reduced size, on two CPU cores: 0.2 M parameters,
a twentieth of the text, as often read (docs/log.md, 2026-11-26).

Data: tinyshakespeare (downloaded once, sha256 checked), 1,003,854 characters
for training and 111,540 for validation. Offline:
--config.data.path=tinyshakespeare.txt
Result: 1.4440 nats at step 1,750 (windows side by side; 1.4257 where they
advance by 64), kept as the best step (craft eval --step=best). The model
overfits from there, to 1.7169 at step 5,000. One seed. nanoGPT reports 1.4697
nats for its recipe.
Time: 100 s on one NVIDIA H200, of which 16 compile and 56 train; 8 s a step on
2 CPU cores.
Device: one GPU. The first 20 steps run on 2 CPU cores as well:
  craft train --config=shakespeare --stop-at-step=20
"""

from ml_collections.config_dict import ConfigDict

from craft_jax.config.load import default_config
from craft_jax.config.presets import set_size


def get_config() -> ConfigDict:
  """The settings of the run."""
  config = default_config()
  set_size(config, 'small')
  config.text.vocabulary = 'char'
  config.data.source = 'shakespeare'
  config.model.context = 256
  config.model.dropout = 0.3
  config.optim.weight_decay = 0.1
  config.optim.warmup_steps = 100
  config.train.steps = 5000
  config.train.batch_size = 64
  config.train.ema = 0.999
  config.train.label_smoothing = 0.05
  config.eval.every = 250
  config.eval.stride = 64
  config.checkpoint.every = 1000
  return config
