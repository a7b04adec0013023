"""Where time went: by hand counts, and of a trace that is kept.

`data/` holds two steps of a model of 1 x 32 with two heads, context 16, 4 rows,
AdamW, bytes, float32 on two CPU devices (jax 0.10.2), as `craft profile` left
them, with `enable_hlo_proto` off and the tables of source lines cut.
"""

import dataclasses
import gzip
import pathlib

import jax
import jax.numpy as jnp
import pytest
from jax.profiler import ProfileData

from craft_jax.config.settings import Model
from craft_jax.model.build import build
from craft_jax.model.precision import PLATFORMS
from craft_jax.train.profile import bottleneck, hlo, trace
from craft_jax.train.profile import text as text_lib
from craft_jax.train.profile.timeline import (
  BACKWARD,
  DATA,
  FORWARD,
  IDLE,
  KINDS,
  OPTIMIZER,
  OTHER,
  RECOMPUTED,
  STEP,
  Profile,
  Row,
  part_of,
  profile,
  source_of,
)
from craft_jax.train.profile.trace import Event

_DATA = pathlib.Path(__file__).parent / 'data'
_MODEL = Model(depth=1, width=32, num_heads=2, context=16)
_TOKENS, _STEPS, _DEVICES = 4 * 16, 2, 2

_TEXT = """HloModule jit_run, is_scheduled=true, entry_computation_layout={()->f32[]}

%fused_computation.1 (param_0: bf16[8,16], param_1: bf16[16,4]) -> f32[8,4] {
  %param_0 = bf16[8,16]{1,0} parameter(0)
  %param_1 = bf16[16,4]{1,0} parameter(1)
  ROOT %dot.1 = f32[8,4]{1,0} dot(%param_0, %param_1), lhs_contracting_dims={1}, rhs_contracting_dims={0}, metadata={op_name="jit(run)/while/body/jvp(model)/dot_general"}
}

%fused_computation.2 (param_2: f32[100,8], param_3: s32[]) -> f32[1,8] {
  %param_2 = f32[100,8]{1,0} parameter(0)
  %param_3 = s32[] parameter(1)
  %constant.1 = s32[] constant(0)
  ROOT %slice.1 = f32[1,8]{1,0} dynamic-slice(%param_2, %param_3, %constant.1), dynamic_slice_sizes={1,8}
}

%fused_computation.3 (param_4: f32[100,8], param_5: f32[1,8], param_6: s32[]) -> f32[100,8] {
  %param_4 = f32[100,8]{1,0} parameter(0)
  %param_5 = f32[1,8]{1,0} parameter(1)
  %param_6 = s32[] parameter(2)
  %negate.1 = f32[1,8]{1,0} negate(%param_5)
  ROOT %update.1 = f32[100,8]{1,0} dynamic-update-slice(%param_4, %negate.1, %param_6, %param_6)
}

%fused_computation.4 (param_7: f32[8,4]) -> f32[4,8] {
  %param_7 = f32[8,4]{1,0} parameter(0)
  %transpose.1 = f32[4,8]{0,1} transpose(%param_7), dimensions={1,0}
  ROOT %copy.1 = f32[4,8]{1,0} copy(%transpose.1)
}

%region_0.1 (a: f32[], b: f32[]) -> f32[] {
  %a = f32[] parameter(0)
  %b = f32[] parameter(1)
  ROOT %add.1 = f32[] add(%a, %b)
}

%body.1 (arg: (s32[], f32[8,4])) -> (s32[], f32[8,4]) {
  %arg = (s32[], f32[8,4]{1,0}) parameter(0)
  %gte.1 = f32[8,4]{1,0} get-tuple-element(%arg), index=1
  %product = f32[8,4]{1,0} fusion(%x, %w), kind=kCustom, calls=%fused_computation.1, metadata={op_name="jit(run)/while/body/jvp(model)/closed_call/Block/attention/attention._attend/BKGS,BKSH->BKGH/dot_general"}, backend_config={"fusion_config":{"kind":"__ynn_fusion"}}
  %turned = f32[4,8]{1,0} fusion(%product), kind=kLoop, calls=%fused_computation.4
  %sums = (f32[8,4]{1,0}, f32[4,8]{1,0}) all-reduce(%product, %turned), channel_id=1, to_apply=%region_0.1, metadata={op_name="jit(run)/while/body/(transpose(jvp(BTD,BTV->DV))/dot_general:transpose(jvp(Norm))/reduce_sum:jvp()/reduce_sum)"}
  %update = f32[8,4]{1,0} add(%gte.1, %product), metadata={op_name="jit(run)/while/body/optimizer/cond/branch_1_fun/add"}
  %muon = f32[8,4]{1,0} multiply(%gte.1, %product), metadata={op_name="jit(run)/while/body/optimizer/cond/branch_1_fun/muon/mij,mjk->mik/mul"}
  %again = f32[8,4]{1,0} tanh(%gte.1), metadata={op_name="jit(run)/while/body/transpose(jvp(model))/checkpoint/rematted_computation/Block/mlp/tanh"}
  %batch = u8[4]{0} gather(%corpus, %gte.1), metadata={op_name="jit(run)/while/body/data/windows/gather"}
  ROOT %out = (s32[], f32[8,4]{1,0}) tuple(%i, %update)
}

ENTRY %main (x: bf16[8,16], w: bf16[16,4], table: f32[100,8], i: s32[]) -> f32[] {
  %x = bf16[8,16]{1,0} parameter(0)
  %w = bf16[16,4]{1,0} parameter(1)
  %table = f32[100,8]{1,0} parameter(2)
  %i = s32[] parameter(3)
  %corpus = u8[1000]{0} parameter(4)
  %row = f32[1,8]{1,0} fusion(%table, %i), kind=kLoop, calls=%fused_computation.2
  %put = f32[100,8]{1,0} fusion(%table, %row, %i), kind=kLoop, calls=%fused_computation.3
  %gemm = (f32[8,4]{1,0}, s8[4096]{0}) custom-call(%x, %w), custom_call_target="__cublas$gemm", backend_config={"gemm_backend_config":{"dot_dimension_numbers":{"lhs_contracting_dimensions":["1"],"rhs_contracting_dimensions":["0"]}}}
  %sorted = f32[8,4]{1,0} sort(%muon), dimensions={0}, to_apply=%region_0.1
  ROOT %loop = (s32[], f32[8,4]{1,0}) while(%start), condition=%region_0.1, body=%body.1, metadata={op_name="jit(run)/while"}
}
"""  # noqa: E501
_PROGRAM = hlo.Program(_TEXT)


