"""The planner's arithmetic against the program, and against hand counts."""

import dataclasses
import json
import math

import jax
import jax.numpy as jnp
import pytest
from jax.sharding import AxisType

from craft_jax import main
from craft_jax.config.settings import Config, Eval, Model, Train
from craft_jax.errors import UserError
from craft_jax.inference.metrics import peak_flops
from craft_jax.model import causal
from craft_jax.model.build import build
from craft_jax.model.precision import platform_of
from craft_jax.model.sharding import mesh as mesh_lib
from craft_jax.train import plan
from craft_jax.train.optim.optimizers import build_optimizer
from craft_jax.train.plan import Layout, memory, search
from craft_jax.train.plan import text as text_lib
from craft_jax.train.plan.search import Bound
from craft_jax.train.state import abstract_state, init_state

HERE = platform_of(jax.devices()[0])

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


def test_flops_are_the_models_own():
  sketch = plan.sketch(_SMALL)
  assert sketch.flops_per_token == sketch.model().flops_per_token(24)


# --- choosing ----------------------------------------------------------------


def models():
  for width, depth in ((768, 14), (2048, 20), (5120, 32)):
    model = Model(
      width=width, depth=depth, num_heads=width // 128, context=2048
    )
    yield Config(model=model, train=Train(batch_size=512))


def recommended(cfg, devices, size=80e9):
  sketch = plan.sketch(cfg)
  return text_lib.recommended(sketch, devices, 'h100-80gb', size, 'gpu')


def test_every_mesh_is_tried_once():
  found = list(search.layouts(12))
  assert len(set(found)) == len(found) == 18
  assert {layout.devices for layout in found} == {12}
  assert found[0] == Layout(12)


def test_recommended_fits_and_splits_more_as_the_model_grows():
  before = 0
  for cfg in models():
    found = recommended(cfg, 8)
    assert text_lib.as_dict(found)['fits'] and found.layout.devices == 8
    used = memory.memory(found.run, found.layout, 'gpu')
    split = found.run.bytes('params', Layout()) / used.params
    assert split >= before
    before = split


def test_data_comes_first_then_fsdp_then_accumulation():
  sketch = plan.sketch(_SMALL)
  sizes = [
    search.needed(sketch, layout, Bound(0, 'gpu'))
    for layout in (Layout(4), Layout(2, 2), Layout(1, 4))
  ]
  assert sizes == sorted(sizes, reverse=True)
  for size, layout in zip(
    sizes, ((4, 1, 1), (2, 2, 1), (1, 4, 1)), strict=True
  ):
    assert search.recommend(sketch, 4, Bound(size, 'gpu')) == (layout, sketch)
  least = Bound(sizes[-1] - 1, 'gpu')
  layout, run = search.recommend(sketch, 4, least)
  assert layout.tensor == 1 and search.needed(run, layout, least) <= least.bytes
  assert run.cfg != sketch.cfg


def test_fewer_rows_than_devices_are_for_tensor():
  few = changed(_SMALL, train={'batch_size': 2}, eval={'batch_size': 2})
  found = recommended(few, 4)
  assert found.layout == (2, 1, 2)
  assert found.reason == 'the batch does not divide over 4 devices'


def test_ten_billion_parameters_on_many_devices():
  cfg = list(models())[2]
  assert plan.sketch(cfg).num_params == pytest.approx(10.07e9, rel=1e-3)
  assert text_lib.as_dict(recommended(cfg, 512))['fits']


def test_what_fits_nowhere_says_so():
  found = recommended(list(models())[2], 1)
  assert not text_lib.as_dict(found)['fits']
  text = text_lib.text(found)
  assert 'nothing fits' in text and 'DOES NOT FIT' in text


def test_impossible_layouts():
  sketch = plan.sketch(_SMALL)
  with pytest.raises(UserError, match='num_heads=4 does not divide'):
    sketch.check(Layout(1, 1, 8))
  with pytest.raises(UserError, match='does not divide over 16 devices'):
    sketch.check(Layout(16))
  with pytest.raises(UserError, match='no mesh of 7 devices'):
    recommended(_SMALL, 7)
  with pytest.raises(UserError, match='at least 1'):
    recommended(_SMALL, 0)


def test_every_device_has_a_peak():
  for device in plan.DEVICES.values():
    peak, source = peak_flops(device.kind, device.platform)
    assert peak and peak > 1e14 and source
    assert device.memory < device.memory_bandwidth < peak


# --- the command -------------------------------------------------------------


def command(capsys, *argv):
  assert main.main(['plan', *argv]) == 0
  return capsys.readouterr().out


def test_command_prints_flags_to_paste(capsys):
  out = command(capsys, '--config=base:small', '--devices=4')
  assert 'nothing was compiled or measured' in out and 'fits' in out
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
  )
  used = memory.memory(plan.sketch(cfg), Layout(2, 2), 'tpu')
  assert result['memory'] == dataclasses.asdict(used)
  assert result['fits'] and result['reason'] == 'as the config says'
  assert sum(result['memory'].values()) == result['memory_total']


@pytest.mark.parametrize(
  'argv, message',
  [
    (['--device=h100'], "did you mean 'h100-80gb'?"),
    (['--devices=3', '--config.mesh.fsdp=2'], 'do not divide 3 devices'),
    (['--memory=much'], 'is no size'),
  ],
)
def test_mistakes_are_one_line(capsys, argv, message):
  assert main.main(['plan', '--config=base', *argv]) == 2
  err = capsys.readouterr().err
  assert message in err and err.count('\n') == 1
