"""Pins and records JAX's settings, so that results do not depend on them.

Settings come from `JAX_*` environment variables and from programs that import
Craft and call `jax.config.update`. Those that would change PRNG keys, dtypes,
results or transfers are pinned while Craft runs; where Craft is a library, only
in the calling thread. Those that tune the compiler are kept and recorded, since
they may change rounding. A test checks that the four tables cover every setting
of the installed JAX.
"""

import contextlib
import os
import sys
from collections.abc import Iterator, Mapping
from concurrent.futures import ThreadPoolExecutor
from typing import Any

from craft_jax.errors import UserError, one_line

# Pinned to these values, which are JAX's defaults.
PINNED: dict[str, Any] = {
  # Results, and the shapes of keys.
  'jax_allow_f16_reductions': True,
  'jax_default_matmul_precision': None,
  'jax_default_prng_impl': 'threefry2x32',
  'jax_enable_x64': False,
  'jax_numpy_dtype_promotion': 'standard',
  'jax_softmax_custom_jvp': False,
  'jax_threefry_partitionable': True,
  # Placement and transfers of arrays.
  'jax_default_device': None,
  'jax_thread_guard': False,
  'jax_transfer_guard_device_to_device': 'allow',
  'jax_transfer_guard_device_to_host': 'allow',
  'jax_transfer_guard_host_to_device': 'allow',
  # Debugging aids. Craft handles steps that are not finite itself, and NaN
  # checks would stop it first.
  'jax_check_tracer_leaks': False,
  'jax_debug_infs': False,
  'jax_debug_key_reuse': False,
  'jax_debug_nans': False,
  'jax_disable_jit': False,
  'jax_error_checking_behavior_divide': 'ignore',
  'jax_error_checking_behavior_nan': 'ignore',
  'jax_error_checking_behavior_oob': 'ignore',
  'jax_no_execution': False,
  'jax_no_tracing': False,
  # Experiments of JAX; `jax_scan3` does not compile here.
  'jax_custom_jvp3': False,
  'jax_custom_vjp3': False,
  'jax_refs_to_pins': False,
  'jax_remat3': False,
  'jax_scan3': False,
  'jax_use_simplified_jaxpr_constants': False,
}

# Aborts the interpreter when it frees arrays, even at exit.
REFUSED: dict[str, Any] = {'jax_array_garbage_collection_guard': 'allow'}

# Recorded, with JAX's defaults: they may change how sums are rounded.
RECORDED: dict[str, Any] = {
  'eager_constant_folding': False,
  'jax_accurate_erf_inv': False,
  'jax_auto_pcast': True,
  'jax_bcoo_cusparse_lowering': False,
  'jax_compiler_enable_remat_pass': True,
  'jax_disable_most_optimizations': False,
  'jax_enable_pgle': False,
  'jax_exec_time_optimization_effort': 0.0,
  'jax_memory_fitting_effort': 0.0,
  'jax_memory_fitting_level': 'O2',
  'jax_optimization_level': 'UNKNOWN',
  'jax_ragged_dot_use_gpu_pallas_triton_lowering': False,
  'jax_ragged_dot_use_ragged_dot_instruction': True,
  'jax_remat_barrier_no_cotangents': False,
  'jax_threefry_gpu_kernel_lowering': False,
  'jax_use_direct_linearize': True,
  'jax_use_emit_pipeline_primitive': False,
  'jax_use_hlo_logistic_lowering': None,
  'jax_use_magma': 'auto',
  'jax_use_rgv3': True,
  'jax_use_shardy_partitioner': True,
  'jax_xla_profile_version': 0,
}

# Environment variables of other libraries that may change rounding.
_VARIABLES = ('LIBTPU_INIT_ARGS', 'NVIDIA_TF32_OVERRIDE')

