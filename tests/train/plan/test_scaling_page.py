"""The critical sizes of docs/scaling.md are what the planner says.

That its tables are fresh is checked by `scaling_tables.py --check`, which
launch/test.sh runs.
"""

import pathlib
import runpy

import pytest

from craft_jax.config.settings import Config, Model, Optim, Train
from craft_jax.train import plan

_ROOT = pathlib.Path(__file__).parents[3]


@pytest.fixture
def tables(monkeypatch):
  """The names of benchmarks/scaling_tables.py."""
  folder = _ROOT / 'benchmarks'
  monkeypatch.syspath_prepend(str(folder))
  return runpy.run_path(str(folder / 'scaling_tables.py'))


@pytest.mark.parametrize('name', ['h100-80gb', 'v5e'])
def test_at_the_critical_sizes_sending_takes_as_long_as_computing(name, tables):
  """With long rows of short windows, where attention's products vanish."""
  device = plan.find_device(name)
  data = device.domain
  # Wide, so that tables and norms are nothing.
  cfg = Config(
    model=Model(width=8192, depth=8, num_heads=64, context=8),
    optim=Optim(name='adamw'),
    train=Train(batch_size=data * round(tables['critical_tokens'](device) / 8)),
  )
  result = plan.estimate(plan.sketch(cfg), device, plan.Layout(1, data))
  assert result.on_axis('fsdp') == pytest.approx(
    result.compute_seconds, rel=0.15
  )
  width = round(tables['critical_width'](device, 4) / 256) * 256
  cfg = Config(
    model=Model(width=width, depth=8, num_heads=width // 64, context=8),
    optim=Optim(name='adamw'),
    train=Train(batch_size=device.domain * 64),
  )
  layout = plan.Layout(1, device.domain // 4, 4)
  result = plan.estimate(plan.sketch(cfg), device, layout)
  assert result.on_axis('tensor') == pytest.approx(
    result.compute_seconds, rel=0.15
  )
