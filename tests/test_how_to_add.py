"""Each recipe of docs/development.md, followed in a copy of the project."""

import json
import os
import pathlib
import re
import shutil
import subprocess
import sys

import pytest

_ROOT = pathlib.Path(__file__).parents[1]
_COPIED = (
  'configs', 'constraints.txt', 'craft_jax', 'docs', 'launch', 'LICENSE',
  'pyproject.toml', 'README.md', 'tests',
)  # fmt: skip
_QUICK = {'XLA_FLAGS': os.environ['QUICK_XLA_FLAGS']}
# Runs commands in one process and prints their exit codes last.
_RUN = """
import json, sys
from craft_jax.main import main
print(json.dumps([main(argv) for argv in json.loads(sys.argv[1])]))
"""
_TRAIN = [
  'train', '--config=toy', '--quiet', '--workdir=run',
  *(f'--config.{item}' for item in (
    'model.context=16', 'model.width=16', 'model.depth=1', 'train.steps=2',
    'train.batch_size=4', 'eval.batch_size=4', 'optim.warmup_steps=0',
    'log.sample_chars=4', 'data.source=path', 'data.split=fraction',
    'data.path=text.txt', 'mesh.cpu_devices=2',
  )),
]  # fmt: skip


class Copy:
  """A copy of the project in a folder of its own, which is edited."""

  def __init__(self, root: pathlib.Path):
    self.root = root
    for name in _COPIED:
      source = _ROOT / name
      if source.is_dir():
        ignore = shutil.ignore_patterns('__pycache__', 'images')
        shutil.copytree(source, root / name, ignore=ignore)
      else:
        shutil.copy(source, root / name)
    (root / 'text.txt').write_text('All work and no play.\n' * 200)

  def edit(self, name: str, old: str, new: str) -> None:
    path = self.root / name
    text = path.read_text()
    assert text.count(old) == 1, f'{name} has changed: {old!r}'
    path.write_text(text.replace(old, new))

  def python(self, *argv: str, code: int = 0) -> str:
    """What Python prints in the copy, whose package goes before."""
    done = subprocess.run(
      [sys.executable, *argv], cwd=self.root, capture_output=True, text=True,
      env=os.environ | _QUICK | {'PYTHONPATH': str(self.root)},
    )  # fmt: skip
    assert done.returncode == code, done.stdout + done.stderr
    return done.stdout + done.stderr

  def craft(self, *commands: list[str]) -> str:
    """What the commands print; all must succeed."""
    out = self.python('-c', _RUN, json.dumps(commands))
    codes = json.dumps([0] * len(commands))
    assert codes in out.splitlines(), out
    return out

  def tests(self, *argv: str) -> None:
    """Tests of the copy, which must pass."""
    out = self.python('-m', 'pytest', '-p', 'no:cacheprovider', *argv)
    assert 'passed' in out


def _setting(copy: Copy) -> None:
  copy.edit(
    'craft_jax/config/settings.py',
    '  zero_init: bool = setting(',
    '  loudness: float = setting(\n'
    "    1.0, 'Factor of the first embedding.', low=0.0, high=9.0,\n"
    "    see=('model.zero_init',),\n"
    '  )\n'
    '  zero_init: bool = setting(',
  )
  copy.edit(
    'craft_jax/config/rules.py',
    'RULES: tuple[Rule, ...] = (\n',
    'RULES: tuple[Rule, ...] = (\n'
    '  Rule(\n'
    "    'model.loudness={model.loudness} needs model.zero_init=false; '\n"
    "    'or lower it',\n"
    '    lambda c: c.model.loudness > 2 and c.model.zero_init,\n'
    '  ),\n',
  )
  copy.edit(
    'craft_jax/model/transformer.py',
    'scale = cfg.width**-0.5 if cfg.tied else 1.0',
    'scale = cfg.loudness * (cfg.width**-0.5 if cfg.tied else 1.0)',
  )
  flag = '--config.model.loudness='
  out = copy.craft(
    ['config', 'docs', '--write', 'docs/configuration.md'],
    ['config', 'docs', 'model.loudness'],
    [*_TRAIN, f'{flag}1.5'],
    ['config', 'show', 'run', '--set'],
    ['plan', '--config=toy', f'{flag}1.5'],
  )
  # What it works with comes from `see`, the clash from the check.
  assert 'model.zero_init' in out and 'needs model.zero_init=false' in out
  assert re.search(r'model\.loudness += 1\.5', out)
  page = (copy.root / 'docs/configuration.md').read_text()
  assert '| `loudness` | `1.0` | float 0 to 9 |' in page
  refused = copy.python(
    '-m', 'craft_jax.main', *_TRAIN, f'{flag}3', code=2
  )  # fmt: skip
  assert 'model.loudness=3.0 needs model.zero_init=false' in refused


