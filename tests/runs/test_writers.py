"""metrics.jsonl stays valid and continues without gap or repetition."""

import json
import math

import jax.numpy as jnp
import numpy as np
import pytest

from craft_jax.errors import UserError
from craft_jax.runs.writers import JsonlWriter, to_json


def rows(path):
  lines = (path / 'metrics.jsonl').read_text().splitlines()
  return [json.loads(line, parse_constant=pytest.fail) for line in lines]


def test_rows_are_on_disk_at_once_and_always_valid(tmp_path):
  writer = JsonlWriter(tmp_path)
  writer.log(
    1,
    {
      'loss': math.nan,
      'low': -math.inf,
      'half': jnp.bfloat16(1.5),
      'classes': {'letter': np.float32(0.25)},
      'list': np.array([1.0, math.nan]),
    },
  )
  writer.text(2, 'a\nb\u2028\ud800"')
  assert rows(tmp_path) == [
    {
      'step': 1,
      'loss': None,
      'low': None,
      'half': 1.5,
      'classes': {'letter': 0.25},
      'list': [1.0, None],
    },
    {'step': 2, 'text': 'a\nb\u2028\ud800"'},
  ]
  writer.finish({'val_loss': math.inf, 'step': 2})
  summary = json.loads((tmp_path / 'summary.json').read_text())
  assert summary == {'val_loss': None, 'step': 2}
  with pytest.raises(TypeError, match='set does not go into JSON'):
    to_json({'a': {1}})


def test_resume_continues_as_if_never_interrupted(tmp_path):
  straight, broken = tmp_path / 'straight', tmp_path / 'broken'
  for path in (straight, broken):
    path.mkdir()
  writer = JsonlWriter(straight)
  for step in range(1, 61):
    writer.log(step, {'loss': 1 / step})
  writer.close()
  writer = JsonlWriter(broken)
  for step in range(1, 46):  # checkpoint at 30, killed at 45
    writer.log(step, {'loss': 1 / step})
  writer.close()
  with open(broken / 'metrics.jsonl', 'ab') as f:
    f.write(b'{"step": 4')  # half a row; as a number it would pass for 4
  writer = JsonlWriter(broken, step=30)
  for step in range(31, 61):
    writer.log(step, {'loss': 1 / step})
  writer.close()
  read = [(p / 'metrics.jsonl').read_bytes() for p in (straight, broken)]
  assert read[0] == read[1]


def test_seconds_go_on_from_the_last_row_that_is_kept(tmp_path):
  writer = JsonlWriter(tmp_path)
  assert writer.last_seconds == 0
  for step in (1, 2, 3):
    writer.log(step, {'seconds': step / 2})
  writer.text(3, 'a row without')
  writer.close()
  again = JsonlWriter(tmp_path, step=2)
  assert again.last_seconds == 1.0
  again.close()


def test_half_rows_and_noise_are_dropped(tmp_path):
  path = tmp_path / 'metrics.jsonl'
  path.write_bytes(b'{"step": 1}\n\xff\x00\n[3]\n{"step": "x"}\n{"step": 2}')
  JsonlWriter(tmp_path, step=5).close()
  assert path.read_bytes() == b'{"step": 1}\n'
  JsonlWriter(tmp_path).close()
  assert path.read_bytes() == b''


def test_no_folder_is_one_line(tmp_path):
  with pytest.raises(UserError, match='cannot write'):
    JsonlWriter(tmp_path / 'none')
