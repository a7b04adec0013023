"""--weights and --kv-cache, from the command line and from Python."""

import jax.numpy as jnp
import pytest

import craft_jax
from craft_jax.errors import UserError
from craft_jax.main import main


@pytest.mark.parametrize(('argv', 'message'), [
  (['sample', '--weights=int4'], "--weights: invalid choice 'int4'"),
  (['sample', '--kv-cache=int4'], "--kv-cache: invalid choice 'int4'"),
  (['eval', '--weights=int8', '--dynamic'], '--dynamic cannot train int8'),
  (['compress', '--weights=int8', 'x'], "unknown flag '--weights=int8'"),
])  # fmt: skip
def test_mistakes_are_a_line(argv, message, byte_run, capsys):
  assert main([*argv, f'--workdir={byte_run}']) == 2
  out, err = capsys.readouterr()
  assert not out and err.count('\n') == 1 and message in err


def test_python_writes_what_the_command_writes(byte_run, capsys):
  flags = ['--prompt=ab', '--max-chars=9', '--weights=int8', '--kv-cache=int8']
  assert main(['sample', f'--workdir={byte_run}', *flags]) == 0
  model = craft_jax.load(byte_run, weights='int8', kv_cache='int8')
  kernel = model.trained.params['head']['kernel']
  assert kernel.values.dtype == jnp.int8
  assert (
    model.trained.model.init_cache(1, 4).layers[0][0].values.dtype == jnp.int8
  )
  assert (
    capsys.readouterr().out == 'ab' + model.generate('ab', max_chars=9) + '\n'
  )


@pytest.mark.parametrize('name', ['weights', 'kv_cache'])
def test_an_unknown_kind_has_a_hint(name, byte_run):
  with pytest.raises(UserError, match=f"{name}='int9' is not one of .*'int8'"):
    craft_jax.load(byte_run, **{name: 'int9'})


def test_rounded_weights_are_scored(byte_run):
  text = 'something to score'
  exact = craft_jax.load(byte_run).score(text)
  rounded = craft_jax.load(byte_run, weights='int8').score(text)
  assert exact != rounded == pytest.approx(exact, rel=0.05)