def _variant(copy: Copy) -> None:
  choices = "choices=('gelu', 'relu2', 'swiglu'),"
  copy.edit(
    'craft_jax/config/settings.py',
    choices,
    choices.replace(')', ", 'softplus')"),
  )
  copy.edit(
    'craft_jax/model/layers.py',
    "  'gelu': nn.gelu,\n",
    "  'gelu': nn.gelu,\n  'softplus': nn.softplus,\n",
  )
  flag = '--config.model.mlp=softplus'
  workdir = '--workdir=run'
  kinds = [
    ['plan', '--config=toy', flag, f'--config.model.{kind}']
    for kind in ('unroll=1', 'remat=dots', 'remat=block', 'precision=float32')
  ]
  copy.craft(
    [*_TRAIN, flag],
    ['eval', workdir],
    ['sample', workdir, '--max-chars=4'],
    ['score', workdir, '--text=play'],
    *kinds,
    ['config', 'check', '--config=toy', flag],
  )


def _architecture(copy: Copy) -> None:
  example = (copy.root / 'tests/model/test_second_architecture.py').read_text()
  (model,) = re.findall(
    r'^@dataclasses.*?^class Convolution:.*?(?=^@pytest)', example, re.M | re.S
  )
  (copy.root / 'craft_jax/model/convolution.py').write_text(
    '"""Gated causal convolutions."""\n\n'
    'import dataclasses\nimport types\n\n'
    'import jax\nimport jax.numpy as jnp\n\n'
    'from craft_jax.config.settings import Model as ModelConfig\n'
    'from craft_jax.model import cache as cache_lib\n'
    'from craft_jax.model.cache import Cache\n'
    'from craft_jax.model.precision import Policy, einsum\n'
    'from craft_jax.model.protocol import ActivationBytes\n'
    'from craft_jax.model.sharding.rules import IN, OUT\n\n'
    f'TAPS = 4\n\n\n{model.rstrip()}\n'
  )
  copy.edit(
    'craft_jax/model/build.py',
    "{'transformer': Decoder}",
    "{\n  'transformer': Decoder,\n  'convolution': Convolution,\n}",
  )
  copy.edit(
    'craft_jax/model/build.py',
    'from craft_jax.model.precision',
    'from craft_jax.model.convolution import Convolution\n'
    'from craft_jax.model.precision',
  )
  flag = '--config.model.architecture=convolution'
  copy.craft(
    [*_TRAIN, flag],
    ['eval', '--workdir=run'],
    ['sample', '--workdir=run', '--max-chars=4'],
    ['plan', '--config=toy', flag],
  )
  copy.tests('tests/test_layers.py')


def _optimizer(copy: Copy) -> None:
  settings = (copy.root / 'craft_jax/config/settings.py').read_text()
  for name, new in (('sgd', 'signs'), ('wsd', 'square')):
    (old,) = re.findall(rf"choices=\([^)]*'{name}'[^)]*\)", settings)
    copy.edit(
      'craft_jax/config/settings.py', old, f"{old[:-1].rstrip(',')}, '{new}')"
    )
  copy.edit(
    'craft_jax/train/optim/optimizers.py',
    "  'sgd': _sgd,\n",
    "  'sgd': _sgd,\n  'signs': lambda optim: optax.scale_by_sign(),\n",
  )
  copy.edit(
    'craft_jax/train/optim/schedules.py',
    "  'wsd': _wsd,\n",
    "  'wsd': _wsd,\n"
    "  'square': lambda optim, span, peak:\n"
    '    optax.polynomial_schedule(peak, 0.0, 2, span),\n',
  )
  flags = ['--config.optim.name=signs', '--config.optim.schedule=square']
  copy.craft(
    [*_TRAIN, *flags],
    ['plan', '--config=toy', *flags],
    ['eval', '--workdir=run'],
  )


def _option(copy: Copy) -> None:
  copy.edit(
    'craft_jax/inference/sampling/options.py',
    '  repetition_penalty: float = option(',
    '  top_a: float = option(\n'
    "    'number', 0.0, 'X', 'top-a: drop tokens less likely than X times '\n"
    "    'the square of the most likely; 0 disables', CHOICE, low=0, high=1,\n"
    "    api={'high': 0.5}, slot='float32',\n"
    '  )\n'
    '  repetition_penalty: float = option(',
  )
  copy.edit(
    'craft_jax/inference/sampling/logits.py',
    '    # Adding Gumbel noise',
    '    share_BV = jax.nn.softmax(scaled_BV)\n'
    '    most_B1 = jnp.max(share_BV, axis=-1, keepdims=True)\n'
    "    least_B1 = option['top_a'][:, None] * most_B1**2\n"
    '    scaled_BV = jnp.where(share_BV < least_B1, -jnp.inf, scaled_BV)\n'
    '    # Adding Gumbel noise',
  )
  sample = ['sample', '--workdir=run', '--max-chars=20']
  copy.craft(_TRAIN, [*sample, '--top-a=0.5'])
  refused = copy.python('-m', 'craft_jax.main', *sample, '--top-a=2', code=2)
  assert 'top_a=2.0 must be from 0 to 1' in refused
  field = copy.python(
    '-c', 'from craft_jax.serve.schemas import CompletionBody as Body\n'
    "print(Body.model_json_schema()['properties']['top_a'])",
  )  # fmt: skip
  assert "'maximum': 0.5" in field and 'top-a: drop tokens' in field


