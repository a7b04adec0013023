"""Filters say what they mean, and mistakes in them are told."""

import pytest

from craft_jax.errors import UserError
from craft_jax.runs import query

FACTS = {
  'model.width': 256, 'status': 'finished', 'loss': 1.5, 'name': 'runs/a',
  'optim.name': 'muon', 'model.tied': True, 'final': None, 'seed': 3,
}  # fmt: skip


@pytest.mark.parametrize(
  'text, result',
  [
    ('model.width>=256 and status==finished', True),
    ('model.width>256 or status==failed', False),
    ('not status==failed', True),
    ('1 < loss <= 1.5', True),
    ('loss < -1', False),
    ("name == 'runs/a'", True),
    ("'a' in name", True),
    ('optim.name in (adamw, muon)', True),
    ('optim.name not in (adamw, muon)', False),
    ('status in (failed, dead)', False),
    ('model.tied', True),
    ('model.tied == true', True),
    ('not model.tied', False),
    ('final < 5', False),  # it does not tell
    ('final >= 5', False),
    ('loss == name', False),
    ('loss > name', False),  # a number and a text
    ('(seed == 1 or seed == 3) and loss < 2', True),
  ],
)
def test_filters(text, result):
  assert query.parse(text, set(FACTS))(FACTS) is result


@pytest.mark.parametrize(
  'text, words',
  [
    ('model.width >', 'cannot be read'),
    ('', 'cannot be read'),
    ('modl.width > 3', "did you mean 'model.width'"),
    ('status == finnished', "did you mean 'finished'"),
    ('status in (finished, ded)', "did you mean 'dead'"),
    ('loss', None),
    ('3', 'is no comparison'),
    ('loss < 2 * 3', 'neither a name nor a value'),
    ('loss is 3', 'use =='),
    ('open("x") == 1', 'neither a name nor a value'),
    ('width', "no 'width'"),
  ],
)
def test_mistakes(text, words):
  if words is None:
    assert query.parse(text, set(FACTS))(FACTS)
    return
  with pytest.raises(UserError, match=words):
    query.parse(text, set(FACTS))