def _kept():
  text = gzip.decompress((_DATA / 'program.txt.gz').read_bytes()).decode()
  raw = gzip.decompress((_DATA / 'trace.xplane.pb.gz').read_bytes())
  return hlo.Program(text), list(
    trace.events(ProfileData.from_serialized_xspace(raw))
  )


# --- the program's text ------------------------------------------------------


@pytest.mark.parametrize(
  'name, kind, flops, num_bytes',
  [
    # 2 x 8 x 4 x 16; operands 8 x 16 and 16 x 4 of 2 bytes, 8 x 4 of 4 out.
    ('product', hlo.PRODUCT, 1024, 256 + 128 + 128),
    ('gemm', hlo.PRODUCT, 1024, 256 + 128 + 128 + 4096),
    ('turned', hlo.MOVE, 0, 128 + 128),
    ('sums', hlo.COLLECTIVE, 0, 4 * 128),
    ('update', hlo.ELEMENTWISE, 0, 3 * 128),
    # One row of the table and the index are read.
    ('row', hlo.MOVE, 0, 32 + 4 + 32),
    # In place: the row is read and written, the table is not.
    ('put', hlo.ELEMENTWISE, 0, 32 + 4 + 32),
    ('batch', hlo.SCATTER, 0, 4 + 128 + 4),
    ('sorted', hlo.SCATTER, 0, 128 + 128),
    ('loop', hlo.CONTROL, 0, 0),
  ],
)
def test_instructions(name, kind, flops, num_bytes):
  assert _PROGRAM.kind(name) == kind
  assert _PROGRAM.flops(name) == flops
  assert _PROGRAM.bytes(name) == num_bytes


@pytest.mark.parametrize(
  'name, part, source',
  [
    ('product', FORWARD, 'Block/attention/_attend/BKGS,BKSH->BKGH'),
    ('turned', BACKWARD, 'for 3 at once'),  # XLA's own
    ('sums', BACKWARD, '3 at once'),
    ('update', OPTIMIZER, 'add'),
    ('muon', OPTIMIZER, 'muon/mij,mjk->mik'),
    ('again', RECOMPUTED, 'Block/mlp'),
    ('batch', DATA, 'windows'),
    ('loop', STEP, 'while'),
    ('row', STEP, 'fusion'),
    ('MemcpyD2H', OTHER, 'MemcpyD2H'),
  ],
)
def test_scopes(name, part, source):
  assert part_of(_PROGRAM, name) == part
  assert source_of(_PROGRAM, name) == source