def _metric(copy: Copy) -> None:
  copy.edit(
    'craft_jax/runs/metric_table.py',
    "  'count': Metric(\n",
    "  'error_rate': Metric(\n"
    "    'share of tokens that are not the most likely one', 'of 1', '.2%',\n"
    "    at=_BOTH, of=lambda s: 1 - s['correct'] / s['count'],\n"
    "    needs=('correct',), higher=False, bar='{:.1%} wrong',\n"
    "    chart='Wrong tokens',\n"
    '  ),\n'
    "  'count': Metric(\n",
  )
  out = copy.craft(
    [word for word in _TRAIN if word != '--quiet'],
    ['eval', '--workdir=run'],
    ['runs', 'list', 'run', '--columns=error_rate,val_error_rate'],
    ['runs', 'plot', 'run', '--metric=val_error_rate', '--output=a.png'],
    ['runs', 'report', 'run', '--output=a.html'],
  )
  rows = (copy.root / 'run/metrics.jsonl').read_text()
  assert '"error_rate": ' in rows and '"val_error_rate": ' in rows
  assert re.search(r'step 2/2 .*% wrong', out) and '% of 1\n' in out
  assert re.search(r'age +error_rate +val_error_rate\n.*%.*%\n', out)
  assert 'a.png: 1 curves of 1 runs' in out
  assert '"Wrong tokens"' in (copy.root / 'a.html').read_text()
  label = 'from craft_jax.runs import plot; print(plot.label(["error_rate"]))'
  assert copy.python('-c', label) == 'error_rate (of 1)\n'
  page = 'docs/training.md'
  copy.edit(
    page,
    '| `count` |',
    '| `error_rate` | training and evaluation | of 1 | share of tokens that '
    'are not the most likely one |\n| `count` |',
  )
  copy.tests('tests/runs/test_metric_table.py')


def _command(copy: Copy) -> None:
  (copy.root / 'craft_jax/cli/count.py').write_text(
    '"""Count the lines of a file.\n\n'
    'examples:\n  craft count my.txt\n  craft count my.txt --json\n"""\n\n'
    'import argparse\nimport json\nimport pathlib\n\n'
    "SUMMARY = 'count the lines of a file'\n\n\n"
    'def add_arguments(parser: argparse.ArgumentParser) -> None:\n'
    '  """Adds the flags of `craft count`."""\n'
    "  parser.add_argument('file', metavar='FILE', help='what is counted')\n"
    '  parser.add_argument(\n'
    "    '--json', action='store_true', help='print one JSON object'\n  )\n\n\n"
    'def run(args: argparse.Namespace) -> int:\n'
    '  """Prints the number."""\n'
    '  lines = len(pathlib.Path(args.file).read_text().splitlines())\n'
    "  print(json.dumps({'lines': lines}) if args.json else lines)\n"
    '  return 0\n'
  )
  copy.edit(
    'craft_jax/main.py', "'data', 'config'", "'data', 'count', 'config'"
  )
  out = copy.craft(['count', 'text.txt', '--json'], ['help'])
  assert '{"lines": 200}' in out
  assert 'count       count the lines of a file' in out
  copy.tests('tests/cli/test_help.py', '-k', 'count or overview')
  copy.tests('tests/test_layers.py', '-k', 'cli.count or main')


def _dependency(copy: Copy) -> None:
  copy.edit(
    'pyproject.toml',
    '  "numpy>=2.0",\n',
    '  "numpy>=2.0",\n  "tinydep>=1.2",\n',
  )
  name = 'test_constraints_pin_every_dependency'
  packaging = f'tests/test_packaging.py::{name}'
  with pytest.raises(AssertionError, match='tinydep'):
    copy.tests(packaging)
  constraints = copy.root / 'constraints.txt'
  constraints.write_text(
    constraints.read_text()
    + "tinydep==1.4 ; python_version < '3.12'\n"
    + "tinydep==2.0 ; python_version >= '3.12'\n"
  )
  copy.tests(packaging)
  assert 'tinydep==1.2' in copy.python('launch/lowest.py').splitlines()


_RECIPES = {
  'A setting': _setting,
  'A variant of the model': _variant,
  'An architecture': _architecture,
  'An optimizer or a schedule': _optimizer,
  'A metric': _metric,
  'A sampler option': _option,
  'A command': _command,
  'A dependency': _dependency,
}


def test_every_recipe_is_followed():
  page = (_ROOT / 'docs/development.md').read_text()
  section = page.partition('## How to add\n')[2].partition('\n## ')[0]
  assert re.findall(r'^\*\*(.+?)\.\*\*', section, re.M) == list(_RECIPES)


@pytest.mark.slow
@pytest.mark.parametrize('recipe', _RECIPES)
def test_a_recipe(recipe, tmp_path):
  _RECIPES[recipe](Copy(tmp_path))