# Ignored: devices, distributed start, caches, logs, checks that only raise for
# programming errors, and features of JAX that are not used here.
HARMLESS = {
  # `keys.from_seed` and `inference.sampling.logits` do not depend on these.
  'jax_high_dynamic_range_gumbel', 'jax_random_seed_offset',
  # Craft has no 64-bit arrays.
  'jax_explicit_x64_dtypes',
  'check_vma', 'jax2tf_associative_scan_reductions',
  'jax2tf_default_native_serialization', 'jax_backend_target',
  'jax_captured_constants_report_frames', 'jax_captured_constants_warn_bytes',
  'jax_check_proxy_envs', 'jax_check_static_indices',
  'jax_compilation_cache_check_contents', 'jax_compilation_cache_dir',
  'jax_compilation_cache_expect_pgle',
  'jax_compilation_cache_include_metadata_in_key',
  'jax_compilation_cache_max_size', 'jax_compiler_detailed_logging_min_ops',
  'jax_cpu_collectives_implementation', 'jax_cpu_enable_async_dispatch',
  'jax_cpu_get_global_topology_timeout_minutes',
  'jax_cpu_get_local_topology_timeout_minutes',
  'jax_cross_host_transfer_socket_address',
  'jax_cross_host_transfer_timeout_seconds',
  'jax_cross_host_transfer_transfer_size',
  'jax_cross_host_transport_addresses', 'jax_cuda_visible_devices',
  'jax_debug_leaked_clients_on_clear_backends', 'jax_debug_log_modules',
  'jax_disable_bwd_checks', 'jax_disable_vmap_shmap_error',
  'jax_disallow_mesh_context_manager', 'jax_distributed_debug',
  'jax_distributed_verify_secure_credentials', 'jax_dump_ir_modes',
  'jax_dump_ir_to', 'jax_embedded_constants_max_bytes', 'jax_enable_checks',
  'jax_enable_compilation_cache', 'jax_enable_custom_prng',
  'jax_enable_preemption_service', 'jax_enable_recoverability',
  'jax_experimental_unsafe_xla_runtime_errors', 'jax_explain_cache_misses',
  'jax_export_calling_convention_version',
  'jax_export_deserialize_expired_versions',
  'jax_export_ignore_forward_compatibility',
  'jax_force_dcn_cross_host_transfers',
  'jax_hlo_source_file_canonicalization_regex',
  'jax_include_debug_info_in_dumps',
  'jax_include_full_tracebacks_in_locations', 'jax_legacy_prng_key',
  'jax_log_checkpoint_residuals', 'jax_log_compiles', 'jax_logging_level',
  'jax_mock_gpu_topology', 'jax_mosaic_allow_hlo',
  'jax_mosaic_unzip_debug_locations', 'jax_mtls_ca_file',
  'jax_mtls_cert_file', 'jax_mtls_key_file', 'jax_mtls_peer_uri_prefix',
  'jax_mutable_array_checks', 'jax_num_cpu_devices',
  'jax_numpy_rank_promotion', 'jax_oneapi_visible_devices',
  'jax_pallas_auto_assign_collective_ids',
  'jax_pallas_auto_assign_collective_ids_limit',
  'jax_pallas_enable_debug_checks', 'jax_pallas_poison_buffers',
  'jax_pallas_use_mosaic_gpu', 'jax_pallas_verbose_errors',
  'jax_persistent_cache_enable_xla_caches',
  'jax_persistent_cache_min_compile_time_secs',
  'jax_persistent_cache_min_entry_size_bytes',
  'jax_pgle_aggregation_percentile', 'jax_pgle_profiling_runs',
  'jax_pjrt_client_create_options', 'jax_platform_name', 'jax_platforms',
  'jax_pprint_use_color', 'jax_raise_on_ppermute_sort_diff',
  'jax_raise_persistent_cache_errors',
  'jax_remove_custom_partitioning_ptr_from_cache_key',
  'jax_remove_size_one_mesh_axis_from_type', 'jax_rocm_visible_devices',
  'jax_send_traceback_to_runtime', 'jax_serialization_version',
  'jax_share_binary_between_hosts',
  'jax_share_binary_between_hosts_timeout_ms',
  'jax_sort_devices_by_process_index', 'jax_source_url_schema',
  'jax_traceback_filtering', 'jax_traceback_in_locations_limit',
  'jax_tracer_error_num_traceback_frames', 'jax_transfer_guard',
  'jax_use_cpp_shard_args', 'jax_xla_backend', 'mock_num_gpu_processes',
}  # fmt: skip


