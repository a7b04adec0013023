"""What a user has set JAX to changes no key, type or number of ours."""

import json
import os
import pathlib
import re
import subprocess
import sys
import threading

import jax
import jax.numpy as jnp
import pytest

import craft_jax
from craft_jax.errors import UserError
from craft_jax.runtime import jax_settings, keys

_PROGRAM = pathlib.Path(__file__).with_name('every_command.py')
_TABLES = (
  jax_settings.PINNED,
  jax_settings.REFUSED,
  jax_settings.RECORDED,
  jax_settings.HARMLESS,
)

# What each does alone today: another model, or a traceback.
_PINNED = {
  'jax_check_tracer_leaks': True,
  'jax_debug_infs': True,
  'jax_debug_key_reuse': True,
  'jax_debug_nans': True,
  'jax_default_matmul_precision': 'bfloat16',
  'jax_default_prng_impl': 'rbg',
  'jax_disable_jit': True,
  'jax_enable_x64': True,
  'jax_no_execution': True,
  'jax_no_tracing': True,
  'jax_numpy_dtype_promotion': 'strict',
  'jax_softmax_custom_jvp': True,
  'jax_thread_guard': True,
  'jax_threefry_partitionable': False,
  'jax_transfer_guard': 'disallow_explicit',
}
# Pinned for a program only: JAX has no context that changes one thread.
_OF_A_PROGRAM = {
  'jax_custom_vjp3': True,
  'jax_error_checking_behavior_divide': 'raise',
  'jax_error_checking_behavior_nan': 'raise',
  'jax_error_checking_behavior_oob': 'raise',
  'jax_refs_to_pins': True,
  'jax_remat3': True,
  'jax_scan3': True,
  'jax_use_simplified_jaxpr_constants': True,
}
_HARMLESS = {
  'jax_cpu_enable_async_dispatch': False,
  'jax_disable_bwd_checks': True,
  'jax_embedded_constants_max_bytes': 0,
  'jax_enable_checks': True,
  'jax_enable_custom_prng': True,
  'jax_explicit_x64_dtypes': 'allow',
  'jax_high_dynamic_range_gumbel': True,
  'jax_legacy_prng_key': 'error',
  'jax_mutable_array_checks': False,
  'jax_num_cpu_devices': 3,
  'jax_numpy_rank_promotion': 'raise',
  'jax_random_seed_offset': 7,
  'jax_traceback_filtering': 'off',
}


def test_every_setting_of_jax_is_known():
  """A JAX with a new setting fails here: put it into one of the tables."""
  for name in jax.config.values:
    tables = [name in table for table in _TABLES]
    assert sum(tables) == 1, f'{name} is in {sum(tables)} tables'
  with jax_settings.pinned_everywhere() as changed:
    assert not changed, 'the default of JAX is another one now'
  kept = jax_settings.recorded('cpu').keys() - {'XLA_FLAGS'}
  assert not kept, 'the default of JAX is another one now'


def test_keys_do_not_ask_the_settings_of_jax():
  for seed in (0, 1, 2**31, 2**32 - 1):
    plain = jax.random.key_data(jax.random.key(seed, impl='threefry2x32'))
    assert (jax.random.key_data(keys.from_seed(seed)) == plain).all()
  with jax.default_prng_impl('rbg'):
    assert keys.from_seed(3).dtype == keys.from_seed(jnp.uint32(3)).dtype
    assert jax.random.key_data(keys.from_seed(3)).shape == (2,)
  for path in pathlib.Path(craft_jax.__file__).parent.rglob('*.py'):
    made = re.search(r'random\.(key|PRNGKey)\(|nnx\.Rngs', path.read_text())
    assert not made, f'{path}: use keys.from_seed'


def test_only_this_thread_is_pinned_and_only_during_a_call():
  with jax.enable_x64(True):
    with jax_settings.pinned():
      assert jnp.zeros(1).dtype == jnp.float32
      with jax.enable_x64(True):
        assert jnp.zeros(1).dtype == jnp.float64
    assert jnp.zeros(1).dtype == jnp.float64


def test_a_program_pins_all_threads_and_puts_them_back():
  seen = []

  def look():
    seen.append((jax.config.jax_enable_x64, jax.config.jax_debug_nans))

  jax.config.update('jax_debug_nans', True)
  try:
    # That of the thread is not taken for that of all.
    with jax.enable_x64(True):
      with jax_settings.pinned_everywhere() as changed:
        look()
        thread = threading.Thread(target=look)
        thread.start()
        thread.join()
      assert jax.config.jax_enable_x64
    assert changed == ['JAX_DEBUG_NANS', 'JAX_ENABLE_X64']
    look()
    assert seen == [(False, False), (False, False), (False, True)]
  finally:
    jax.config.update('jax_debug_nans', False)


