"""Declarations of all settings: default, description and bounds.

`craft_jax.config.load` converts these dataclasses to the `ConfigDict` that
config files edit, and back.
"""

import dataclasses
from typing import Any

# Dotted names of older versions: the new name of a renamed setting, and the
# remedy ('use ...') for a removed one.
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
  """Declares a setting as a dataclass field with metadata.

  Args:
    default: default value.
    doc: description, one sentence.
    choices: allowed strings; empty allows any value of the type.
    low: lower bound, inclusive.
    high: upper bound, inclusive.
    free: whether it may change when a run is resumed (placement and
      reporting); the other settings identify the run.
    unit: unit of a number, 'share' from 0 to 1, or ''.
    see: dotted names of settings that it interacts with. Those named by a rule
      are added by `craft_jax.config.meaning`.
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
    'Tokens are bytes or characters.',
    choices=('byte', 'char'),
    see=('text.max_chars', 'text.unknown', 'text.clean'),
  )
  max_chars: int = setting(
    0,
    'Number of most frequent characters in the vocabulary; 0 keeps all.',
    low=0,
    unit='characters',
    see=('text.unknown',),
  )
  unknown: str = setting(
    'error',
    'A character outside the vocabulary: raise an error, or use UNK.',
    choices=('error', 'replace'),
  )
  clean: tuple[str, ...] = setting(
    (), 'Names of cleaning steps, applied in this order (docs/text.md).'
  )


@dataclasses.dataclass(frozen=True)
class Data:
  """Where text comes from and how it is cut into batches."""

  source: str = setting(
    'stdlib',
    'Where the text comes from.',
    choices=('stdlib', 'path', 'shakespeare', 'tfds', 'cmudict'),
    see=('data.path', 'data.tfds_name', 'data.split'),
  )
  path: str = setting(
    '',
    'File, folder or glob of the training text.',
    free=True,
    see=('data.valid_path', 'data.test_path', 'data.split'),
  )
  format: str = setting(
    'text',
    'Text, or prompts with completions in .tsv, .csv or .jsonl files.',
    choices=('text', 'pairs'),
    see=('data.prompt_field', 'data.completion_field', 'data.group_field'),
  )
  prompt_field: str = setting(
    'prompt', 'Field of the prompts (format="pairs").'
  )
  completion_field: str = setting(
    'completion', 'Field of the completions (format="pairs").'
  )
  group_field: str = setting(
    '',
    'Field whose equal values stay in one split (format="pairs"); empty keeps '
    'equal prompts together.',
    see=('data.split',),
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
    'TFDS dataset, e.g. "tiny_shakespeare".',
    see=('data.tfds_dir', 'data.tfds_field'),
  )
  tfds_dir: str = setting(
    '', 'TFDS data_dir; empty uses the default of TFDS.', free=True
  )
  tfds_field: str = setting('text', 'TFDS feature that holds the text.')
  cache_dir: str = setting(
    '',
    'Folder of prepared token arrays and downloads; empty uses '
    '$CRAFT_CACHE or ~/.cache/craft_jax.',
    free=True,
  )
  split: str = setting(
    'fraction',
    'Split by fraction of characters (of pairs, by a hash of their group), by '
    'whole files, or use given files.',
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
    'Share of the text (or files) for testing.',
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
    'Largest corpus (MB of tokens) that placement="auto" keeps on the device.',
    low=0,
    free=True,
    unit='MB',
  )
  prefetch: int = setting(
    4,
    'Batches that Grain prefetches.',
    low=1,
    high=1024,
    free=True,
    unit='batches',
  )
  case_rate: float = setting(
    0.0,
    'Share of input letters whose case is randomized.',
    low=0.0,
    high=1.0,
    unit='share',
    see=('data.noise_rate', 'data.span_rate'),
  )
  noise_rate: float = setting(
    0.0,
    'Share of input tokens replaced by random ones.',
    low=0.0,
    high=1.0,
    unit='share',
  )
  span_rate: float = setting(
    0.0,
    'Share of input tokens masked in spans.',
    low=0.0,
    high=0.9,
    unit='share',
    see=('data.span_length',),
  )
  span_length: int = setting(
    8, 'Length of a masked span.', low=1, unit='tokens'
  )


@dataclasses.dataclass(frozen=True)
class Model:
  """The model."""

  architecture: str = setting(
    'transformer', 'Architecture, a name in `craft_jax.model.build`.'
  )
  context: int = setting(
    256,
    'Context length: the most tokens that the model attends to.',
    low=1,
    unit='tokens',
    see=('train.batch_size', 'eval.stride'),
  )
  width: int = setting(
    192,
    'Width of the residual stream.',
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
    4, 'Number of layers.', low=1, unit='layers', see=('model.unroll',)
  )
  num_heads: int = setting(3, 'Number of query heads.', low=1, unit='heads')
  num_kv_heads: int = setting(
    0,
    'Key/value heads; 0 is one per query head, 1 is multi-query attention.',
    low=0,
    unit='heads',
    see=('model.num_heads',),
  )
  mlp: str = setting(
    'relu2',
    'Activation function of the MLP.',
    choices=('gelu', 'relu2', 'swiglu'),
    see=('model.mlp_width',),
  )
  mlp_width: int = setting(
    0,
    'Hidden width of the MLP; 0 is 4 x width (8/3 x width for swiglu).',
    low=0,
    unit='entries',
  )
  norm: str = setting('rms', 'Normalization.', choices=('rms', 'layer'))
  position: str = setting(
    'rope',
    'Positional encoding.',
    choices=('rope', 'alibi', 'learned', 'sinusoidal', 'none'),
    see=('model.rope_fraction', 'model.rope_base', 'model.context'),
  )
  rope_fraction: float = setting(
    1.0,
    'Share of the head dim that RoPE rotates.',
    low=0.0,
    high=1.0,
    unit='share',
    see=('model.rope_base',),
  )
  rope_base: float = setting(10000.0, 'Base of the RoPE frequencies.', low=1.0)
  window: int = setting(
    0,
    'Attention window of local layers; 0 is the whole context.',
    low=0,
    unit='tokens',
    see=('model.local_per_global', 'model.context'),
  )
  local_per_global: int = setting(
    0,
    'Local layers before each global one; 0 makes all layers local if '
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
    15.0, 'Soft cap of the logits; 0 disables it.', low=0.0, unit='nats'
  )
  tied: bool = setting(
    False, 'Share the embedding with the head.', see=('optim.decay_embeddings',)
  )
  zero_init: bool = setting(True, 'Start with zero outputs of blocks and head.')
  value_embeddings: bool = setting(
    False, 'Add an embedding of the token to the values of each layer.'
  )
  ngrams: int = setting(
    1,
    'Add embeddings of the n-grams of 2 up to this many tokens; 1 disables '
    'them.',
    low=1,
    high=8,
    unit='tokens',
    see=('model.ngram_rows',),
  )
  ngram_rows: int = setting(
    8192,
    'Rows of the hashed embedding table of each n-gram length.',
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
    'Layers per iteration of the scan; 0 unrolls up to 32 layers if remat is '
    'none, and is 1 otherwise.',
    low=0,
    free=True,
    unit='layers',
  )
  remat: str = setting(
    'none',
    'Rematerialisation: the backward pass recomputes nothing, all but matmul '
    'outputs, or whole blocks.',
    choices=('none', 'dots', 'block'),
    free=True,
    see=('model.unroll', 'train.accumulate', 'train.batch_size'),
  )
  precision: str = setting(
    'auto',
    'bfloat16 matmul operands with float32 accumulation, or float32 '
    'everywhere; auto depends on the hardware.',
    choices=('auto', 'bfloat16', 'float32'),
    see=('train.deterministic',),
  )


@dataclasses.dataclass(frozen=True)
class Optim:
  """Optimizer and schedule."""

  name: str = setting(
    'muon',
    'Optimizer; muon updates all but the hidden matrices with adamw.',
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
    'Peak learning rate; hidden matrices under muon use '
    'optim.muon_learning_rate instead.',
    low=0.0,
    see=('optim.muon_learning_rate', 'optim.schedule', 'train.batch_size'),
  )
  muon_learning_rate: float = setting(
    0.02, 'Peak learning rate of hidden matrices under muon.', low=0.0
  )
  schedule: str = setting(
    'cosine',
    'Learning rate schedule.',
    choices=('constant', 'linear', 'cosine', 'rsqrt', 'wsd'),
    see=(
      'optim.warmup_steps',
      'optim.decay_steps',
      'optim.final_fraction',
      'train.steps',
    ),
  )
  warmup_steps: int = setting(
    50, 'Steps of the linear warm-up.', low=0, unit='steps'
  )
  decay_steps: int = setting(
    0,
    'Steps of the final decay of wsd; 0 is a fifth of the run.',
    low=0,
    unit='steps',
  )
  final_fraction: float = setting(
    0.0,
    'Final learning rate as a share of the peak.',
    low=0.0,
    high=1.0,
    unit='share',
  )
  b1: float = setting(
    0.9, 'Decay of the first moment.', low=0.0, high=0.9999, unit='per step'
  )
  b2: float = setting(
    0.99, 'Decay of the second moment.', low=0.0, high=0.99999, unit='per step'
  )
  eps: float = setting(1e-8, 'Added to the root of the second moment.', low=0.0)
  momentum: float = setting(
    0.95, 'Momentum of muon and sgd.', low=0.0, high=0.9999, unit='per step'
  )
  weight_decay: float = setting(
    0.1,
    'Decoupled weight decay of matrices, multiplied by the learning rate.',
    low=0.0,
    see=('optim.decay_embeddings',),
  )
  decay_embeddings: bool = setting(
    False, 'Apply weight decay to embeddings and the head, too.'
  )
  clip_norm: float = setting(
    1.0,
    'Clip the gradient to this global norm; 0 disables it.',
    low=0.0,
    see=('optim.clip_value', 'train.spike_deviations'),
  )
  clip_value: float = setting(
    0.0, 'Clip gradient entries to this absolute value; 0 disables it.', low=0.0
  )


@dataclasses.dataclass(frozen=True)
class Train:
  """Training."""

  steps: int = setting(
    1000,
    'Optimizer steps of the whole run.',
    low=1,
    unit='steps',
    see=('train.stop_at_step', 'train.batch_size'),
  )
  stop_at_step: int = setting(
    0,
    'Stop early after this step without changing the schedule; 0 disables it.',
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
    'Sequences per step, all devices together.',
    low=1,
    unit='sequences',
    see=('train.accumulate', 'eval.batch_size', 'mesh.data', 'mesh.fsdp'),
  )
  accumulate: int = setting(
    1,
    'Micro-batches per step (gradient accumulation); must divide batch_size. '
    'Changes rounding and the dropout masks.',
    low=1,
    free=True,
    unit='micro-batches',
  )
  check_memory: bool = setting(
    True,
    'Refuse to start a run that certainly needs more memory than available.',
    free=True,
  )
  steps_per_call: int = setting(
    0,
    'Steps per dispatch; 0 aims at one second per dispatch.',
    low=0,
    high=10000,
    free=True,
    unit='steps',
  )
  label_smoothing: float = setting(
    0.0,
    'Share of the target probability spread over all tokens.',
    low=0.0,
    high=0.9,
    unit='share',
  )
  z_loss: float = setting(
    0.0,
    'Weight of the z-loss, the square of the log-normalizer.',
    low=0.0,
    unit='per square nat',
    see=('model.logit_cap',),
  )
  ema: float = setting(
    0.0,
    'Decay of the moving average of the weights (EMA); 0 disables it.',
    low=0.0,
    high=0.99999,
    unit='per step',
  )
  bad_step: str = setting(
    'stop',
    'On a non-finite loss or gradient: stop the run, skip the update, or roll '
    'back to the last checkpoint and skip the data read since.',
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
    'mean is a bad step, too; 0 disables it.',
    low=0.0,
    free=True,
    unit='standard deviations',
  )
  max_skips: int = setting(
    20,
    'Consecutive skipped steps after which the run stops.',
    low=1,
    free=True,
    unit='steps',
  )
  max_rollbacks: int = setting(
    3, 'Rollbacks before the run stops.', low=0, free=True, unit='rollbacks'
  )
  deterministic: bool = setting(
    False,
    'On a GPU: use only deterministic kernels and no autotuning; slower. CPUs '
    'and TPUs are always deterministic.',
    free=True,
  )


@dataclasses.dataclass(frozen=True)
class Eval:
  """Evaluation during the run."""

  every: int = setting(
    0,
    'Steps between evaluations; 0 evaluates only at the end.',
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
    'Tokens by which windows of the strided evaluation advance; 0 disables it.',
    low=0,
    free=True,
    unit='tokens',
  )
  task_rows: int = setting(
    200,
    'Prompts of pairs that an evaluation completes, at most; the last one '
    'completes all. 0 disables it.',
    low=0,
    free=True,
    unit='prompts',
    see=('data.format', 'checkpoint.best'),
  )


@dataclasses.dataclass(frozen=True)
class Checkpoint:
  """Checkpoints."""

  every: int = setting(
    0,
    'Steps between checkpoints; 0 saves only at the end.',
    low=0,
    free=True,
    unit='steps',
    see=('checkpoint.keep',),
  )
  keep: int = setting(
    2,
    'Latest checkpoints to keep, besides the best.',
    low=1,
    free=True,
    unit='checkpoints',
    see=('checkpoint.best',),
  )
  best: str = setting(
    'val_loss',
    'Metric of evaluations by which the best checkpoint is chosen.',
    choices=(
      'val_loss',
      'val_bpc',
      'val_bpb',
      'val_perplexity',
      'val_accuracy',
      'val_exact_match',
      'val_cer',
      'val_wer',
    ),
    free=True,
    see=('eval.every', 'eval.task_rows'),
  )


@dataclasses.dataclass(frozen=True)
class Mesh:
  """The device mesh. One of the three axes may be -1: all remaining devices."""

  data: int = setting(
    -1,
    'Devices of the data-parallel axis.',
    low=-1,
    free=True,
    unit='devices',
    see=('mesh.fsdp', 'mesh.tensor', 'mesh.cpu_devices'),
  )
  fsdp: int = setting(
    1, 'Devices of the FSDP axis.', low=-1, free=True, unit='devices'
  )
  tensor: int = setting(
    1,
    'Devices of the tensor-parallel axis.',
    low=-1,
    free=True,
    unit='devices',
    see=('model.num_heads', 'model.num_kv_heads'),
  )
  cpu_devices: int = setting(
    0,
    'CPU devices; 0 is the most usable cores that divide the batch.',
    low=0,
    free=True,
    unit='devices',
  )


@dataclasses.dataclass(frozen=True)
class Log:
  """Logging."""

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
    'Trackers that get metrics and samples besides metrics.jsonl; each needs '
    'the extra of its name (docs/runs.md).',
    choices=('tensorboard', 'mlflow', 'wandb'),
    free=True,
  )
  sample_every: int = setting(
    0,
    'Steps between samples; 0 samples only at the end.',
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
    'Characters per sample; 0 disables sampling.',
    low=0,
    free=True,
    unit='characters',
  )


@dataclasses.dataclass(frozen=True)
class Config:
  """All settings of a run."""

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


# --- choices of commands that use a trained model ---

# 'auto' is the fastest choice on the device that changes no result.
WEIGHTS = ('auto', 'int8')
CACHES = ('auto', 'float32', 'bfloat16', 'int8')
