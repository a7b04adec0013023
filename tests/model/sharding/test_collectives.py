"""What each strategy sends between devices, read off the compiled step.

Sizes differ from each other, so that a shape says what it is of.
"""

import math
from collections import Counter

import pytest

B, T, D, F, V, L = 16, 24, 32, 128, 20, 3
SETTINGS = [f'model.context={T}', f'model.depth={L}']
# How a gradient over `fsdp` is summed and spread. XLA writes a sum and a slice;
# the back ends of accelerators make one instruction of the two.
GRADIENTS = {
  'cpu': ('all-reduce',),
  'gpu': ('all-reduce', 'reduce-scatter'),
  'tpu': ('all-reduce', 'reduce-scatter'),
}


def case(optimizer='adamw', *more, constrained=True, **mesh):
  """An entry for `eight_devices`."""
  axes = {'data': 1, 'fsdp': 1, 'tensor': 1} | mesh
  overrides = [f'mesh.{name}={size}' for name, size in axes.items()]
  return {
    'overrides': [*SETTINGS, f'optim.name={optimizer}', *more, *overrides],
    'constrained': constrained,
  }


def kernels(tensor):
  """Shapes of a layer's kernels as they are used: query, key, value, ..."""
  return [
    *[(D, D // tensor)] * 3,
    (D // tensor, D),
    (D, F // tensor),
    (F // tensor, D),
  ]


TABLES = [(V, D), (D, V)]


def check(result, data=1, fsdp=1, tensor=1, muon=()):
  """Refuses every collective that the strategy has no need of.

  Args:
    result: of the program.
    data: devices of the axis.
    fsdp: devices of the axis.
    tensor: devices of the axis.
    muon: allowed besides, of stacks: `(instruction, elements)`.

  Returns:
    How often each shape is gathered, and how often each is summed: by sorted
    sizes, since a compiler may compute a gradient transposed.
  """
  rows = B // (data * fsdp)
  used = {*kernels(tensor), *TABLES}
  # Over `fsdp` first, and what is left of it over `data`.
  reduced = {*used, (D,), *((a // fsdp, b) for a, b in used)}
  reduced |= {(a, b // fsdp) for a, b in used}
  if tensor > 1:
    reduced.add((rows, T, D))  # heads and hidden units, summed
  gathered, summed = Counter(), Counter()
  for op, shapes in result['collectives']:
    stacked = all(len(shape) > 2 for shape in shapes)
    if stacked and (op, sum(map(math.prod, shapes))) in muon:
      continue
    for shape in map(tuple, shapes):
      if op == 'all-gather':
        assert fsdp > 1 and shape in used, (op, shape)
        gathered[shape] += 1
      else:
        assert op in GRADIENTS[result['backend']], (op, shape)
        if math.prod(shape) > 1:  # else a metric or a norm
          assert shape in reduced or shape[::-1] in reduced, (op, shape)
          summed[tuple(sorted(shape))] += 1
  return gathered, summed


def check_gathers(gathered, tensor, layers):
  """Each kernel forward and backward, each table once."""
  want = Counter(2 * layers * kernels(tensor)) + Counter(TABLES)
  assert gathered == want


def check_gradients(summed, tensor, layers):
  """Each gradient once, and those of the norms."""
  shapes = layers * kernels(tensor) + TABLES
  want = Counter(tuple(sorted(shape)) for shape in shapes)
  want[(D,)] += 2 * layers + 1
  assert summed == want


@pytest.mark.slow
def test_data_parallel_sums_gradients(eight_devices):
  unrolled, scanned = eight_devices(
    case(data=8), case('adamw', 'model.unroll=1', data=8)
  )
  for result, layers in ((unrolled, L), (scanned, 1)):
    gathered, summed = check(result, data=8)
    assert not gathered
    check_gradients(summed, 1, layers)


@pytest.mark.slow
def test_fsdp_gathers_a_layer_at_a_time(eight_devices):
  unrolled, scanned, remat, wrong = eight_devices(
    case(fsdp=8),
    case('adamw', 'model.unroll=1', fsdp=8),
    case('adamw', 'model.remat=block', fsdp=8),
    case('adamw', 'model.unroll=1', constrained=False, fsdp=8),
  )
  for result, layers in ((unrolled, L), (scanned, 1), (remat, 1)):
    gathered, summed = check(result, fsdp=8)
    check_gathers(gathered, 1, layers)
    check_gradients(summed, 1, layers)
  # Left to itself, the compiler sends activations around.
  with pytest.raises(AssertionError, match=r'all-to-all|16, 24'):
    check(wrong, fsdp=8)


@pytest.mark.slow
def test_tensor_parallel_sums_activations(eight_devices):
  unrolled, scanned = eight_devices(
    case(data=2, tensor=4), case('adamw', 'model.unroll=1', data=2, tensor=4)
  )
  for result, layers in ((unrolled, L), (scanned, 1)):
    gathered, summed = check(result, data=2, tensor=4)
    assert not gathered
    # Forward what attention and MLP yield; backward what query, key, value
    # and MLP read, which a compiler may add up first.
    assert 4 * layers <= summed.pop(tuple(sorted((B // 2, T, D)))) <= 6 * layers
    check_gradients(summed, 4, layers)


@pytest.mark.slow
def test_all_at_once(eight_devices):
  axes = {'data': 2, 'fsdp': 2, 'tensor': 2}
  more = (
    'model.mlp=swiglu',
    f'model.mlp_width={F}',
    'model.dropout=0.1',
    'model.num_kv_heads=2',
    'model.documents=true',
    'train.accumulate=2',
  )
  plain, accumulated = eight_devices(
    case(**axes), case('adamw', 'model.unroll=1', *more, **axes)
  )
  gathered, summed = check(plain, **axes)
  check_gathers(gathered, 2, L)
  assert 4 * L <= summed[tuple(sorted((B // 4, T, D)))] <= 6 * L
  # Other shapes, the same kinds: gathered are matrices, nothing is moved.
  for op, shapes in accumulated['collectives']:
    assert op in ('all-gather', *GRADIENTS[accumulated['backend']])
    assert op != 'all-gather' or all(len(shape) == 2 for shape in shapes)


def _elements(matrices, *shape):
  return matrices * math.prod(shape)


@pytest.mark.slow
def test_muon_moves_its_stacks(eight_devices):
  """One share per device: 4 L matrices [D, D], L of each of the MLP's."""
  data, fsdp, both = eight_devices(
    case('muon', 'model.unroll=1', data=8),
    case('muon', 'model.unroll=1', fsdp=8),
    case('muon', 'model.unroll=1', data=4, fsdp=2),
  )
  # Copies of a gradient are there already: only the results are gathered, and
  # the 12 and 3 matrices are filled up to a multiple of 8.
  gathers = {('all-gather', 16 * D * D), ('all-gather', 8 * D * F)}
  gathered, summed = check(data, data=8, muon=gathers)
  assert not gathered
  check_gradients(summed, 1, 1)
  # No copies: parts are exchanged for whole matrices, and back. Three kernels
  # are spread by their first dim, the output's by its second.
  qkv, output, mlp = 16 * D * D // 8, 8 * D * D // 8, 8 * D * F // 8
  exchanges = {('all-to-all', size) for size in (qkv, output, mlp)}
  gathered, summed = check(fsdp, fsdp=8, muon=exchanges)
  check_gathers(gathered, 1, 1)
  check_gradients(summed, 1, 1)
  # Both: exchanges over one axis, then the results over the other.
  shares = (16 * D * D // 2, 8 * D * D // 2, 8 * D * F // 2)
  allowed = {(op, n) for op in ('all-gather', 'all-to-all') for n in shares}
  gathered, summed = check(both, data=4, fsdp=2, muon=allowed)
  check_gathers(gathered, 1, 1)


@pytest.mark.parametrize(
  'op, shape',
  [
    ('all-gather', [L, D, F]),  # a whole stack of parameters
    ('all-gather', [B, T, D]),  # the rows of all devices
    ('all-gather', [B // 8, T, D]),
    ('all-reduce', [B, T, F]),
    ('all-reduce', [L, D, F]),
    ('all-to-all', [1, 1, D, 4]),
    ('collective-permute', [D, F]),
  ],
)
def test_the_check_can_fail(op, shape):
  with pytest.raises(AssertionError, match=op):
    check({'backend': 'cpu', 'collectives': [[op, [shape]]]}, fsdp=8)
  with pytest.raises(AssertionError, match='all-gather'):
    found = [['all-gather', [[D, F]]]]
    check({'backend': 'cpu', 'collectives': found}, data=8)
