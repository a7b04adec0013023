"""The planner's arithmetic against the program, and against hand counts."""

import collections
import dataclasses
import json
import math
import re

import jax
import jax.numpy as jnp
import pytest
from jax.sharding import AxisType

from craft_jax import main
from craft_jax.config.settings import Config, Eval, Model, Optim, Train
from craft_jax.errors import UserError
from craft_jax.model import causal
from craft_jax.model.build import build
from craft_jax.model.precision import platform_of
from craft_jax.model.sharding import mesh as mesh_lib
from craft_jax.train import plan
from craft_jax.train.optim.optimizers import build_optimizer
from craft_jax.train.plan import memory
from craft_jax.train.plan import text as text_lib
from craft_jax.train.plan.choose import layouts
from craft_jax.train.plan.devices import DEVICES
from craft_jax.train.plan.layout import Layout, collective, span
from craft_jax.train.plan.traffic import muon_flops, traffic
from craft_jax.train.state import abstract_state, init_state
from craft_jax.train.step import make_train_step
from craft_jax.types import Batch

HERE = platform_of(jax.devices()[0])

_H100 = plan.find_device('h100-80gb')
_V5E = plan.find_device('v5e')
_SMALL = Config(
  model=Model(
    width=32, depth=4, num_heads=4, context=24, precision='float32', unroll=1
  ),
  train=Train(batch_size=8),
  eval=Eval(batch_size=8),
)


def changed(cfg, **sections):
  """The config with `model=dict(width=8)` and such."""
  return dataclasses.replace(
    cfg,
    **{
      name: dataclasses.replace(getattr(cfg, name), **values)
      for name, values in sections.items()
    },
  )


def real_mesh(layout):
  return jax.make_mesh(
    tuple(layout), mesh_lib.AXES, axis_types=(AxisType.Auto,) * 3
  )


# --- memory ------------------------------------------------------------------


def of_a_token(cfg, tensor=1):
  """Bytes of the activations of one token, on a TPU."""
  model, context = plan.sketch(cfg).model(), cfg.model.context
  whole = model.activation_bytes(1, context, tensor)
  return type(whole)(*(each / context for each in whole))


def kept(cfg, tensor=1):
  return of_a_token(cfg, tensor).kept


@pytest.mark.parametrize('layout', [Layout(2), Layout(1, 2), Layout(1, 1, 2)])
@pytest.mark.parametrize('name', ['adamw', 'lion', 'adafactor', 'muon', 'sgd'])
def test_state_is_what_is_allocated(name, layout):
  cfg = changed(
    _SMALL,
    model={'width': 128, 'position': 'learned', 'mlp': 'swiglu'},
    optim={'name': name},
    train={'ema': 0.9},
  )
  model = build(cfg.model, 260, HERE)
  mesh = real_mesh(layout)
  optimizer = build_optimizer(cfg, model, mesh)
  abstract = abstract_state(model, optimizer, True, mesh)
  state = jax.jit(
    lambda key: init_state(model, optimizer, key, True),
    out_shardings=jax.tree.map(lambda leaf: leaf.sharding, abstract),
  )(jax.random.key(0))

  def allocated(tree):
    return sum(a.addressable_data(0).nbytes for a in jax.tree.leaves(tree))

  used = memory.memory(plan.sketch(cfg), layout)
  assert used.params == used.gradients == allocated(state.params)
  assert used.opt_state == allocated(state.opt_state)
  assert used.ema == allocated(state.ema)
  assert used.state == allocated(state)


