"""Every setting: its home, its default, its meaning and its bounds.

A default is written here and nowhere else. `craft_jax.config.load` turns these
dataclasses into the `ConfigDict` that config files edit, and back.
"""

import dataclasses
from typing import Any

# Settings of older versions by their old dotted names: what each is called now,
# and of one that is gone what to do instead ('use ...').
RENAMED: dict[str, str] = {}
REMOVED: dict[str, str] = {}


def setting(
  default: Any,
  doc: str,
  *,
  choices: tuple[str, ...] = (),
  low: float | None = None,
  high: float | None = None,
  free: bool = False,
  unit: str = '',
  see: tuple[str, ...] = (),
) -> Any:
  """A dataclass field that documents and bounds itself.

  Args:
    default: the value when nobody says otherwise.
    doc: meaning, one sentence.
    choices: the allowed strings, if it is a choice.
    low: least allowed number.
    high: greatest allowed number.
    free: may change when a run is resumed (placement and reporting); the rest
      identifies the run.
    unit: of a number, 'share' from 0 to 1; '' has none.
    see: settings that it works with, by dotted name. Those that a check
      relates it to need not be named (`craft_jax.config.meaning`).
  """
  return dataclasses.field(
    default=default,
    metadata={
      'doc': doc,
      'choices': choices,
      'low': low,
      'high': high,
      'free': free,
      'unit': unit,
      'see': see,
    },
  )


@dataclasses.dataclass(frozen=True)
class Text:
  """How text becomes tokens."""

  vocabulary: str = setting(
    'byte',
    'Tokens of the model.',
    choices=('byte', 'char'),
    see=('text.max_chars', 'text.unknown', 'text.clean'),
  )
  max_chars: int = setting(
    0,
    'Keep only this many most frequent characters; 0 keeps all.',
    low=0,
    unit='characters',
    see=('text.unknown',),
  )
  unknown: str = setting(
    'error',
    'A character outside the vocabulary is an error or becomes UNK.',
    choices=('error', 'replace'),
  )
  clean: tuple[str, ...] = setting(
    (), 'Cleaning steps by name, applied in this order (docs/text.md).'
  )


@dataclasses.dataclass(frozen=True)
class Data:
  """Where text comes from and how it is cut into batches."""

  source: str = setting(
    'stdlib',
    'Kind of source.',
    choices=('stdlib', 'path', 'shakespeare', 'tfds'),
    see=('data.path', 'data.tfds_name', 'data.split'),
  )
  path: str = setting(
    '',
    'File, folder or glob of the training text.',
    free=True,
    see=('data.valid_path', 'data.test_path', 'data.split'),
  )
  valid_path: str = setting(
    '',
    'File, folder or glob of the validation text (split="given").',
    free=True,
  )
  test_path: str = setting(
    '', 'File, folder or glob of the test text (split="given").', free=True
  )
  tfds_name: str = setting(
    '',
    'TFDS name, e.g. "tiny_shakespeare".',
    see=('data.tfds_dir', 'data.tfds_field'),
  )
  tfds_dir: str = setting(
    '', 'TFDS data_dir; empty is the TFDS default.', free=True
  )
  tfds_field: str = setting('text', 'TFDS feature that holds the text.')
  cache_dir: str = setting(
    '',
    'Folder of prepared token arrays and downloads; empty is '
    '$CRAFT_CACHE or ~/.cache/craft_jax.',
    free=True,
  )
  split: str = setting(
    'fraction',
    'Cut the text by fraction of characters, whole files, or use given parts.',
    choices=('fraction', 'file', 'given'),
    see=(
      'data.valid_fraction',
      'data.test_fraction',
      'data.valid_path',
      'data.test_path',
    ),
  )
  valid_fraction: float = setting(
    0.1,
    'Share of the text (or files) for validation.',
    low=0.0,
    high=0.9,
    unit='share',
  )
  test_fraction: float = setting(
    0.0,
    'Share of the text (or files) for the test.',
    low=0.0,
    high=0.9,
    unit='share',
  )
  order: str = setting(
    'crops',
    'Random crops, or shuffled non-overlapping windows once per epoch.',
    choices=('crops', 'windows'),
    see=('model.context', 'train.batch_size'),
  )
  placement: str = setting(
    'auto',
    'Keep the corpus on the device, or stream it through Grain.',
    choices=('auto', 'device', 'grain'),
    free=True,
    see=('data.device_megabytes', 'data.prefetch'),
  )
  device_megabytes: int = setting(
    512,
    'Largest corpus (MB of tokens) that "auto" keeps on the device.',
    low=0,
    free=True,
    unit='MB',
  )
  prefetch: int = setting(
    4,
    'Batches read ahead by Grain.',
    low=1,
    high=1024,
    free=True,
    unit='batches',
  )
  case_rate: float = setting(
    0.0,
    'Share of input letters given a random case.',
    low=0.0,
    high=1.0,
    unit='share',
    see=('data.noise_rate', 'data.span_rate'),
  )
  noise_rate: float = setting(
    0.0,
    'Share of input tokens replaced at random.',
    low=0.0,
    high=1.0,
    unit='share',
  )
  span_rate: float = setting(
    0.0,
    'Share of input tokens hidden in spans.',
    low=0.0,
    high=0.9,
    unit='share',
    see=('data.span_length',),
  )
  span_length: int = setting(
    8, 'Tokens in a hidden span.', low=1, unit='tokens'
  )


