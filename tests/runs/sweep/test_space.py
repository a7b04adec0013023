"""What a sweep varies: parsed, listed, drawn."""

import math

import hypothesis
import pytest
from hypothesis import strategies as st

from craft_jax.errors import UserError
from craft_jax.runs.sweep import space


def one(text):
  (dimension,) = space.parse([text])
  return dimension


@pytest.mark.parametrize(
  'text, values',
  [
    ('model.width=128,256', (128, 256)),
    ('optim.learning_rate=1e-3, 0.01', (0.001, 0.01)),
    ('model.tied=true,false', (True, False)),
    ('model.mlp=gelu,swiglu', ('gelu', 'swiglu')),
    ('data.path=../a.txt,b.txt', ('../a.txt', 'b.txt')),
    ("text.clean=(),('lower',),('lower','nfc')",
     ((), ('lower',), ('lower', 'nfc'))),
    ('model.depth=2..5', (2, 3, 4, 5)),
    ('model.width=64..200:64', (64, 128, 192)),
    ('model.dropout=0..0.3:0.1', (0.0, 0.1, 0.2, 0.3)),
  ],
)  # fmt: skip
def test_lists(text, values):
  found = one(text).listed()
  assert found == values
  assert [type(value) for value in found] == [type(value) for value in values]


@pytest.mark.parametrize(
  'text, words',
  [
    ('model.widht=1,2', "did you mean 'model.width'"),
    ('model.width', 'needs values'),
    ('model.width=', 'needs values'),
    ('model.width=1,two', 'must be of type int'),
    ('model.width=1.5,2', 'must be of type int'),
    ('optim.learning_rate=1e-3,0.001', '0.001 twice'),
    ('model.width=1..2,8', 'is not a range'),
    ('model.width=1..', 'is not a range'),
    ('model.width=a..b', 'is not a range'),
    ('model.width=1..9:lgo', 'is not a range'),
    ('model.width=1..2.5', 'is an integer'),
    ('model.width=1..9:0.5', 'is an integer'),
    ('model.width=9..9', 'below the high end'),
    ('model.width=1..9:0', 'step must be above 0'),
    ('model.width=1..9:-1', 'step must be above 0'),
    ('optim.learning_rate=0..1:log', 'needs a low end above 0'),
    ('optim.learning_rate=0..inf', 'must be finite'),
    ('optim.learning_rate=nan..1', 'must be finite'),
    ('train.steps=1..1000000', '1,000,000 values'),
  ],
)
def test_mistakes(text, words):
  with pytest.raises(UserError, match=words):
    space.parse([text])


def test_a_setting_is_given_once():
  with pytest.raises(UserError, match='given twice'):
    space.parse(['model.width=1,2', 'model.width=3'])


@pytest.mark.parametrize(
  'text', ['optim.learning_rate=1e-4..1e-2', 'train.batch_size=8..64:log']
)
def test_a_grid_needs_steps(text):
  with pytest.raises(UserError, match='--search=random'):
    space.grid(space.parse([text]))


def test_grid_varies_the_last_fastest():
  found = space.grid(space.parse(['model.width=8,16', 'model.depth=1..2']))
  rows = [(point['model.width'], point['model.depth']) for point in found]
  assert rows == [(8, 1), (8, 2), (16, 1), (16, 2)]
  assert space.grid([]) == [{}]


SPACE = (
  'optim.learning_rate=1e-4..1e-2:log', 'model.depth=2..8',
  'model.width=64..200:64', 'model.dropout=0..0.5', 'model.mlp=gelu,swiglu',
  'train.batch_size=8..512:log',
)  # fmt: skip


def test_draws_repeat_and_more_begin_alike():
  parsed = space.parse(SPACE)
  points = space.draw(parsed, 50, seed=3)
  assert space.draw(parsed, 80, seed=3)[:50] == points
  assert space.draw(parsed, 50, seed=4) != points
  # Written down, so that no version changes them unnoticed.
  assert points[0] == {
    'optim.learning_rate': 0.0002992, 'model.depth': 5, 'model.width': 128,
    'model.dropout': 0.302, 'model.mlp': 'swiglu', 'train.batch_size': 10,
  }  # fmt: skip


def test_draws_cover_the_space():
  points = space.draw(space.parse(SPACE), 400, seed=0)
  rates = sorted(point['optim.learning_rate'] for point in points)
  # Evenly in the logarithm: the median is the geometric middle, 1e-3.
  assert 0.8e-3 < rates[200] < 1.25e-3
  assert 1e-4 <= rates[0] < 1.1e-4 and 0.9e-2 < rates[-1] <= 1e-2
  assert {p['model.depth'] for p in points} == set(range(2, 9))
  assert {p['model.width'] for p in points} == {64, 128, 192}
  sizes = [p['train.batch_size'] for p in points]
  assert min(sizes) == 8 and max(sizes) > 450
  assert all(type(size) is int for size in sizes)


def test_no_combination_is_drawn_twice():
  parsed = space.parse(['model.depth=1..3', 'model.tied=true,false'])
  points = space.draw(parsed, 6, seed=0)
  assert len({tuple(point.values()) for point in points}) == 6
  with pytest.raises(UserError, match='only 6 different'):
    space.draw(parsed, 7, seed=0)


@hypothesis.given(
  low=st.floats(1e-6, 1e3),
  factor=st.floats(1.001, 1e4),
  log=st.booleans(),
  share=st.floats(0, 1, exclude_max=True),
)
def test_what_is_drawn_is_inside(low, factor, log, share):
  high = low * factor
  text = f'optim.weight_decay={low!r}..{high!r}' + (':log' if log else '')
  value = one(text).at(share)
  assert low <= value <= high
  assert one(text).snapped(value) == value
  assert math.isclose(one(text).snapped(low), low, rel_tol=1e-3)