@pytest.mark.parametrize(
  'settings',
  [
    {},
    {'precision': 'bfloat16'},
    {'precision': 'bfloat16', 'mlp': 'swiglu', 'num_kv_heads': 2},
    {'precision': 'bfloat16', 'mlp': 'gelu', 'qk_norm': False},
    {'mlp': 'swiglu', 'num_kv_heads': 1, 'norm': 'layer'},
    {'dropout': 0.1},
    {'remat': 'dots'},
    {'remat': 'dots', 'mlp': 'swiglu', 'num_kv_heads': 2},
    {'remat': 'block', 'precision': 'bfloat16'},
  ],
  ids=str,
)
def test_activations_are_what_differentiation_keeps(settings):
  rows, depth, context = 5, 3, 24  # no other dim is 5
  cfg = changed(_SMALL, model=settings | {'depth': depth, 'context': context})
  model = build(cfg.model, 260, HERE)
  x_BT = jnp.zeros((rows, context), jnp.int32)
  key = jax.random.key(0) if cfg.model.dropout else None

  def residuals(params):
    return jax.vjp(lambda p: model.apply(p, x_BT, None, key), params)[1]

  shapes = jax.eval_shape(
    residuals, jax.eval_shape(model.init, jax.random.key(0))
  )
  layers = sum(
    math.prod(leaf.shape) * leaf.dtype.itemsize
    for leaf in jax.tree.leaves(shapes)
    if leaf.shape[:2] == (depth, rows)
  )
  item = 2 if cfg.model.precision == 'bfloat16' else 4
  ends = (8 + item) * cfg.model.width
  assert layers == rows * context * (kept(cfg) - ends)


def test_tensor_splits_heads_and_hidden_layer_only():
  whole, half = kept(_SMALL, 1), kept(_SMALL, 2)
  streams = 2 * half - whole
  assert 0 < streams < half < whole < 2 * half


@pytest.mark.slow
@pytest.mark.parametrize('remat', ['none', 'dots', 'block'])
def test_activations_are_about_what_a_compiler_needs(remat, monkeypatch):
  """On a CPU, which keeps rounded operands in float32; hence float32.

  The plan is of accelerators, whose attention is one block.
  """
  monkeypatch.setattr(causal, 'blocks', lambda length, platform: [(0, length)])
  cfg = changed(
    _SMALL,
    model={'width': 128, 'depth': 8, 'context': 256, 'remat': remat},
    train={'batch_size': 4},
  )
  model = build(cfg.model, 260, HERE)
  x_BT = jnp.zeros((4, 256), jnp.int32)

  def loss(params):
    return jax.nn.log_softmax(model.apply(params, x_BT))[..., 0].mean()

  params = jax.eval_shape(model.init, jax.random.key(0))
  compiled = jax.jit(jax.grad(loss)).lower(params).compile()
  needed = compiled.memory_analysis().temp_size_in_bytes
  used = memory.memory(plan.sketch(cfg), Layout())
  planned = used.activations + used.working + used.logits
  assert 0.6 < needed / planned < 1.4


def test_logits_of_a_token():
  assert of_a_token(_SMALL).logits == 4 * 260 * 4
  uncapped = changed(_SMALL, model={'logit_cap': 0.0})
  assert of_a_token(uncapped).logits == 3120


# --- FLOPs -------------------------------------------------------------------


def test_flops_are_the_models_own():
  sketch = plan.sketch(_SMALL)
  result = plan.estimate(sketch, _H100, Layout(2), 0.5)
  flops = sketch.model().flops_per_token(24) * 8 * 24
  assert result.flops == flops
  assert result.compute_seconds == pytest.approx(flops / 2 / (989.4e12 * 0.5))
  again = plan.sketch(changed(_SMALL, model={'remat': 'block'}))
  assert plan.estimate(
    again, _H100, Layout(2), 0.5
  ).compute_seconds == pytest.approx(4 / 3 * result.compute_seconds)


