"""What XLA is told before JAX starts; read when its backend is made.

Only GPUs read these. What the user has in `XLA_FLAGS` comes later and wins. XLA
aborts on a flag that it does not know, so a test starts JAX with all of them.
"""

import os

# Collectives begin as early and end as late as their data allow, so that
# products run meanwhile (docs.jax.dev, "GPU performance tips"); kernels are
# launched together, as a graph, since those of a small model are shorter than
# their launch.
_GRAPHS = '--xla_gpu_enable_command_buffer='
_FAST = (
  '--xla_gpu_enable_latency_hiding_scheduler=true',
  f'{_GRAPHS}FUSION,CUBLAS,CUBLASLT,CUDNN,CUSTOM_CALL',
)
# openxla.org/xla/determinism: kernels with atomic sums are left out, and
# nothing is chosen by timing, which may choose otherwise next time.
_DETERMINISTIC = (
  '--xla_gpu_exclude_nondeterministic_ops=true',
  '--xla_gpu_autotune_level=0',
)


def use() -> None:
  """Adds the flags for speed; call it before anything asks JAX for a device."""
  own = os.environ.get('XLA_FLAGS', '')
  if _FAST[0] not in own:  # a child process finds what its parent set
    os.environ['XLA_FLAGS'] = ' '.join([*_FAST, own]).strip()


def see_operations() -> None:
  """Has kernels launched one by one: a trace sees nothing within a graph."""
  own = os.environ.get('XLA_FLAGS', '')
  os.environ['XLA_FLAGS'] = own.replace(_FAST[1], _GRAPHS)


def repeat_bits() -> None:
  """Adds those for the same bits in every run, whatever the user has set."""
  own = os.environ.get('XLA_FLAGS', '')
  os.environ['XLA_FLAGS'] = ' '.join([own, *_DETERMINISTIC]).strip()