@dataclasses.dataclass(frozen=True)
class Model:
  """The model."""

  architecture: str = setting(
    'transformer', 'The architecture, by its name in `craft_jax.model.build`.'
  )
  context: int = setting(
    256,
    'Tokens the model sees at once.',
    low=1,
    unit='tokens',
    see=('train.batch_size', 'eval.stride'),
  )
  width: int = setting(
    192,
    'Size of the residual stream.',
    low=1,
    unit='entries',
    see=(
      'model.depth',
      'model.num_heads',
      'model.mlp_width',
      'optim.learning_rate',
    ),
  )
  depth: int = setting(
    4, 'Layers.', low=1, unit='layers', see=('model.unroll',)
  )
  num_heads: int = setting(3, 'Query heads.', low=1, unit='heads')
  num_kv_heads: int = setting(
    0,
    'Key/value heads; 0 is one per query head, 1 is multi-query.',
    low=0,
    unit='heads',
    see=('model.num_heads',),
  )
  mlp: str = setting(
    'relu2',
    'Activation of the MLP.',
    choices=('gelu', 'relu2', 'swiglu'),
    see=('model.mlp_width',),
  )
  mlp_width: int = setting(
    0,
    'Hidden size of the MLP; 0 is 4 x width (8/3 x width for swiglu).',
    low=0,
    unit='entries',
  )
  norm: str = setting('rms', 'Normalization.', choices=('rms', 'layer'))
  position: str = setting(
    'rope',
    'How order is told.',
    choices=('rope', 'alibi', 'learned', 'sinusoidal', 'none'),
    see=('model.rope_fraction', 'model.rope_base', 'model.context'),
  )
  rope_fraction: float = setting(
    1.0,
    'Share of a head that rotates.',
    low=0.0,
    high=1.0,
    unit='share',
    see=('model.rope_base',),
  )
  rope_base: float = setting(10000.0, 'Longest wavelength of RoPE.', low=1.0)
  window: int = setting(
    0,
    'Tokens a local layer sees; 0 is the whole context.',
    low=0,
    unit='tokens',
    see=('model.local_per_global', 'model.context'),
  )
  local_per_global: int = setting(
    0,
    'Local layers before each global one; 0 makes every layer local if '
    'window is set.',
    low=0,
    unit='layers',
  )
  documents: bool = setting(
    False, 'Stop attention at document boundaries.', see=('data.order',)
  )
  qk_norm: bool = setting(
    True, 'Normalize queries and keys.', see=('model.norm',)
  )
  logit_cap: float = setting(
    15.0, 'Soft cap of the logits; 0 is none.', low=0.0, unit='nats'
  )
  tied: bool = setting(
    False, 'Share the embedding with the head.', see=('optim.decay_embeddings',)
  )
  zero_init: bool = setting(True, 'Start each block and the head at zero.')
  value_embeddings: bool = setting(
    False, 'Add a per-layer embedding of the token to the values.'
  )
  ngrams: int = setting(
    1,
    'Add embeddings of the last 2, 3, ... and so many tokens together; 1 is '
    'none.',
    low=1,
    high=8,
    unit='tokens',
    see=('model.ngram_rows',),
  )
  ngram_rows: int = setting(
    8192,
    'Rows of the hashed table of each length of n-grams.',
    low=1,
    unit='rows',
  )
  dropout: float = setting(
    0.0,
    'Dropout rate.',
    low=0.0,
    high=0.95,
    unit='share',
    see=('train.ema', 'train.label_smoothing', 'optim.weight_decay'),
  )
  unroll: int = setting(
    0,
    'Layers unrolled per scan iteration; 0 is all of up to 32 without remat, '
    'else 1.',
    low=0,
    free=True,
    unit='layers',
  )
  remat: str = setting(
    'none',
    'What the backward pass recomputes: nothing, all but matmul outputs, '
    'whole blocks.',
    choices=('none', 'dots', 'block'),
    free=True,
    see=('model.unroll', 'train.accumulate', 'train.batch_size'),
  )
  precision: str = setting(
    'auto',
    'bfloat16 matmul operands with float32 sums, or float32 everywhere; auto '
    'asks the hardware.',
    choices=('auto', 'bfloat16', 'float32'),
    see=('train.deterministic',),
  )


