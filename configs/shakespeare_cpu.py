"""tinyshakespeare within nanoGPT's CPU settings: its model, its step budget.

  craft train --config=shakespeare_cpu --workdir=runs/shakespeare_cpu

4 layers, width 128, context 64, 12 sequences a step, 2,000 steps, character
vocabulary, first 90 % for training. What differs is the recipe: RoPE,
RMSNorm, QK-norm, ReLU^2, zero-initialised outputs, untied capped head, Muon.

Data: tinyshakespeare (downloaded once, sha256 checked), 1,003,854 characters
for training and 111,540 for validation. Offline:
--config.data.path=tinyshakespeare.txt
Result: 1.5845 nats per character on the whole validation split (seed 0), static
weights, windows of 64 side by side. nanoGPT: 1.886.
Time: 74 s from start to finish.
Device: 2 CPU cores (AMD EPYC with AVX-512-BF16).
"""

from ml_collections.config_dict import ConfigDict

from craft_jax.config import default_config


def get_config() -> ConfigDict:
  """The settings of the run."""
  config = default_config()
  config.text.vocabulary = 'char'
  config.data.source = 'shakespeare'
  config.model.context = 64
  config.model.width = 128
  config.model.depth = 4
  config.model.num_heads = 4
  config.train.steps = 2000
  config.train.batch_size = 12
  config.eval.batch_size = 128
  return config
