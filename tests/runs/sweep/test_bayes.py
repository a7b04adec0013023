"""Suggestions and pruning, by the real Optuna."""

import math

import pytest

from craft_jax.errors import UserError
from craft_jax.runs.sweep import bayes, space

SPACE = space.parse(
  [
    'optim.learning_rate=1e-5..1:log', 'model.depth=2..8',
    'model.width=64..200:64', 'model.dropout=0..0.5:0.1',
    'model.mlp=gelu,swiglu', 'text.clean=(),("lower",)',
    'optim.weight_decay=0..1',
  ]
)  # fmt: skip


def past(settings, *values, status=bayes.FINISHED):
  return bayes.Past(
    settings, {100 * (i + 1): v for i, v in enumerate(values)}, status
  )


def walk(count, loss, seed=0, higher=False, dims=SPACE):
  """A search on a function of the settings."""
  history = []
  for _ in range(count):
    point = bayes.suggest(dims, history, seed, higher)
    history.append(past(point, loss(point) + 1, loss(point)))
  return history


def test_suggestions_are_in_the_space_and_repeat():
  history = walk(12, lambda point: point['model.depth'])
  assert walk(12, lambda point: point['model.depth']) == history
  assert walk(3, lambda p: p['model.depth'], seed=1)[0] != history[0]
  assert len({str(one.settings) for one in history}) == 12
  for one in history:
    values = one.settings
    assert 1e-5 <= values['optim.learning_rate'] <= 1
    assert values['model.width'] in (64, 128, 192)
    assert values['model.dropout'] in (0, 0.1, 0.2, 0.3, 0.4, 0.5)
    assert values['text.clean'] in ((), ('lower',))
    assert [type(v) for v in values.values()] == [
      float, int, int, float, str, tuple, float,
    ]  # fmt: skip


@pytest.mark.parametrize('higher', [False, True])
def test_it_learns(higher):
  """Nearer to the best learning rate, in powers of ten, than by chance."""
  dims = space.parse(['optim.learning_rate=1e-5..1:log'])

  def loss(point):
    miss = abs(math.log10(point['optim.learning_rate']) + 2)
    return -miss if higher else miss

  late = walk(40, loss, higher=higher, dims=dims)[10:]
  mean = sum(abs(loss(one.settings)) for one in late) / len(late)
  assert mean < 0.9  # random ones are 1.3 away


def test_all_states_are_understood():
  """Failed, pruned, running ones, and one that never was evaluated."""
  (good,) = walk(1, lambda point: 2.0)
  states = [
    past(good.settings, 3.0, status=bayes.PRUNED),
    past(good.settings, status=bayes.PRUNED),
    past(good.settings, status=bayes.FAILED),
    past(good.settings, status=bayes.RUNNING),
    past(good.settings, 3.0, status=bayes.RUNNING),
    past(good.settings, status=bayes.FINISHED),
  ]
  assert bayes.suggest(SPACE, [good, *states], 0)
  # As sweep.json has it: a list.
  listed = dict(good.settings) | {'text.clean': ['lower']}
  assert bayes.suggest(SPACE, [past(listed, 2.0)], 0)


def test_the_median_decides():
  settings = walk(1, lambda point: 2.0)[0].settings
  three = [past(settings, first, 1.0) for first in (4.0, 3.0, 2.0)]

  def hopeless(history, *values, higher=False):
    one = past(settings, *values, status=bayes.RUNNING)
    return bayes.is_hopeless(SPACE, history, one, higher)

  assert hopeless(three, 3.1) and not hopeless(three, 3.0)
  # The best so far counts, at the last step.
  assert not hopeless(three, 0.9, 1.1) and hopeless(three, 1.2, 1.1)
  assert not hopeless(three, 3.1, higher=True)
  assert hopeless(three, 2.9, higher=True)
  # Nothing to go by: too few finished, or none so far.
  assert not hopeless(three[:2], 9.0) and not hopeless(three)
  pruned = past(settings, 1.0, status=bayes.PRUNED)
  assert not hopeless([*three[:2], pruned], 9.0)


def test_without_optuna_it_is_one_line(monkeypatch):
  import sys

  monkeypatch.setitem(sys.modules, 'optuna', None)
  with pytest.raises(UserError, match=r"pip install 'craft-jax\[sweep\]'"):
    bayes.check_installed()