@contextlib.contextmanager
def pinned() -> Iterator[None]:
  """Pins JAX's settings in this thread, for calls of Craft as a library.

  Raises:
    UserError: a setting differs that cannot be changed for a single thread.
  """
  import jax

  with contextlib.ExitStack() as stack:
    for name, value in _differing().items():
      context = getattr(jax, name.removeprefix('jax_'), None)
      if context is None or name in REFUSED:
        raise _refused(name, value)
      stack.enter_context(context(PINNED[name]))
    yield


@contextlib.contextmanager
def pinned_everywhere() -> Iterator[list[str]]:
  """Pins JAX's settings in all threads; yields the variables it overrides.

  Imports JAX only if one of the variables is set. Restores settings on exit.

  Raises:
    UserError: a setting is refused, or JAX cannot parse one of its variables.
  """
  ours = ('jax_transfer_guard', *PINNED, *REFUSED)
  asked = {*map(str.upper, ours)} & os.environ.keys()
  try:
    if not asked and 'jax' not in sys.modules:
      yield []
      return
    import jax

    # A new thread sees global values, not the overrides of this thread.
    with ThreadPoolExecutor(1) as thread:
      before = thread.submit(_differing).result()
    changed = sorted({*before, *_differing()})
    for name in REFUSED.keys() & before.keys():
      raise _refused(name, before[name])
    try:
      for name in before:
        jax.config.update(name, PINNED[name])
      with pinned():
        yield [name.upper() for name in changed]
    finally:
      for name, value in before.items():
        jax.config.update(name, value)
  except ValueError as e:
    names = sorted(name for name in os.environ if name.startswith('JAX_'))
    if 'jax' in sys.modules or not names:
      raise
    raise UserError(
      f'JAX cannot read its settings: {one_line(e)}; check '
      f'{", ".join(names)} in the environment'
    ) from e


def recorded(platform: str) -> dict[str, str]:
  """User settings that may change rounding, by environment variable.

  Args:
    platform: platform of the devices; XLA flags of others are omitted.
  """
  import jax

  values = jax.config.values
  found = {name: os.environ.get(name, '') for name in _VARIABLES}
  found['XLA_FLAGS'] = _flags(platform)
  found |= {
    name.upper(): str(_plain(values[name]))
    for name, default in RECORDED.items()
    if name in values and _plain(values[name]) != default
  }
  return {name: text for name, text in sorted(found.items()) if text}


def changes(before: Mapping[str, str], now: Mapping[str, str]) -> list[str]:
  """Lists `NAME: old -> new` for differences of two results of `recorded`."""
  return [
    f'{name}: {before.get(name) or "unset"} -> {now.get(name) or "unset"}'
    for name in sorted(before.keys() | now.keys())
    if before.get(name) != now.get(name)
  ]


def _flags(platform: str) -> str:
  """XLA flags that may change rounding, including Craft's own."""
  others = {'cpu', 'gpu', 'tpu'} - {'gpu' if platform == 'cuda' else platform}
  unread = (
    '--xla_dump',
    '--xla_force_host_platform_device_count',
    *(f'--xla_{other}_' for other in others),
  )
  flags = os.environ.get('XLA_FLAGS', '').split()
  return ' '.join(flag for flag in flags if not flag.startswith(unread))


def _refused(name: str, value: Any) -> UserError:
  default = (PINNED | REFUSED)[name]
  return UserError(
    f'{name.upper()} ({name} of jax.config) is {_plain(value)!r}, which is '
    f'not supported; leave it at {default!r}'
  )


def _differing() -> dict[str, Any]:
  """Settings whose values in this thread differ from the pinned ones."""
  import jax

  config: Any = jax.config  # its attributes are made at run time
  wanted = PINNED | REFUSED
  found = {n: getattr(config, n, value) for n, value in wanted.items()}
  return {
    name: value
    for name, value in found.items()
    if _plain(value) != wanted[name]
    and not (value is None and wanted[name] == 'allow')  # an unset guard
  }


def _plain(value: Any) -> Any:
  """A value as the user writes it; for an enum member, its name."""
  return value if isinstance(value, str) else getattr(value, 'name', value)
