"""Groups, equal effort and the verdict, on runs whose figures are known."""

import json
import math
import os

import numpy as np
import pytest

from craft_jax.errors import UserError
from craft_jax.runs import compare, curves, delete, listing, plot
from craft_jax.runs.lock import Lock


def loaded(*paths):
  return [listing.load(path) for path in paths]


def test_equal_effort(make_run):
  """The second run does twice the work in a step, in a quarter of the time."""
  a = make_run('a', [3.0, 2.0, 1.0])
  b = make_run('b', [2.8, 1.8], {'model.width': 64}, {'flops_per_token': 20.0})
  found = compare.compare(loaded(a, b))
  assert found.settings == {'model.width': [32, 64], 'train.steps': [30, 20]}
  assert not found.reporting and not found.circumstances
  assert [g.label for g in found.groups] == ['a', 'b']
  equal = {e.axis: e for e in found.equal}
  assert equal['steps'].at == 20
  assert equal['steps'].evaluated == [2.0, 1.8]
  np.testing.assert_allclose(equal['steps'].trained, [1.9, 1.7])
  assert equal['chars'].at == 2000
  assert equal['flops'].at == 30000  # a's end; b is halfway there
  assert equal['flops'].evaluated == [1.0, pytest.approx(2.3)]
  assert equal['seconds'].at == 40
  # a is better at its end, but it also went on for longer.
  assert (found.verdict.better, found.verdict.other) == (0, 1)
  assert found.verdict.difference == pytest.approx(0.8)
  assert found.verdict.exceeds is None  # one seed each
  assert found.notes == [
    'at equal steps b is ahead',
    'at equal characters read b is ahead',
    'at equal seconds b is ahead',
  ]
  json.dumps(compare.as_dict(found), allow_nan=False)


def test_seeds_are_grouped(make_run):
  paths = [
    make_run(f'w{width}-s{seed}', [3.0, best], {
      'model.width': width, 'seed': seed, 'log.every': seed + 1})
    for width, values in ((32, (2.0, 2.1, 2.2)), (64, (1.0, 1.1, 1.2)))
    for seed, best in enumerate(values)
  ]  # fmt: skip
  found = compare.compare(loaded(*paths))
  assert [g.label for g in found.groups] == ['w32-s0 x3', 'w64-s0 x3']
  assert found.settings == {'model.width': [32, 64]}
  small, large = found.groups
  assert small.mean == pytest.approx(2.1)
  assert small.deviation == pytest.approx(0.1)
  assert large.deviation == pytest.approx(0.1)
  assert found.verdict.better == 1 and found.verdict.exceeds
  # Welch: 2.776 (4 degrees of freedom) times sqrt(0.01 / 3 + 0.01 / 3).
  assert found.verdict.margin == pytest.approx(2.776 * math.sqrt(0.02 / 3))
  one = compare.compare(loaded(*paths[:3]))
  assert len(one.groups) == 1 and one.verdict.better is None


@pytest.mark.parametrize(
  'a, b, exceeds',
  [
    ([2.0], [1.0], None),
    ([2.0, 2.2], [1.9], False),
    ([2.0, 2.001, 2.002], [1.9], True),
    ([2.0, 2.2], [1.9, 2.1], False),
    ([2.0, 2.0], [1.0, 1.0], True),
    ([2.0, 2.01, 2.02], [1.9, 1.91, 1.92], True),
  ],
)
def test_noise(make_run, a, b, exceeds):
  paths = [
    make_run(f'{name}{seed}', [3.0, best], {'seed': seed, 'model.width': width})
    for name, width, values in (('a', 1, a), ('b', 2, b))
    for seed, best in enumerate(values)
  ]
  found = compare.compare(loaded(*paths))
  assert found.verdict.better == 1 and found.verdict.exceeds is exceeds


def test_runs_of_one_seed_are_one_sample(make_run):
  paths = [make_run(name, [3.0, best]) for name, best in (('a', 2), ('b', 1))]
  (group,) = compare.compare(loaded(*paths)).groups
  assert len(group.results) == 2
  assert group.values == [1.5] and group.deviation is None


def test_other_vocabularies_are_compared_by_bits_per_byte(make_run):
  a = make_run('a', [3.0, 1.0])
  b = make_run('b', [3.0, 2.0], {'model.width': 8}, {
    'vocabulary_fingerprint': 'w', 'corpus_fingerprint': 'd'})  # fmt: skip
  found = compare.compare(loaded(a, b))
  assert found.metric == 'val_bpb'
  assert found.groups[0].mean == pytest.approx(1.4427)
  notes = ' '.join(found.notes)
  assert 'bits per byte' in notes and 'different texts' in notes
  assert compare.compare(loaded(a, b), 'val_loss').metric == 'val_loss'


def test_runs_that_are_not_evaluated(make_run):
  a = make_run('a', [3.0])
  b = make_run('b', [], {'model.width': 8}, {'status': 'failed'})
  found = compare.compare(loaded(a, b))
  assert found.verdict.better is None and not found.equal
  notes = ' '.join(found.notes)
  assert 'b has no val_loss yet' in notes and 'not finished: ' in notes


def test_old_runs_without_units(make_run):
  """Of a version that wrote neither seconds nor what a token costs."""
  paths = []
  for name, width in (('a', 1), ('b', 2)):
    path = make_run(name, settings={'model.width': width})
    meta = json.loads((path / 'metadata.json').read_text())
    for key in ('tokens_per_step', 'chars_per_token', 'flops_per_token'):
      del meta[key]
    (path / 'metadata.json').write_text(json.dumps(meta))
    text = (path / 'metrics.jsonl').read_text()
    (path / 'metrics.jsonl').write_text(text.replace('seconds', 'else'))
    paths.append(path)
  found = compare.compare(loaded(*paths))
  assert [e.axis for e in found.equal] == ['steps']