def test_muon_flops_by_hand():
  # Two layers of 8 x 8 (four kernels) and 8 x 32 (two, one of each way).
  cfg = changed(_SMALL, model={'width': 8, 'depth': 2})
  sketch = plan.sketch(cfg)
  square = 4 * (2 * 512 + 2 * 512 + 2 * 512)
  wide = 2 * (4 * 64 * 32 + 10 * 512)
  assert muon_flops(sketch, Layout()) == 8 * square + 4 * wide
  assert muon_flops(sketch, Layout(4)) == 2 * square + 2 * wide
  # Split, query, key and value are one stack, the output another.
  assert muon_flops(sketch, Layout(1, 1, 4)) == 3 * square + 2 * wide
  adamw = plan.sketch(changed(cfg, optim={'name': 'adamw'}))
  assert muon_flops(adamw, Layout()) == 0


# --- what is sent ------------------------------------------------------------


@pytest.mark.parametrize(
  'kind, sent',
  [
    ('all-reduce', 1400.0),
    ('all-gather', 700.0),
    ('reduce-scatter', 700.0),
    ('all-to-all', 700.0),
  ],
)
def test_ring_formulas(kind, sent):
  c = collective(_H100, Layout(8), 'data', kind, 'x', 800.0)
  assert (c.fast, c.slow) == (sent, 0)
  assert c.seconds == pytest.approx(sent / 450e9)


def test_two_levels_send_what_one_would():
  c = collective(_H100, Layout(1, 32), 'fsdp', 'all-gather', 'x', 3200.0)
  assert c.fast + c.slow == pytest.approx(3100)  # 31/32
  assert c.slow == 3200 / 8 * 3 / 4
  assert c.seconds == pytest.approx(c.fast / 450e9 + c.slow / 50e9)


def test_axes_lie_inside_out():
  layout = Layout(4, 4, 4)
  assert [span(_H100, layout, a).near for a in layout._fields] == [1, 2, 4]
  assert [span(_H100, layout, a).far for a in layout._fields] == [4, 2, 1]


def test_a_torus_shares_its_links():
  assert span(_V5E, Layout(1, 256), 'fsdp').fast == 200e9
  both = Layout(1, 32, 8)
  assert span(_V5E, both, 'fsdp').fast == span(_V5E, both, 'tensor').fast
  assert span(_V5E, both, 'fsdp').fast == 100e9
  assert span(_V5E, Layout(1, 16), 'fsdp').fast == 100e9  # open ends
  assert span(_V5E, Layout(1, 256), 'fsdp').hops == 8  # 16 x 16


def test_payloads_by_hand():
  cfg = changed(
    _SMALL,
    model={'width': 8, 'depth': 2, 'num_heads': 2},
    optim={'name': 'adamw'},
    train={'accumulate': 2},
  )
  sketch = plan.sketch(cfg)

  def payloads(layout):
    return {(c.axis, c.kind): c.payload for c in traffic(sketch, _H100, layout)}

  blocks, norms = 2 * 12 * 64, (2 * 2 + 1) * 8
  tables = 2 * 260 * 8  # embedding and head
  assert payloads(Layout(2)) == {
    ('data', 'all-reduce'): 2 * 4 * (blocks + norms + tables)
  }
  assert payloads(Layout(1, 2)) == {
    ('fsdp', 'reduce-scatter'): 2 * 4 * (blocks + tables),
    ('fsdp', 'all-reduce'): 2 * 4 * norms,
    ('fsdp', 'all-gather'): 2 * 4 * (2 * blocks + tables),
  }
  # Two layers; two products forward, four backward; 8 rows of 24.
  assert payloads(Layout(1, 1, 2)) == {
    ('tensor', 'all-reduce'): 2 * 6 * 4 * 8 * 24 * 8
  }
  assert payloads(Layout()) == {}


