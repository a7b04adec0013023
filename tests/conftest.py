"""What every test shares: devices, shape checks, the compile cache.

Read before the first test module, so all of it is in place before anything
imports `craft_jax` or touches a backend.
"""

import gc
import os
import pathlib
import pkgutil
import runpy
import signal

import beartype.claw
import jax
import jaxtyping
import pytest


def _cache(name: str) -> str:
  """A user folder that a second run of the suite finds filled."""
  home = os.environ.get('XDG_CACHE_HOME') or pathlib.Path.home() / '.cache'
  return str(pathlib.Path(home) / 'craft_jax-tests' / name)


# In the environment, so that commands which tests start as processes of their
# own share the compiled programs and the prepared corpora.
os.environ.setdefault('CRAFT_CACHE', _cache('corpora'))
os.environ.setdefault('JAX_COMPILATION_CACHE_DIR', _cache('compiled'))
os.environ.setdefault('JAX_PERSISTENT_CACHE_MIN_COMPILE_TIME_SECS', '0.05')
# The passes of LLVM are the larger half of compiling a program, fusions by way
# of MLIR half of the rest; a quick look does without both. CI tests programs
# as users run them, but for processes whose tests ask about files, signals and
# text: those get these flags in any case. They are few, because an archive
# records them in its header, the length of which is tested.
os.environ['QUICK_XLA_FLAGS'] = (
  '--xla_backend_optimization_level=0 --xla_cpu_use_fusion_emitters=false'
)
if not os.environ.get('CI'):
  os.environ.setdefault('XLA_FLAGS', os.environ['QUICK_XLA_FLAGS'])

# Under nohup, or in the background of a script, the programs that tests start
# would ignore what they are sent. A handler, other than being ignored, is not
# inherited.
for _number in (signal.SIGHUP, signal.SIGINT, signal.SIGQUIT):
  if signal.getsignal(_number) is signal.SIG_IGN:
    signal.signal(_number, lambda *_: None)

# JAX may have been imported by a plugin already, and then has read them.
jax.config.update(
  'jax_compilation_cache_dir', os.environ['JAX_COMPILATION_CACHE_DIR']
)
jax.config.update(
  'jax_persistent_cache_min_compile_time_secs',
  float(os.environ['JAX_PERSISTENT_CACHE_MIN_COMPILE_TIME_SECS']),
)

# A full collection walks all of JAX, and the default thresholds make hundreds.
gc.set_threshold(50_000, 20, 20)

# Two devices, so that every test runs the sharded program; a test that needs
# another number starts a process.
jax.config.update('jax_num_cpu_devices', 2)
jax.config.update('jax_numpy_rank_promotion', 'raise')


_XLA_FLAGS = os.environ.get('XLA_FLAGS')


@pytest.hookimpl(trylast=True)
def pytest_runtest_teardown():
  """Takes back the flags that a command called in a test has added."""
  if _XLA_FLAGS is None:
    os.environ.pop('XLA_FLAGS', None)
  else:
    os.environ['XLA_FLAGS'] = _XLA_FLAGS


# A compiled program of a CPU is three memory mappings or more, JAX keeps it as
# long as the process, and Linux allows a process 65,530: the next compilation
# after that kills it. A long run of the suite comes there.
_MAX_MAPPINGS = 20_000


@pytest.fixture(scope='module', autouse=True)
def bounded_mappings():
  """Forgets compiled programs between modules when there are many."""
  yield
  mappings = pathlib.Path('/proc/self/maps')
  if not mappings.exists():
    return
  with mappings.open('rb') as lines:
    count = sum(1 for _ in lines)
  if count > _MAX_MAPPINGS:
    jax.clear_caches()
    gc.collect()


# As type checkers do, take an int where a float is announced.
_CONF = beartype.BeartypeConf(is_pep484_tower=True, claw_is_pep526=False)


def check_shapes(function):
  """Checks a function's annotated types and shapes whenever it is called.

  Constructors are left out: JAX rebuilds pytree dataclasses around shardings,
  shapes and placeholders, which are not the arrays that the fields promise.
  """
  if function.__name__ == '__init__':
    return function
  return beartype.beartype(function, conf=_CONF)


# In tests only; a plain run pays nothing for the annotations. To compare shapes
# is dear where calls are small and many: the compiler of constraints, which has
# no arrays with shapes, took three times as long.
_WITHOUT_SHAPES = 'craft_jax.constrain'
beartype.claw.beartype_package(_WITHOUT_SHAPES, conf=_CONF)
_PACKAGE = pathlib.Path(__file__).parents[1] / 'craft_jax'
jaxtyping.install_import_hook(
  [
    name
    for module in pkgutil.iter_modules([str(_PACKAGE)], 'craft_jax.')
    if (name := module.name) != _WITHOUT_SHAPES
  ],
  f'{__name__}.check_shapes',
)


def pytest_collection_modifyitems(items):
  """Files with slow tests come first: no process is left with one at the end.

  The tests of a file stay together, for they share what takes long to make.
  """
  slow = {item.path for item in items if item.get_closest_marker('slow')}
  items.sort(key=lambda item: item.path not in slow)


@pytest.fixture(scope='session')
def byte_run(tmp_path_factory):
  """The run directory of a tiny model over bytes that has learnt nothing."""
  import jax.numpy as jnp

  from craft_jax.config.settings import Config, Data, Model, Text
  from craft_jax.data.text.vocabulary import Vocabulary
  from craft_jax.model.build import build
  from craft_jax.model.precision import platform_of
  from craft_jax.runs import checkpoint

  path = tmp_path_factory.mktemp('byte_run')
  cfg = Config(
    text=Text(vocabulary='byte'),
    data=Data(source='shakespeare'),
    model=Model(
      context=16, width=16, depth=1, num_heads=2, precision='float32',
      zero_init=False,
    ),
  )  # fmt: skip
  vocabulary = Vocabulary.byte()
  model = build(cfg.model, vocabulary.size, platform_of(jax.devices()[0]))
  state = {
    'step': jnp.int32(3),
    'data_offset': jnp.int32(0),
    'params': jax.jit(model.init)(jax.random.key(0)),
    'opt_state': (),
    'ema': None,
  }
  with checkpoint.Checkpointer(path) as saver:
    saver.save(state, checkpoint.Meta(3, cfg, vocabulary, 'abc', {}))
  return path


@pytest.fixture(scope='module')
def browser():
  """Chromium; its absence is the one reason to skip."""
  script = runpy.run_path(
    str(pathlib.Path(__file__).parents[1] / 'docs' / 'pictures.py')
  )
  try:
    with script['chromium']() as browser:
      yield browser
  except script['Missing'] as e:
    pytest.skip(f'needs {e}')