@dataclasses.dataclass(frozen=True)
class Optim:
  """Optimizer and schedule."""

  name: str = setting(
    'muon',
    'Optimizer.',
    choices=('adamw', 'lion', 'adafactor', 'muon', 'sgd'),
    see=(
      'optim.learning_rate',
      'optim.muon_learning_rate',
      'optim.b1',
      'optim.b2',
      'optim.eps',
      'optim.momentum',
      'optim.weight_decay',
    ),
  )
  learning_rate: float = setting(
    3e-3,
    'Peak learning rate; under muon of all but the matrices, which follow '
    'optim.muon_learning_rate.',
    low=0.0,
    see=('optim.muon_learning_rate', 'optim.schedule', 'train.batch_size'),
  )
  muon_learning_rate: float = setting(
    0.02, 'Peak learning rate of the matrices under muon.', low=0.0
  )
  schedule: str = setting(
    'cosine',
    'Shape of the learning rate.',
    choices=('constant', 'linear', 'cosine', 'rsqrt', 'wsd'),
    see=(
      'optim.warmup_steps',
      'optim.decay_steps',
      'optim.final_fraction',
      'train.steps',
    ),
  )
  warmup_steps: int = setting(
    50, 'Steps of linear warm-up.', low=0, unit='steps'
  )
  decay_steps: int = setting(
    0,
    'Steps of the final decay (wsd); 0 is a fifth of the run.',
    low=0,
    unit='steps',
  )
  final_fraction: float = setting(
    0.0,
    'Learning rate at the end, as a share of the peak.',
    low=0.0,
    high=1.0,
    unit='share',
  )
  b1: float = setting(
    0.9, 'First-moment decay.', low=0.0, high=0.9999, unit='per step'
  )
  b2: float = setting(
    0.99, 'Second-moment decay.', low=0.0, high=0.99999, unit='per step'
  )
  eps: float = setting(1e-8, 'Added to the root of the second moment.', low=0.0)
  momentum: float = setting(
    0.95, 'Momentum of muon and sgd.', low=0.0, high=0.9999, unit='per step'
  )
  weight_decay: float = setting(
    0.1,
    'Decoupled decay of matrices, times the learning rate.',
    low=0.0,
    see=('optim.decay_embeddings',),
  )
  decay_embeddings: bool = setting(
    False, 'Decay the embeddings and the head too.'
  )
  clip_norm: float = setting(
    1.0,
    'Largest global gradient norm; 0 is no clipping.',
    low=0.0,
    see=('optim.clip_value', 'train.spike_deviations'),
  )
  clip_value: float = setting(
    0.0, 'Largest gradient entry; 0 is no clipping.', low=0.0
  )