def test_flops_are_the_compilers():
  def f(a, b, c):
    return jnp.einsum('nij,njk->nik', a, b).sum(0) @ c

  shapes = [(3, 8, 16), (3, 16, 5), (5, 7)]
  compiled = jax.jit(f).lower(*(jnp.zeros(s) for s in shapes)).compile()
  program = hlo.Program(compiled.as_text())
  entry = [i for i in program.instructions if program.flops(i)]
  leaves = [i for i in entry if program.instructions[i].opcode == 'dot']
  assert sum(map(program.flops, leaves)) == 2 * (3 * 8 * 16 * 5 + 8 * 5 * 7)


# --- time --------------------------------------------------------------------


def event(op, start, duration, thread='a', device=0, **more):
  return Event(
    more.pop('name', op), op, start, duration, thread, device, **more
  )


def spent(*events, steps=1):
  """ns per step by operation, and of the kinds with any."""
  found = profile(events, _PROGRAM, steps)
  rows = {row.operations: row.seconds * 1e9 for row in found.rows}
  kinds = {k: round(v * 1e9) for k, v in found.kinds.items() if v > 1e-12}
  assert sum(found.kinds.values()) == pytest.approx(found.step_seconds)
  return {name: round(v) for names, v in rows.items() for name in names}, kinds


def test_what_holds_others_is_not_counted_twice():
  ops, kinds = spent(
    event('loop', 0, 100),
    event('', 5, 90, device=-1, name='ThunkExecutor::Execute'),
    event('product', 10, 30),
    event('update', 40, 20),
    event('product', 70, 10),
  )
  assert ops == {'loop': 40, 'product': 40, 'update': 20}
  assert kinds == {hlo.PRODUCT: 40, hlo.ELEMENTWISE: 20, OTHER: 40}


def test_gaps_are_idle():
  _, kinds = spent(event('product', 10, 30), event('update', 60, 40), steps=2)
  assert kinds == {hlo.PRODUCT: 15, hlo.ELEMENTWISE: 20, IDLE: 10}


def test_of_a_hidden_collective_the_rest_counts():
  ops, _ = spent(
    event('product', 0, 50),
    event('sums', 20, 60, thread='b'),
    event('update', 70, 10),
    event('loop', 0, 80, thread='c'),
  )
  assert ops == {'product': 50, 'sums': 20, 'update': 10}


def test_an_instant_of_two_operations_is_shared():
  ops, kinds = spent(event('product', 0, 40), event('update', 20, 40, 'b'))
  assert ops == {'product': 30, 'update': 30}
  assert kinds == {hlo.PRODUCT: 30, hlo.ELEMENTWISE: 30}


def test_devices_are_averaged():
  ops, kinds = spent(
    event('product', 0, 40),
    event('product', 0, 60, thread='b', device=1),
    event('update', 60, 40, thread='b', device=1),
  )
  assert ops == {'product': 50, 'update': 20}
  assert kinds == {hlo.PRODUCT: 50, hlo.ELEMENTWISE: 20, IDLE: 30}


def test_waiting_is_told_apart():
  found = profile(
    [
      event('sums', 0, 100),
      event('', 10, 60, device=-1, name='Rendezvous'),
      event('', 20, 30, device=-1, name='Wait: pending_threads=1/2'),
      event('', 200, 30, device=-1, name='Wait: pending_threads=1/2'),
      event('update', 100, 20),
    ],
    _PROGRAM,
    1,
  )
  assert found.waiting_seconds == pytest.approx(30e-9)
  assert found.kinds[hlo.COLLECTIVE] == pytest.approx(100e-9)


def test_another_program_is_no_part_of_this_one():
  found = profile(
    [
      event('update', 0, 10, module='jit_run'),
      event('update', 20, 10, module='jit_other'),
      event('MemcpyD2H', 30, 10),
      event('product', 40, 10),
      event('update', 90, 10, module='jit_other'),
    ],
    _PROGRAM,
    1,
  )
  assert found.step_seconds == pytest.approx(50e-9)
  other = next(row for row in found.rows if row.kind == OTHER)
  assert other.source == 'jit_other: update' and other.calls == 1
  assert found.kinds[hlo.MOVE] == pytest.approx(10e-9)
  with pytest.raises(ValueError, match='no operation of jit_run'):
    profile([event('update', 0, 1, module='jit_other')], _PROGRAM, 1)


def test_lost_events_are_noticed():
  events = [event('update', i, 1) for i in range(10)]
  other = [event('update', i, 1, device=1) for i in range(9)]
  assert profile([*events, *other], _PROGRAM, 1).lost == pytest.approx(0.1)


