import math

import jax.numpy as jnp
import numpy as np
import pytest

from craft_jax.data.text.character_classes import (
  CLASS_NAMES,
  classes_of,
  sizes_of,
)
from craft_jax.data.text.vocabulary import Vocabulary
from craft_jax.inference import metrics


def test_bits_per_byte_uses_counted_bytes():
  chars, sizes = sizes_of(Vocabulary('char', 'aé漢😀'))
  y = jnp.array([[0, 1, 2, 3, 4]])
  weight = jnp.array([[1.0, 1, 1, 1, 0]])
  nll = jnp.array([[1.0, 2, 3, 4, jnp.inf]])
  sums = metrics.token_sums(nll, nll, nll > 2, weight)
  sums |= metrics.text_sums(y, weight, jnp.asarray(chars), jnp.asarray(sizes))
  got = metrics.summary(sums)
  assert got['loss'] == 2.5 and got['count'] == 4
  assert got['accuracy'] == 0.5
  assert got['perplexity'] == pytest.approx(math.exp(2.5))
  assert got['bpc'] == pytest.approx(10 / math.log(2) / 4)
  assert got['bpb'] == pytest.approx(10 / math.log(2) / 10)


def test_withheld_and_not_counted():
  sums = {'nll': 2.0, 'count': 2, 'chars': 2, 'bytes': 2}
  got = metrics.summary(sums, withheld='the text was lower-cased')
  assert got['bpb'] is None and got['bpc'] is not None
  assert any('lower-cased' in line for line in metrics.lines(got))
  assert metrics.summary({'nll': 2.0, 'count': 2})['bpb'] is None
  with pytest.raises(ValueError, match='no target'):
    metrics.summary({'nll': 0.0, 'count': 0})
  huge = metrics.summary({'nll': 1e6, 'count': 1})
  assert huge['perplexity'] == math.inf


def test_breakdown_adds_up():
  rng = np.random.default_rng(0)
  y = rng.integers(0, 260, (4, 6))
  nll = rng.random((4, 6)).astype(np.float32)
  weight = rng.integers(0, 2, (4, 6)).astype(np.float32)
  table = classes_of(Vocabulary.byte())
  sums = metrics.breakdown_sums(
    jnp.asarray(nll),
    jnp.asarray(nll > 0.5),
    jnp.asarray(y),
    jnp.asarray(weight),
    jnp.asarray(table),
  )
  for i in range(len(CLASS_NAMES)):
    chosen = (table[y] == i) * weight
    np.testing.assert_allclose(sums['class_nll'][i], (nll * chosen).sum(), 1e-5)
    assert sums['class_count'][i] == chosen.sum()
    assert sums['class_correct'][i] == ((nll > 0.5) * chosen).sum()
  np.testing.assert_allclose(sums['position_nll'], (nll * weight).sum(0), 1e-5)
  np.testing.assert_array_equal(sums['position_count'], weight.sum(0))
  total = {'nll': (nll * weight).sum(), 'count': weight.sum()}
  got = metrics.summary(total | sums)
  rows = got['classes'].values()
  assert sum(r['share'] * r['nats'] for r in rows) == pytest.approx(got['loss'])
  assert metrics.lines(got)


def test_positions_are_grouped_by_powers_of_two():
  sums = {
    'nll': 0.0,
    'count': 10,
    'position_nll': np.arange(10.0),
    'position_count': np.ones(10),
  }
  got = metrics.summary(sums)['positions']
  ends = [(r['first'], r['last']) for r in got]
  assert ends == [(0, 0), (1, 1), (2, 3), (4, 7), (8, 9)]
  assert [r['nats'] for r in got] == [0, 1, 2.5, 5.5, 8.5]


def test_sums_not_means_of_means():
  a = {'nll': np.float32(3), 'count': np.float32(1)}
  b = {'nll': np.float32(1), 'count': np.float32(3), 'bytes': 4}
  total = metrics.add_sums(a, b)
  assert metrics.summary(total)['loss'] == 1.0
  assert total['bytes'] == 4


@pytest.mark.parametrize(
  'kind, platform, peak',
  [
    ('NVIDIA H100 80GB HBM3', 'gpu', 989.4e12),
    ('NVIDIA H200', 'gpu', 989.4e12),
    ('NVIDIA H100 PCIe', 'gpu', 756e12),
    ('NVIDIA A100-SXM4-80GB', 'gpu', 312e12),
    ('NVIDIA L4', 'gpu', 121e12),
    ('NVIDIA GeForce RTX 4090', 'gpu', 165.2e12),
    ('TPU v4', 'tpu', 275e12),
    ('TPU v5 lite', 'tpu', 197e12),
    ('TPU v6 lite', 'tpu', 918e12),
    ('NVIDIA H200 MIG 1g.18gb', 'gpu', None),
    ('NVIDIA GeForce RTX 4090 Laptop GPU', 'gpu', None),
    ('Tesla V100-SXM2-16GB', 'gpu', None),
    ('NVIDIA A10G', 'gpu', None),
    ('cpu', 'cpu', None),
  ],
)
def test_peak(kind, platform, peak):
  got, source = metrics.peak_flops(kind, platform)
  assert got == peak
  assert source.startswith('unknown') == (peak is None)