def compiled(cfg, layout):
  """`{operation: float32 bytes}` that the compiled step exchanges."""
  mesh = real_mesh(layout)
  model = build(cfg.model, 260, HERE)
  optimizer = build_optimizer(cfg, model, mesh)
  state = abstract_state(model, optimizer, False, mesh)
  rows = mesh_lib.batch_sharding(mesh)
  shape = (cfg.train.batch_size, cfg.model.context)
  ints = jax.ShapeDtypeStruct(shape, 'int32', sharding=rows)
  floats = jax.ShapeDtypeStruct(shape, 'float32', sharding=rows)
  key = jax.eval_shape(lambda: jax.random.key(0))
  with jax.set_mesh(mesh):
    text = (
      jax.jit(
        make_train_step(cfg, model, optimizer),
        donate_argnums=0,
        out_shardings=(jax.tree.map(lambda a: a.sharding, state), None),
      )
      .lower(state, Batch(ints, ints, floats, ints), key)
      .compile()
      .as_text()
    )
  # The optimizer is there twice, in a branch, and with norms that are logged in
  # a loop of one trip or none: the only one of a count that is not known.
  loops = [line for line in text.splitlines() if ' body=%' in line]
  trips = [line for line in loops if 'known_trip_count' not in line]
  named = re.findall(r'branch_computations=\{.*?\}', text)
  named += re.findall(r' body=%\S+', '\n'.join(trips))
  parts = set(re.findall(r'%([\w.]+)', ' '.join(named)))
  found: dict[str | None, collections.Counter[str]]
  found = collections.defaultdict(collections.Counter)
  times, part = 1, None
  for line in text.splitlines():
    if line and not line[0].isspace():  # a computation begins
      name = line.split()[0].removeprefix('%')
      part = name if name in parts else None
      times = 1 if line.startswith('ENTRY') or part else cfg.model.depth
    operation = re.search(r' = (.*?) (all-\w+(?:-\w+)?|reduce-scatter)\(', line)
    if operation:
      for dims in re.findall(r'f32\[([\d,]+)\]', operation[1]):
        size = math.prod(map(int, dims.split(',')))
        found[part][operation[2]] += 4 * size * times
  optimizer = [counts for name, counts in found.items() if name]
  least = min(optimizer, key=lambda c: c.total(), default=collections.Counter())
  return dict(found[None] + least)


@pytest.mark.slow
@pytest.mark.parametrize('remat', ['none', 'dots', 'block'])
@pytest.mark.parametrize('layout', [Layout(2), Layout(1, 2), Layout(1, 1, 2)])
def test_the_compiled_step_sends_that(layout, remat):
  """On CPUs a reduce-scatter is an all-reduce of which a part is kept."""
  cfg = changed(_SMALL, optim={'name': 'adamw'}, model={'remat': remat})
  expected: collections.Counter[str] = collections.Counter()
  for c in traffic(plan.sketch(cfg), _H100, layout):
    kind = 'all-reduce' if c.kind == 'reduce-scatter' else c.kind
    expected[kind] += int(c.payload)
  assert compiled(cfg, layout) == dict(expected)


@pytest.mark.slow
@pytest.mark.parametrize('layout', [Layout(2), Layout(1, 2), Layout(1, 1, 2)])
def test_the_compiled_muon_sends_that(layout):
  adamw = changed(_SMALL, optim={'name': 'adamw'})
  expected = {
    c.kind: int(c.payload)
    for c in traffic(plan.sketch(_SMALL), _H100, layout)
    if c.what.startswith('Muon')
  }
  plain, sent = compiled(adamw, layout), compiled(_SMALL, layout)
  extra = {kind: sent[kind] - plain.get(kind, 0) for kind in sent}
  assert {kind: size for kind, size in extra.items() if size} == expected


# --- choosing ----------------------------------------------------------------


def models():
  for width, depth in ((768, 14), (2048, 20), (5120, 32)):
    model = Model(
      width=width, depth=depth, num_heads=width // 128, context=2048
    )
    yield Config(model=model, train=Train(batch_size=512))


def test_every_mesh_is_tried_once():
  found = list(layouts(12))
  assert len(set(found)) == len(found) == 18
  assert {layout.devices for layout in found} == {12}
  assert found[0] == Layout(12)


def test_recommended_fits_and_splits_more_as_the_model_grows():
  before = 0
  for cfg in models():
    result, reason = plan.recommend(plan.sketch(cfg), _H100, 8)
    assert result.fits and result.layout.devices == 8 and reason
    split = result.sketch.bytes('params', Layout()) / result.memory.params
    assert split >= before
    before = split