# --- plots -------------------------------------------------------------------


def test_smoothing_and_thinning():
  y = np.array([4.0, 0.0, 4.0, 0.0])
  np.testing.assert_array_equal(plot.smoothed(y, 0.0), y)
  # (4 / 2 + 0) / (3 / 4), and so on: weights 1/2, 1/4, ... from the last.
  np.testing.assert_allclose(
    plot.smoothed(y, 0.5), [4, 4 / 3, 20 / 7, 4 / 3], rtol=1e-12
  )
  np.testing.assert_allclose(plot.smoothed(np.ones(9), 0.9), np.ones(9))
  x, thin = plot.thinned(np.arange(1000.0), np.arange(1000.0), 10)
  assert len(x) == 10 and thin.mean() == pytest.approx(499.5)
  assert (x == thin).all() and x[0] == 49.5


@pytest.mark.slow
@pytest.mark.parametrize(
  'name, head',
  [('p.png', b'\x89PNG'), ('p.svg', b'<?xml'), ('p.pdf', b'%PDF')],
)
def test_pictures(make_run, tmp_path, name, head):
  found = loaded(make_run('a'), make_run('b', [2.0, 1.0]), make_run('c', []))
  path = tmp_path / 'new' / name
  for axis in curves.AXES:
    drawn = plot.draw(found, str(path), axis=axis, smooth=0.9, log='xy')
    assert drawn == 4  # c has nothing
    assert path.read_bytes().startswith(head)
  with pytest.raises(UserError, match="no run has 'los', did you mean 'loss'"):
    plot.draw(found, str(path), ['los'])


@pytest.mark.parametrize(
  'change, words',
  [
    ({'output': 'a.gif'}, 'must end in one of'),
    ({'smooth': 1.0}, 'below 1'),
    ({'log': 'z'}, 'must be x, y or xy'),
    ({'metrics': []}, '--metric is empty'),
  ],
)
def test_what_cannot_be_drawn(change, words):
  given = {'output': 'a.png', 'smooth': 0.0, 'log': '', 'metrics': ['loss']}
  plot.check(**given)
  with pytest.raises(UserError, match=words):
    plot.check(**(given | change))


# --- deleting ----------------------------------------------------------------


def test_what_is_garbage(make_run):
  done = make_run('done')
  failed = make_run('failed', [], metadata={'status': 'failed'})
  saved = make_run('saved', metadata={'status': 'failed'})
  (saved / 'checkpoints' / '20').mkdir(parents=True)
  dead = make_run('dead', metadata={'status': 'running'})
  going = make_run('going', [], metadata={'status': 'running'})
  lock = Lock(going)
  left = done / '.metadata.json.abcd1234'
  for path in (left, going / '.metadata.json.abcd1234'):
    path.write_text('half')
    os.utime(path, (1, 1))
  (done / '.metadata.json.young123').write_text('being written')
  (done / '.notes').write_text('mine')
  found = delete.garbage(loaded(done, failed, saved, dead, going))
  assert [item.path for item in found] == [left, failed, dead]
  assert 'without a checkpoint' in found[1].why
  with pytest.raises(UserError, match='is going on'):
    delete.removable(going)
  with pytest.raises(UserError, match='not a run directory'):
    delete.removable(going.parent)
  delete.delete(found)
  assert not failed.exists() and not dead.exists() and not left.exists()
  assert (done / 'config.json').exists() and saved.exists()
  assert (done / '.notes').exists()
  lock.close()


def test_unfinished_seeds_stay_out_of_the_verdict(make_run):
  """A seed that was stopped early would turn the verdict round."""
  a = [make_run(f'a{n}', [3.0, 2.0 + n / 100], {'seed': n}) for n in range(3)]
  b = [
    make_run(f'b{n}', [3.0, 2.2 + n / 100], {'seed': n, 'model.width': 8})
    for n in range(3)
  ]
  for status in ('stopped', 'failed', 'running'):
    late = make_run(
      f'{status}', [9.0], {'seed': 9, 'train.steps': 20}, {'status': status}
    )
    found = compare.compare(loaded(*a, late, *b))
    assert len(found.groups) == 2
    assert found.groups[0].mean == pytest.approx(2.01)
    assert found.groups[0].deviation == pytest.approx(0.01)
    assert found.verdict.better == 0 and found.verdict.exceeds
    (note,) = (n for n in found.notes if 'not finished' in n)
    shown = 'dead' if status == 'running' else status
    assert f'{status} ({shown}, step 10)' in note and 'left out' in note


@pytest.mark.parametrize(
  ('other', 'metric', 'better'),
  [
    ({'corpus_fingerprint': 'd'}, None, None),  # nobody knows which text
    ({'corpus_fingerprint': 'd', 'valid_fingerprint': 'x'}, None, None),
    ({'corpus_fingerprint': 'd', 'valid_fingerprint': 't'}, None, 0),
    (
      {
        'corpus_fingerprint': 'd',
        'valid_fingerprint': 't',
        'vocabulary_fingerprint': 'w',
      },
      None,
      0,
    ),
    (
      {
        'corpus_fingerprint': 'd',
        'valid_fingerprint': 't',
        'vocabulary_fingerprint': 'w',
      },
      'val_loss',
      None,
    ),
  ],
)
def test_no_winner_between_texts_or_units(make_run, other, metric, better):
  a = make_run('a', metadata={'valid_fingerprint': 't'})
  b = make_run('b', [3.0, 2.5], {'model.width': 8}, other)
  found = compare.compare(loaded(a, b), metric)
  assert found.verdict.better == better
  notes = ' '.join(found.notes)
  said = 'ranks nothing' in notes or 'no metric ranks them' in notes
  assert said == (better is None)