# --- a trace -----------------------------------------------------------------


def test_the_kept_trace_by_hand():
  program, events = _kept()
  found = profile(events, program, _STEPS)
  assert (found.devices, found.lost) == (_DEVICES, 0)
  # The first operation began at 520,760 ns and the last ended at 4,019,720.
  assert found.step_seconds == pytest.approx(3_498_960e-9 / 2)
  assert sum(found.kinds.values()) == pytest.approx(found.step_seconds)
  gradients = found.rows[0]
  assert gradients.operations == ('all-reduce.63',)
  # Two on each device, and nothing else meanwhile.
  times = 287_192 + 656_239 + 1_381_705 + 344_586
  assert gradients.seconds == pytest.approx(times * 1e-9 / 4)
  assert (gradients.calls, gradients.part) == (1, BACKWARD)
  assert gradients.source == '17 at once'  # 11 parameters, 6 sums
  loop = next(row for row in found.rows if row.operations == ('while.453',))
  # Not what is in it: of 800,115 ns and 2,095,876 ns it was alone for these.
  assert loop.seconds == pytest.approx((66_270 + 89_968) * 1e-9 / 4)
  assert loop.calls == 0.5


def test_the_kept_trace_has_the_models_flops():
  program, events = _kept()
  found = profile(events, program, _STEPS)
  model = build(_MODEL, 260, PLATFORMS['cpu'])
  of_model = model.flops_per_token(_MODEL.context) * _TOKENS / _DEVICES
  assert found.flops == of_model
  rows = {(r.part, r.source): r for r in found.rows if r.flops}
  # 32 tokens on a device, 32 wide, 128 hidden.
  forward = rows[FORWARD, 'Block/mlp/in/BTD,DF->BTF']
  assert (forward.flops, forward.calls) == (2 * 32 * 32 * 128, 1)
  assert forward.bytes == 4 * (32 * 32 + 32 * 128 + 32 * 128)
  backward = rows[BACKWARD, 'Block/mlp/in/BTD,DF->BTF']
  assert (backward.flops, backward.calls) == (2 * forward.flops, 2)
  assert {part for part, _ in rows} == {FORWARD, BACKWARD}
  assert set(found.parts) == {FORWARD, BACKWARD, OPTIMIZER, DATA, STEP}


_GPU = """
planes {
  name: "/host:CPU"
  lines { name: "python" events { metadata_id: 1 duration_ps: 9000000 } }
  event_metadata { key: 1 value { id: 1 name: "PjitFunction(jit(run))" } }
}
planes {
  name: "/device:GPU:1"
  lines {
    name: "Stream #13(Compute)"
    events {
      metadata_id: 1 offset_ps: 2000 duration_ps: 30000
      stats { metadata_id: 1 str_value: "product" }
      stats { metadata_id: 2 str_value: "jit_run" }
    }
  }
  lines {
    name: "Stream #14(MemcpyD2H)"
    events { metadata_id: 2 offset_ps: 5000 duration_ps: 1000 }
  }
  event_metadata { key: 1 value { id: 1 name: "gemm_fusion_dot_1_kernel" } }
  event_metadata { key: 2 value { id: 2 name: "MemcpyD2H" } }
  stat_metadata { key: 1 value { id: 1 name: "hlo_op" } }
  stat_metadata { key: 2 value { id: 2 name: "hlo_module" } }
}
planes {
  name: "/device:TPU:0"
  lines { name: "Steps" events { metadata_id: 2 duration_ps: 9000 } }
  lines {
    name: "XLA Ops"
    events { metadata_id: 1 offset_ps: 1000 duration_ps: 7000 }
  }
  event_metadata { key: 1 value { id: 1 name: "%update = f32[8,4] add(%a)" } }
  event_metadata { key: 2 value { id: 2 name: "0" } }
}
"""


def test_planes_are_told_by_what_they_hold():
  data = ProfileData.from_serialized_xspace(
    ProfileData.text_proto_to_serialized_xspace(_GPU)
  )
  found = [
    (e.op, e.device, e.module, e.start, e.duration) for e in trace.events(data)
  ]
  assert found == [
    ('product', 1, 'jit_run', 2, 30),
    ('MemcpyD2H', 1, '', 5, 1),
    ('update', 0, '', 1, 7),
  ]