def test_less_memory_never_saves_time():
  cfg = list(models())[1]
  sketch, before = plan.sketch(cfg), 0.0
  for memory_bytes in (160e9, 80e9, 40e9, 20e9, 10e9):
    device = dataclasses.replace(_H100, memory=memory_bytes)
    result, _ = plan.recommend(sketch, device, 8)
    assert result.fits and result.step_seconds[1] >= before / 1.1
    before = result.step_seconds[1]


def test_ten_billion_parameters_on_many_devices():
  sketch = plan.sketch(list(models())[2])
  assert sketch.num_params == pytest.approx(10.07e9, rel=1e-3)
  result, _ = plan.recommend(sketch, plan.find_device('v5p'), 512)
  assert result.fits


def test_what_fits_nowhere_says_so():
  result, reason = plan.recommend(plan.sketch(list(models())[2]), _H100, 1)
  assert not result.fits
  assert 'nothing fits' in reason and 'opt_state' not in reason
  text = text_lib.text(result, reason, Config())
  assert 'DOES NOT FIT' in text and 'what would help' in text


def test_impossible_layouts():
  sketch = plan.sketch(_SMALL)
  with pytest.raises(UserError, match='num_heads=4 does not divide'):
    plan.estimate(sketch, _H100, Layout(1, 1, 8))
  with pytest.raises(UserError, match='does not divide over 16 devices'):
    plan.estimate(sketch, _H100, Layout(16))
  with pytest.raises(UserError, match='must be above 0'):
    plan.recommend(sketch, _H100, 2, 0.0)
  with pytest.raises(UserError, match='no mesh of 7 devices'):
    plan.recommend(sketch, _H100, 7)
  with pytest.raises(UserError, match='at least 1'):
    plan.recommend(sketch, _H100, 0)


def test_every_device_has_a_peak():
  for device in DEVICES.values():
    assert device.peak > 1e14 and device.slow < device.fast
    assert device.fast < device.memory_bandwidth < device.peak


# --- the command -------------------------------------------------------------


def command(capsys, *argv):
  assert main.main(['plan', *argv]) == 0
  return capsys.readouterr().out


def test_command_prints_flags_to_paste(capsys):
  out = command(capsys, '--config=base:small', '--devices=4')
  assert 'nothing was measured' in out and 'fits' in out
  flags = out.splitlines()[-1].split()
  again = command(capsys, '--config=base:small', '--devices=4', *flags)
  assert 'as the config says' in again


def test_json_is_the_plan(capsys):
  out = command(
    capsys, '--config=base', '--device=v5e', '--devices=4', '--json',
    '--config.mesh.fsdp=2', '--config.mesh.data=2',
  )  # fmt: skip
  result = json.loads(out.splitlines()[-1])
  assert result['mesh'] == {'data': 2, 'fsdp': 2, 'tensor': 1}
  cfg = Config(
    model=Model(width=128, depth=4, num_heads=4, context=128),
    train=Train(batch_size=16),
    optim=Optim(),
  )
  same = plan.as_dict(plan.estimate(plan.sketch(cfg), _V5E, Layout(2, 2)))
  assert {k: result[k] for k in same} == json.loads(json.dumps(same))
  assert sum(result['memory'].values()) == result['memory_total']


@pytest.mark.parametrize(
  'argv, message',
  [
    (['--device=h100'], "did you mean 'h100-80gb'?"),
    (['--devices=3', '--config.mesh.fsdp=2'], 'do not divide 3 devices'),
    (['--utilisation=2'], 'at most 1'),
  ],
)
def test_mistakes_are_one_line(capsys, argv, message):
  assert main.main(['plan', '--config=base', *argv]) == 2
  err = capsys.readouterr().err
  assert message in err and err.count('\n') == 1