@dataclasses.dataclass(frozen=True)
class Train:
  """The run."""

  steps: int = setting(
    1000,
    'Optimizer steps of the whole run.',
    low=1,
    unit='steps',
    see=('train.stop_at_step', 'train.batch_size'),
  )
  stop_at_step: int = setting(
    0,
    'End early after this step, schedule untouched; 0 is never.',
    low=0,
    free=True,
    unit='steps',
  )
  extend: str = setting(
    'exact',
    'How a saved run goes on to another train.steps: exact refuses to change '
    'the learning rates of steps that are done, rewarm climbs to the peak '
    'again.',
    choices=('exact', 'rewarm'),
    free=True,
    see=('train.steps', 'optim.schedule'),
  )
  extended: tuple[str, ...] = setting(
    (),
    'Where the run was rewarmed, as STEP:STEPS of the schedule before; craft '
    'writes it.',
  )
  init_from: str = setting(
    '',
    'Start from the weights of another run: RUN, or RUN@ with a step, best, '
    'latest, ema or raw.',
    see=('train.keep_optimizer', 'train.freeze'),
  )
  keep_optimizer: bool = setting(
    False, 'Take over the optimizer state of train.init_from too.'
  )
  freeze: tuple[str, ...] = setting(
    (),
    'Parameters that stay as they are, by the start of their path: embed, '
    'blocks.0, blocks.1.mlp.',
    see=('train.init_from',),
  )
  batch_size: int = setting(
    32,
    'Sequences per step, over all devices.',
    low=1,
    unit='sequences',
    see=('train.accumulate', 'eval.batch_size', 'mesh.data', 'mesh.fsdp'),
  )
  accumulate: int = setting(
    1,
    'Micro-batches per step; must divide batch_size. Changes rounding, and '
    'which entries dropout takes.',
    low=1,
    free=True,
    unit='micro-batches',
  )
  check_memory: bool = setting(
    True,
    'Refuse at the start what surely needs more memory than there is.',
    free=True,
  )
  steps_per_call: int = setting(
    0,
    'Steps per dispatch; 0 aims at one second.',
    low=0,
    high=10000,
    free=True,
    unit='steps',
  )
  label_smoothing: float = setting(
    0.0,
    'Share of the target spread over all tokens.',
    low=0.0,
    high=0.9,
    unit='share',
  )
  z_loss: float = setting(
    0.0,
    'Weight of the squared log-normalizer.',
    low=0.0,
    unit='per square nat',
    see=('model.logit_cap',),
  )
  ema: float = setting(
    0.0,
    'Decay of the averaged weights; 0 keeps none.',
    low=0.0,
    high=0.99999,
    unit='per step',
  )
  bad_step: str = setting(
    'stop',
    'What a loss or gradient that is not finite does: end the run, be left '
    'out, or go back to the last checkpoint and pass over the data since.',
    choices=('stop', 'skip', 'rollback'),
    free=True,
    see=(
      'train.spike_deviations',
      'train.max_skips',
      'train.max_rollbacks',
      'checkpoint.every',
    ),
  )
  spike_deviations: float = setting(
    0.0,
    'A loss or gradient norm this many standard deviations above its running '
    'mean is a bad step too; 0 is off.',
    low=0.0,
    free=True,
    unit='standard deviations',
  )
  max_skips: int = setting(
    20,
    'Skipped steps in a row that end the run.',
    low=1,
    free=True,
    unit='steps',
  )
  max_rollbacks: int = setting(
    3, 'Rollbacks of a run before it ends.', low=0, free=True, unit='rollbacks'
  )
  deterministic: bool = setting(
    False,
    'On a GPU: only kernels that repeat bit for bit, none chosen by timing; '
    'slower. CPUs and TPUs always repeat.',
    free=True,
  )


