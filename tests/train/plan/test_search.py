"""What the search prints fits by the plan, and the next larger does not."""

import dataclasses
import json

import pytest

from craft_jax import main
from craft_jax.config import load as config_lib
from craft_jax.runtime.host_memory import parse_bytes
from craft_jax.train import plan
from craft_jax.train.plan import Layout, search
from craft_jax.train.plan.search import Bound, Option
from craft_jax.train.plan.text import options_text

_BASE = [
  'model.context=64', 'model.width=32',
  'model.depth=4', 'model.num_heads=4',
  'train.batch_size=96', 'model.precision=bfloat16',
]  # fmt: skip


def loaded(*more):
  return config_lib.load_config(
    'base', [word.removeprefix('--config.') for word in (*_BASE, *more)]
  )


def needed(run, flags, layout, bound):
  """Bytes of the config that these pasted flags give; its state is the same."""
  changed = dataclasses.replace(run, cfg=loaded(*flags))
  return search.needed(changed, layout, bound)


@pytest.fixture(scope='module')
def run():
  return plan.sketch(loaded('model.precision=bfloat16'))


@pytest.mark.parametrize('layout', [Layout(1), Layout(2), Layout(1, 4)])
@pytest.mark.parametrize('platform', ['cpu', 'gpu'])
@pytest.mark.parametrize('share', [0.9, 0.5, 0.2])
def test_pasted_flags_fit_and_the_next_larger_do_not(
  run, layout, platform, share
):
  cfg = run.cfg
  used = search.needed(run, layout, Bound(0, platform, 1.2))
  state = run.state_bytes / layout.fsdp
  bound = Bound(state + share * (used - state), platform, 1.2)
  found = search.options(run, layout, bound)
  assert [o.remat for o in found] == ['none', 'dots', 'block']
  assert any(o.accumulate for o in found)
  for option in found:
    if option.accumulate:
      flags = search.flags(option, cfg)
      assert needed(run, flags, layout, bound) == option.bytes <= bound.bytes
      assert 96 % (option.accumulate * layout.shards) == 0
    remat = f'model.remat={option.remat}'
    for fewer in range(1, option.accumulate):  # all that divide are too large
      if 96 % (fewer * layout.shards) == 0:
        assert (
          needed(run, [f'train.accumulate={fewer}', remat], layout, bound)
          > bound.bytes
        )
    if option.rows:
      flags = search.largest_flags(option, cfg)
      assert needed(run, flags, layout, bound) <= bound.bytes
      more = f'train.batch_size={option.rows + layout.shards}'
      assert needed(run, [more, remat], layout, bound) > bound.bytes


def test_nothing_fits_where_the_state_does_not():
  cfg = loaded()
  found = search.options(plan.sketch(cfg), Layout(1), Bound(1000, 'cpu'))
  assert all((o.rows, o.accumulate) == (0, 0) for o in found)
  assert search.best(found, cfg, Layout(1)) is None
  text = options_text(found, cfg, 'so far', Layout(1))
  assert text.count('more than there is') == 3 and '--config' not in text


@pytest.mark.parametrize(
  ('tokens', 'pieces', 'remat'),
  [
    (1 << 20, (1, 1, 1), 'none'),  # the lightest that fits
    (1 << 20, (64, 2, 1), 'none'),  # pieces large enough to keep it busy
    (1 << 14, (16, 4, 2), 'dots'),  # 1,024 tokens are few, 4,096 are not
    (1 << 14, (16, 3, 2), 'dots'),  # less than twice the fewest
    (1 << 12, (0, 4, 1), 'block'),
  ],
)
def test_the_order_of_preference(tokens, pieces, remat):
  cfg = loaded(f'train.batch_size={tokens // 64}')
  found = [
    Option(name, 1, n, 0.0)
    for name, n in zip(search.REMAT, pieces, strict=True)
  ]
  assert search.best(found, cfg, Layout(1)).remat == remat


def test_the_command_prints_flags_that_fit(capsys):
  argv = ['plan', '--config=base', '--devices=1', '--memory=40MB',
          *(f'--config.{setting}' for setting in _BASE)]  # fmt: skip
  assert main.main([*argv, '--json']) == 0
  options = json.loads(capsys.readouterr().out)['options']
  flags = next(o['flags'] for o in options if o['flags'])
  assert main.main([*argv, *flags, '--json']) == 0
  again = json.loads(capsys.readouterr().out)
  assert again['memory_total'] <= 0.9 * 40e6
  assert again['options'][0]['flags'] == []


@pytest.mark.parametrize(
  ('text', 'size'),
  [
    ('8GiB', 8 << 30), ('8 gib', 8 << 30), ('24GB', 24 * 10**9),
    ('1.5k', 1500), ('500 MB', 500 * 10**6), ('7', 7), ('7B', 7),
    ('1e3', 1000), ('2T', 2 * 10**12), ('0.5KiB', 512),
  ],
)  # fmt: skip
def test_sizes(text, size):
  assert parse_bytes(text) == size


@pytest.mark.parametrize(
  'text',
  ['', ' ', 'B', 'i', 'GiB', '8i', '8iB', '8GG', '-1GB', '0', 'nan', 'inf',
   '8 lots', '8GiBB', '8GB each', '1e999', '0.1', '0x10', '8,5GB', '1e308T',
   '1_0GB'],
)  # fmt: skip
def test_no_sizes(text):
  with pytest.raises(ValueError):
    parse_bytes(text)
