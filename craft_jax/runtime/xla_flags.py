"""XLA flags for GPUs, set before JAX initializes its backend.

The user's own `XLA_FLAGS` come later and take precedence. XLA aborts on unknown
flags, so a test starts JAX with all of them.
"""

import os

# The latency-hiding scheduler overlaps collectives with computation
# (docs.jax.dev, "GPU performance tips"). CUDA graphs launch many kernels at
# once, since those of a small model take less time than their launch.
_GRAPHS = '--xla_gpu_enable_command_buffer='
_FAST = (
  '--xla_gpu_enable_latency_hiding_scheduler=true',
  f'{_GRAPHS}FUSION,CUBLAS,CUBLASLT,CUDNN,CUSTOM_CALL',
)
# openxla.org/xla/determinism: no kernels with atomic sums, and no autotuning,
# whose choices may differ between runs.
_DETERMINISTIC = (
  '--xla_gpu_exclude_nondeterministic_ops=true',
  '--xla_gpu_autotune_level=0',
)


def use() -> None:
  """Adds the flags for speed; must be called before JAX touches a device."""
  own = os.environ.get('XLA_FLAGS', '')
  if _FAST[0] not in own:  # child processes inherit the flags
    os.environ['XLA_FLAGS'] = ' '.join([*_FAST, own]).strip()


def see_operations() -> None:
  """Disables CUDA graphs, inside of which a trace shows no kernels."""
  own = os.environ.get('XLA_FLAGS', '')
  os.environ['XLA_FLAGS'] = own.replace(_FAST[1], _GRAPHS)


def repeat_bits() -> None:
  """Adds flags for bitwise reproducible results, overriding the user's."""
  own = os.environ.get('XLA_FLAGS', '')
  os.environ['XLA_FLAGS'] = ' '.join([own, *_DETERMINISTIC]).strip()
