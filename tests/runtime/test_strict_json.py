"""JSON without NaN and Infinity, in and out."""

import math
import pathlib
import re

import pytest

import craft_jax
from craft_jax.runtime import strict_json


@pytest.mark.parametrize('text', ['NaN', '[-Infinity]', '{"id": 1e400}'])
def test_no_infinity_comes_in(text):
  with pytest.raises(ValueError, match=r'not a JSON number|too large'):
    strict_json.loads(text)


def test_large_numbers_that_are_held():
  assert strict_json.loads('[1e308, 12345678901234567890]') == [
    1e308,
    12345678901234567890,
  ]


def test_no_infinity_goes_out():
  with pytest.raises(ValueError, match='not JSON compliant'):
    strict_json.dumps({'id': math.inf})


# Digests, keys and messages between processes: no reader but Craft's own; and
# one that says `allow_nan=False` itself, for `config` imports nothing above it.
_WITHIN = {
  'runs/checkpoint/meta.py', 'cli/bench.py', 'inference/compress/pack.py',
  'constrain/compile.py', 'constrain/document.py', 'constrain/overlap.py',
  'data/cache.py', 'data/prepare.py', 'runtime/distributed.py',
  'runs/columns.py', 'runs/digest.py', 'train/run.py',
  'runtime/strict_json.py', 'config/load.py',
}  # fmt: skip


def test_what_a_run_or_a_server_writes_is_strict():
  root = pathlib.Path(craft_jax.__file__).parent
  loose = {
    path.relative_to(root).as_posix()
    for path in root.rglob('*.py')
    if re.search(r'(?<![.\w])json\.dumps?\(', path.read_text('utf-8'))
  }
  assert loose <= _WITHIN


@pytest.mark.parametrize(
  'text', ['{"a": 1e400}', '[-1E+999]', '[NaN]', '9' * 310 + '.0']
)
def test_a_request_has_no_infinity(text):
  pytest.importorskip('fastapi')
  from craft_jax.serve import schemas
  from craft_jax.serve.errors import ApiError

  with pytest.raises(ApiError, match=r'JSON|large'):
    schemas._parse(text.encode())
  assert schemas._parse(b'[1e308, 1e-400, "1e400"]') == [1e308, 0.0, '1e400']