def test_the_newest_trace_of_a_folder(tmp_path):
  with pytest.raises(FileNotFoundError, match='no trace'):
    trace.read(tmp_path)
  inner = tmp_path / 'plugins' / 'profile' / 'now'
  inner.mkdir(parents=True)
  raw = ProfileData.text_proto_to_serialized_xspace(_GPU)
  (inner / 'vm.xplane.pb').write_bytes(raw)
  assert len(trace.read(tmp_path)) == 3


# --- the bottleneck ----------------------------------------------------------


def recording(rows, *, idle=0.0, waiting=0.0, **more):
  """A step of which the rows say (kind, part, share); flops fill half."""
  made = tuple(
    Row(kind, part, 'here', seconds, 1, 0, 0, ('op',))
    for kind, part, seconds in rows
  )
  kinds = dict.fromkeys(KINDS, 0.0) | {IDLE: idle}
  parts = {}
  for row in made:
    kinds[row.kind] += row.seconds
    parts[row.part] = parts.get(row.part, 0) + row.seconds
  flops = more.pop('rate', 0.9) * kinds[hlo.PRODUCT]
  made = (dataclasses.replace(made[0], flops=flops), *made[1:])
  step = sum(kinds.values())
  values = {
    'plain_seconds': step,
    'calls': 1,
    'compile_seconds': 1.0,
    'recompiled': 0,
    'wait_seconds': 0.0,
    'memory': {'arguments': 2**20, 'temporaries': 3 * 2**20},
    'tokens': 10,
    'flops': 0.4 * step,
    'ceilings': bottleneck.Ceilings(1.0, 1.0, 'a guess'),
    'precision': 'bfloat16',
    'mesh': {'data': 1},
    'device': 'a device',
    'platform': 'cpu',
    'steps_per_call': 4,
    'folder': pathlib.Path('traces'),
  }
  found = Profile(4, 1, step, made, kinds, parts, waiting, 0.0)
  return bottleneck.Recording(found, **values | more)


_EVEN = [
  (hlo.PRODUCT, FORWARD, 0.4),
  (hlo.ELEMENTWISE, FORWARD, 0.2),
  (hlo.MOVE, FORWARD, 0.1),
]


@pytest.mark.parametrize(
  'name, found',
  [
    ('fast products', recording(_EVEN)),
    ('slow products', recording(_EVEN, rate=0.2)),
    ('float32 products', recording(_EVEN, precision='float32')),
    ('recompiled', recording(_EVEN, recompiled=1)),
    ('data', recording(_EVEN, wait_seconds=0.1)),
    ('idle', recording(_EVEN, idle=0.3)),
    ('between calls', recording(_EVEN, idle=0.3, calls=4)),
    ('fast products', recording(_EVEN, idle=0.3, plain_seconds=0.72)),
    (OPTIMIZER, recording([*_EVEN, (hlo.PRODUCT, OPTIMIZER, 0.5)])),
    (hlo.MOVE, recording([*_EVEN, (hlo.MOVE, BACKWARD, 0.3)])),
    (hlo.SCATTER, recording([*_EVEN, (hlo.SCATTER, BACKWARD, 0.3)])),
    (hlo.ELEMENTWISE, recording([*_EVEN, (hlo.ELEMENTWISE, BACKWARD, 0.6)])),
    ('exchange', recording([*_EVEN, (hlo.COLLECTIVE, OPTIMIZER, 0.3)])),
    (
      'waiting',
      recording([*_EVEN, (hlo.COLLECTIVE, BACKWARD, 0.3)], waiting=0.25),
    ),
  ],
)
def test_every_rule_can_be_the_verdict(name, found):
  rule = bottleneck.bottleneck(bottleneck.shares(found))
  assert rule.share == name
  line = bottleneck.verdict(found)
  assert '\n' not in line and rule.advice in line


def test_rates():
  found = recording(_EVEN, rate=0.5, plain_seconds=0.35)
  assert found.tracing_seconds == pytest.approx(0.35)
  assert found.product_rate == pytest.approx(0.5)
  assert found.utilisation == pytest.approx(0.8)


def test_text_and_values():
  found = recording(_EVEN, waiting=0.0)
  text = text_lib.text(found, 2)
  assert 'matrix products                     400.000   57.1%' in text
  assert '1 more' in text and 'temporaries' in text
  assert 'lacks' not in text
  assert text.splitlines()[-1].startswith('verdict  fast products (57%)')
  values = text_lib.as_dict(found, 2)
  assert len(values['rows']) == 2 and values['folder'] == 'traces'
  lost = dataclasses.replace(
    found, profile=dataclasses.replace(found.profile, lost=0.25)
  )
  assert 'the trace lacks 25.0% of a device' in text_lib.text(lost, 2)
