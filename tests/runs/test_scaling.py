"""Which runs count for a scaling law, and what they must have."""

import json
import re

import numpy as np
import pytest

from craft_jax.cli import scaling_text
from craft_jax.errors import UserError
from craft_jax.runs import listing
from craft_jax.runs.scaling import observations, plot
from craft_jax.runs.scaling.law import Law

LAW = Law(E=1.0, A=30.0, alpha=0.3, B=90.0, beta=0.35)
SIZES, STEPS = (1e4, 1e5, 1e6), (10, 30, 90)
PER_STEP = 1e5  # tokens


@pytest.fixture
def make_point(make_run):
  """`make_point(size, steps, noise, settings, metadata)`: a finished run."""
  made = []

  def make(size, steps, noise=0.0, settings=None, metadata=None):
    made.append(f'r{len(made)}')
    loss = LAW.loss(size, steps * PER_STEP) * np.exp(noise)
    # Worse at the evaluation before the last, which does not count.
    losses = [2 * loss] * (steps // 10 - 1) + [loss]
    facts = {'params': size, 'tokens_per_step': PER_STEP,
             'flops_per_token': 6 * size}  # fmt: skip
    make_run(made[-1], losses, settings, facts | (metadata or {}))
    return made[-1]

  make.made = made
  return make


def load(tmp_path, names):
  return [listing.load(tmp_path / name) for name in names]


@pytest.fixture
def grid(make_point, tmp_path):
  for size in SIZES:
    for steps in STEPS:
      make_point(size, steps, settings={'model.width': int(size)})
  return load(tmp_path, make_point.made)


def test_last_evaluations_of_finished_runs(grid, make_point, tmp_path):
  make_point(1e5, 30, 0.01, {'seed': 1, 'model.width': 100_000})
  make_point(1e5, 60, metadata={'status': 'stopped'})
  make_point(1e5, 60, settings={'train.steps': 70})  # evaluated at 60 only
  points = observations.collect(load(tmp_path, make_point.made))
  assert len(points.runs) == 10 and points.groups.max() == 8
  assert points.groups[4] == points.groups[9]
  assert points.params[0] == 1e4 and points.tokens[0] == 1e6
  assert points.loss[:9] == pytest.approx(
    LAW.loss(points.params[:9], points.tokens[:9])
  )
  assert points.flops[0] == 6e10
  assert [note.partition(':')[0] for note in points.notes] == [
    'left out, not finished', 'left out, no val_loss at the last step',
  ]  # fmt: skip
  assert points.notes[0].endswith('r10') and points.notes[1].endswith('r11')


def test_the_study(grid, tmp_path):
  points = observations.collect(grid)
  study = observations.study(points, draws=20)
  assert study.flops == pytest.approx(10 * 6 * 1e6 * 9e6)
  assert study.cost.scale == pytest.approx(6)
  for name in ('E', 'A', 'alpha', 'B', 'beta'):
    assert getattr(study.law, name) == pytest.approx(
      getattr(LAW, name), rel=1e-3
    )
  assert np.abs(study.errors).max() < 1e-5
  assert not points.notes
  far = observations.study(points, 1e18, draws=20)
  assert far.best.params > study.best.params
  assert any('a far extrapolation' in note for note in far.notes)
  assert any('parameters lies outside' in note for note in far.notes)
  text = scaling_text.text(study, None)
  assert re.search(r'val_loss = 1 \+ 30(\.\d+)? N\^-0.3 \+ ', text)
  data = json.loads(json.dumps(scaling_text.as_dict(study, None)))
  assert data['best']['params'] == study.best.params
  assert len(data['runs']) == 9 and data['runs'][0]['name'].endswith('r0')
  for name in ('a.png', 'a.svg'):
    plot.draw(study, str(tmp_path / name))
    assert (tmp_path / name).stat().st_size > 5000


@pytest.mark.parametrize(
  'sizes, steps, words',
  [
    ([], [], 'no finished run with a val_loss'),
    ([1e4, 1e5, 1e6, 1e4, 1e5], [10, 20, 30, 30, 10], '5 points'),
    ([1e5] * 7, [10, 20, 30, 40, 50, 60, 70], '1 sizes in 7 finished runs'),
    ([1e4, 2e4, 3e4, 4e4, 5e4, 6e4], [10, 20] * 3, '2 lengths'),
    ([1e4, 2e4, 4e4, 8e4, 16e4, 32e4], [10, 20, 40, 80, 160, 320],
     'change together'),
  ],
)  # fmt: skip
def test_what_cannot_be_fitted(make_point, tmp_path, sizes, steps, words):
  for pair in zip(sizes, steps, strict=True):
    make_point(*pair)
  with pytest.raises(UserError, match=words):
    observations.collect(load(tmp_path, make_point.made))


def test_different_texts_are_refused(grid, make_point, tmp_path):
  make_point(1e5, 60, metadata={'corpus_fingerprint': 'other'})
  with pytest.raises(UserError, match='2 different texts'):
    observations.collect(load(tmp_path, make_point.made))


def test_accuracy_is_no_loss(grid):
  with pytest.raises(UserError, match='rises as models improve'):
    observations.collect(grid, 'val_accuracy')


def test_what_to_bear_in_mind(make_point, tmp_path):
  for i, size in enumerate(SIZES):
    for steps in STEPS[: 2 + (i == 0)]:
      settings = {'model.width': int(size), 'model.mlp': 'gelu'}
      if i == 2:
        settings['model.mlp'] = 'swiglu'
      make_point(size, steps, 0, settings, {'train_tokens': 1e6})
  notes = observations.collect(load(tmp_path, make_point.made)).notes
  assert 'also differ in model.mlp;' in notes[0]
  assert notes[1].startswith('up to 9 passes over the text')
  assert notes[2].startswith('7 points are few')