@pytest.mark.slow
def test_a_stream_does_not_leak_between_its_pieces(byte_run):
  model = craft_jax.load(byte_run)
  text, score = model.generate('a', max_chars=12, seed=1), model.score('abc')
  pieces = []
  with jax.enable_x64(True), jax.numpy_dtype_promotion('strict'):
    for piece in model.stream('a', max_chars=12, seed=1):
      assert jnp.zeros(1).dtype == jnp.float64
      pieces.append(piece)
    assert model.score('abc') == score
  assert ''.join(pieces) == text


def test_what_one_thread_cannot_change_is_refused(byte_run):
  jax.config.update('jax_scan3', True)
  try:
    with pytest.raises(UserError, match=r'JAX_SCAN3 .* leave it at False'):
      craft_jax.load(byte_run)
  finally:
    jax.config.update('jax_scan3', False)


def _craft(*argv, **environment):
  return subprocess.run(
    [sys.executable, '-m', 'craft_jax.main', *argv],
    capture_output=True, text=True, env=os.environ | environment,
  )  # fmt: skip


@pytest.mark.parametrize(
  ('name', 'value'),
  [
    ('JAX_ENABLE_X64', 'maybe'),
    ('JAX_DEFAULT_PRNG_IMPL', 'dice'),
    ('JAX_LOG_COMPILES', 'maybe'),  # nothing asks for it before JAX is needed
    ('JAX_RANDOM_SEED_OFFSET', 'x'),
    ('JAX_ARRAY_GARBAGE_COLLECTION_GUARD', 'fatal'),
  ],
)
def test_a_variable_that_cannot_be_used_is_one_line(tmp_path, name, value):
  done = _craft('eval', f'--workdir={tmp_path}', **{name: value})
  assert done.returncode == 2
  assert done.stderr.count('\n') == 1
  assert name in done.stderr


@pytest.fixture(scope='module')
def everything(tmp_path_factory):
  """Runs every command in one process, under settings; what came out."""
  folder = tmp_path_factory.mktemp('everything')
  text = ''.join(
    f'{i} squared is {i * i}; {chr(97 + i % 26)}\n' for i in range(300)
  )
  (folder / 'text.txt').write_text(text)
  (folder / 'short.txt').write_text(text[:1500])

  def run(name, updates=None, **environment):
    done = subprocess.run(
      [sys.executable, _PROGRAM, folder, name, json.dumps(updates or {})],
      capture_output=True, text=True, env=os.environ | environment,
    )  # fmt: skip
    assert done.returncode == 0, done.stderr
    return json.loads(done.stdout.splitlines()[-1]), done.stderr

  plain, err = run('plain')
  assert {code for code, _ in plain.values()} == {0}, err
  assert ' ignored: ' not in err
  # Coded, not stored: what is decompressed has been through the model.
  assert (folder / 'plain.craft').stat().st_size < 1500
  run.plain = plain
  return run


def _variables(settings):
  return {
    name.upper(): str(int(value) if isinstance(value, bool) else value)
    for name, value in settings.items()
  }


@pytest.mark.slow
def test_the_environment_changes_nothing(everything):
  found, err = everything('by_env', **_variables(_PINNED | _HARMLESS))
  assert found == everything.plain, err
  assert 'JAX_ENABLE_X64' in err and ' ignored: ' in err


@pytest.mark.slow
def test_a_program_that_updates_jax_changes_nothing(everything):
  found, err = everything('by_update', _PINNED | _HARMLESS)
  assert found.pop('left') == {}, 'its settings are as it left them'
  assert found == everything.plain, err


@pytest.mark.slow
def test_commands_work_where_a_thread_could_not(everything):
  found, err = everything('of_a_program', **_variables(_OF_A_PROGRAM))
  assert found.pop('params')[0] == found.pop('library')[0] == 2, err
  assert found == {name: everything.plain[name] for name in found}, err


@pytest.mark.slow
def test_what_rounds_otherwise_is_recorded_and_said(everything):
  before = os.environ.get('XLA_FLAGS', '')
  flag = '--xla_backend_optimization_level=1'
  found, err = everything('plain', XLA_FLAGS=flag)  # the same run again
  assert found['train'][0] == 0
  assert f'XLA_FLAGS: {before or "unset"} -> {flag}' in err
  assert found['decompress'] == [2, 2]
  assert f"made with flags '{before}', and here it is '{flag}'" in err