@dataclasses.dataclass(frozen=True)
class Eval:
  """Evaluation during the run."""

  every: int = setting(
    0,
    'Steps between evaluations; 0 only at the end.',
    low=0,
    free=True,
    unit='steps',
    see=('checkpoint.keep', 'eval.batch_size'),
  )
  batch_size: int = setting(
    64, 'Sequences per batch.', low=1, free=True, unit='sequences'
  )
  stride: int = setting(
    0,
    'New tokens per window of the strided evaluation; 0 leaves it out.',
    low=0,
    free=True,
    unit='tokens',
  )


@dataclasses.dataclass(frozen=True)
class Checkpoint:
  """What is kept."""

  every: int = setting(
    0,
    'Steps between checkpoints; 0 only at the end.',
    low=0,
    free=True,
    unit='steps',
    see=('checkpoint.keep',),
  )
  keep: int = setting(
    2,
    'Latest checkpoints kept, besides the best.',
    low=1,
    free=True,
    unit='checkpoints',
  )


@dataclasses.dataclass(frozen=True)
class Mesh:
  """The devices. One of the three axes may be -1: what is left."""

  data: int = setting(
    -1,
    'Batch axis: devices.',
    low=-1,
    free=True,
    unit='devices',
    see=('mesh.fsdp', 'mesh.tensor', 'mesh.cpu_devices'),
  )
  fsdp: int = setting(
    1, 'Batch and parameter axis: devices.', low=-1, free=True, unit='devices'
  )
  tensor: int = setting(
    1,
    'Heads and hidden axis: devices.',
    low=-1,
    free=True,
    unit='devices',
    see=('model.num_heads', 'model.num_kv_heads'),
  )
  cpu_devices: int = setting(
    0,
    'CPU devices; 0 is as many usable cores as divide the batch.',
    low=0,
    free=True,
    unit='devices',
  )


@dataclasses.dataclass(frozen=True)
class Log:
  """What a run says."""

  every: int = setting(
    10,
    'Steps between rows of metrics.jsonl.',
    low=1,
    free=True,
    unit='steps',
    see=('log.writers',),
  )
  writers: tuple[str, ...] = setting(
    (),
    'Where figures and samples go besides metrics.jsonl; each needs the extra '
    'of its name (docs/runs.md).',
    choices=('tensorboard', 'mlflow', 'wandb'),
    free=True,
  )
  sample_every: int = setting(
    0,
    'Steps between samples; 0 is one at the end.',
    low=0,
    free=True,
    unit='steps',
    see=('log.sample_prompt', 'log.sample_temperature', 'log.sample_chars'),
  )
  sample_prompt: str = setting('', 'Prompt of the samples.', free=True)
  sample_temperature: float = setting(
    0.5, 'Temperature of the samples.', low=0.0, free=True
  )
  sample_chars: int = setting(
    400,
    'Characters of a sample; 0 is none.',
    low=0,
    free=True,
    unit='characters',
  )


@dataclasses.dataclass(frozen=True)
class Config:
  """A whole run."""

  seed: int = setting(
    0, 'Seed of parameters, data and dropout.', low=0, high=2**32 - 1
  )
  text: Text = Text()
  data: Data = Data()
  model: Model = Model()
  optim: Optim = Optim()
  train: Train = Train()
  eval: Eval = Eval()
  checkpoint: Checkpoint = Checkpoint()
  mesh: Mesh = Mesh()
  log: Log = Log()


# --- not of a run, but of how a trained model is used ---

# 'auto' is what changes no number and is fastest on the device.
WEIGHTS = ('auto', 'int8')
CACHES = ('auto', 'float32', 'bfloat16', 'int8')
