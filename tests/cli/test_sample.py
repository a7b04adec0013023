"""`craft sample` on a checkpoint that always spells the alphabet."""

import argparse
import io
import json
import os
import subprocess
import sys

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from craft_jax import checkpoint
from craft_jax.cli import sample
from craft_jax.errors import UserError
from craft_jax.model import build
from craft_jax.settings import Config, Data, Model, Text
from craft_jax.text.vocabulary import Vocabulary

LETTERS = 'abcdefghijklmnopqrstuvwxyz'
VOCABULARY = Vocabulary('char', LETTERS + '\né')
CFG = Config(
  text=Text(vocabulary='char'),
  data=Data(source='shakespeare'),
  model=Model(
    context=16, width=64, depth=1, num_heads=2, logit_cap=0.0,
    precision='float32',
  ),
)  # fmt: skip


def alphabet(step):
  """Parameters under which each letter is followed by the `step`th next."""
  model = build(CFG.model, VOCABULARY.size)
  params = jax.jit(model.init)(jax.random.key(0))
  embedding = np.zeros((VOCABULARY.size, 64), np.float32)
  head = np.zeros((64, VOCABULARY.size), np.float32)
  for i in range(26):
    embedding[i, i] = 1
    head[i, (i + step) % 26] = 5
  embedding[VOCABULARY.encode('\n')[0], 30] = 1
  head[30, 0] = 5
  params['embed']['embedding'] = jnp.asarray(embedding)
  params['head']['kernel'] = jnp.asarray(head)
  return params


@pytest.fixture(scope='module')
def workdir(tmp_path_factory):
  path = tmp_path_factory.mktemp('run')
  with checkpoint.Checkpointer(path) as saver:
    for step, loss in ((1, 1.0), (2, 2.0)):
      state = {
        'step': jnp.int32(step),
        'data_offset': jnp.int32(0),
        'params': alphabet(step),
        'opt_state': (),
        'ema': alphabet(3) if step == 2 else None,
      }
      saver.save(
        state,
        checkpoint.Meta(step, CFG, VOCABULARY, 'abc', {'val_loss': loss}),
      )
  return str(path)


class _Stdin:
  """Standard input that holds `data`, or a terminal."""

  closed = False

  def __init__(self, data=None):
    self._terminal = data is None
    read, write = os.pipe()
    os.write(write, data or b'')
    os.close(write)
    self.buffer = open(read, 'rb')  # noqa: SIM115

  def isatty(self):
    return self._terminal

  def fileno(self):
    return self.buffer.fileno()


@pytest.fixture
def run(workdir, monkeypatch, capsys):
  """Runs the command; returns standard output."""
  opened = []

  def run(*flags, stdin=None, workdir=workdir):
    opened.append(_Stdin(stdin))
    monkeypatch.setattr(sys, 'stdin', opened[-1])
    parser = argparse.ArgumentParser()
    sample.add_arguments(parser)
    args = parser.parse_args([f'--workdir={workdir}', *flags])
    assert sample.run(args) == 0
    return capsys.readouterr().out

  yield run
  for stdin in opened:
    stdin.buffer.close()


def test_text_goes_on_from_the_prompt(run):
  out = run('--prompt=xyz', '--max-chars=5', '--temperature=0', '--step=1')
  assert out == 'xyzabcde\n'


def test_steps_and_averages(run):
  flags = ('--prompt=a', '--max-chars=2', '--temperature=0')
  assert run(*flags) == 'adg\n'  # the average of step 2
  assert run(*flags, '--no-ema') == 'ace\n'
  assert run(*flags, '--step=best') == 'abc\n'
  assert run(*flags, '--step=2', '--no-ema') == 'ace\n'


def test_no_prompt_starts_from_a_newline_that_is_not_shown(run):
  flags = ('--max-chars=3', '--temperature=0', '--step=1')
  assert run(*flags) == 'abc\n'
  assert run(*flags, '--prompt=') == 'abc\n'


def test_prompt_from_file_and_pipe(run, tmp_path):
  path = tmp_path / 'prompt.txt'
  path.write_bytes('é\nx'.encode())
  flags = ('--max-chars=2', '--temperature=0', '--step=1')
  assert run(*flags, f'--prompt-file={path}') == 'é\nxyz\n'
  assert run(*flags, '--prompt-file=-', stdin=b'm') == 'mno\n'
  assert run(*flags, stdin=b'q') == 'qrs\n'
  assert run(*flags, '--prompt=a', stdin=b'q') == 'abc\n'


def test_a_silent_pipe_does_not_hang(run, monkeypatch, capsys):
  read, write = os.pipe()
  with open(read, 'rb') as buffer:
    silent = io.TextIOWrapper(buffer)
    monkeypatch.setattr(sys, 'stdin', silent)
    args = argparse.Namespace(prompt=None, prompt_file=None)
    assert sample._prompt(args) == ''
    assert 'nothing on standard input' in capsys.readouterr().err
    os.close(write)  # the end of the pipe is an empty prompt, no complaint
    assert sample._prompt(args) == b''
    assert not capsys.readouterr().err


def test_jsonl(run):
  out = run('--prompt=a', '--max-chars=4', '--num-samples=3', '--format=jsonl',
            '--seed=9', '--step=1')  # fmt: skip
  rows = [json.loads(line) for line in out.splitlines()]
  assert [row['sample'] for row in rows] == [0, 1, 2]
  for row in rows:
    assert row['prompt'] == 'a' and row['seed'] == 9
    assert len(row['text']) == 4 or row['finish_reason'] == 'stop'


def test_several_samples_have_headers(run):
  flags = ('--prompt=a', '--max-chars=40', '--num-samples=3', '--ignore-end',
           '--temperature=15', '--step=1')  # fmt: skip
  rows = [json.loads(line) for line in run(*flags, '--format=jsonl').split('\n')
          if line]  # fmt: skip
  expected = ''.join(
    f'--- sample {i + 1} ---\na{row["text"]}'
    + ('' if row['text'].endswith('\n') else '\n')
    for i, row in enumerate(rows)
  )
  assert run(*flags) == expected
  assert all(row['finish_reason'] == 'length' for row in rows)
  assert len({row['text'] for row in rows}) == 3


def test_json_is_the_only_line(run):
  (line,) = run('--prompt=a', '--max-chars=60', '--temperature=0', '--json',
                '--step=1').splitlines()  # fmt: skip
  result = json.loads(line)
  assert result['step'] == 1 and result['chars'] == 60
  assert result['seconds'] > 0 and result['chars_per_second'] > 0
  (only,) = result['samples']
  assert only['text'] == (LETTERS * 3)[1:61]
  assert only['finish_reason'] == 'length' and only['prompt'] == 'a'


def test_constraints(run, tmp_path):
  flags = ('--prompt=a', '--temperature=0', '--step=1', '--json')

  def written(*more):
    (sample,) = json.loads(run(*flags, *more))['samples']
    return sample['text'], sample['finish_reason']

  assert written('--regex=[x-z]{3}') == ('xyz', 'stop')
  assert written('--choice=no', '--choice=bcdf') == ('bcdf', 'stop')
  assert written('--allowed-chars=bde', '--max-chars=3')[0][0] == 'b'
  text, _ = written('--forbidden-chars=e', '--forbid=bc', '--max-chars=40')
  assert text[0] == 'b' and 'e' not in text and 'bc' not in text
  assert written('--stop=fg', '--stop=k') == ('bcde', 'stop')
  text, _ = written('--regex=[a-f]*', '--forbid=cd', '--max-chars=9')
  assert len(text) == 9 and set(text) <= set('abcdef') and 'cd' not in text
  path = tmp_path / 'schema.json'
  path.write_text('{"const": 5}')
  with pytest.raises(UserError, match='cannot write'):
    written(f'--json-schema={path}')
  path.write_text('no')
  with pytest.raises(UserError, match='is not JSON: Expecting value'):
    written(f'--json-schema={path}')


def test_beams(run):
  flags = ('--prompt=a', '--step=1', '--max-chars=4')
  assert run(*flags, '--beams=3') == 'abcde\n'
  flags = (*flags, '--beams=4', '--num-samples=3', '--json')
  texts = json.loads(run(*flags, '--regex=(bcde|bcdf)'))['samples']
  assert [sample['text'] for sample in texts] == ['bcde', 'bcdf']
  assert texts[0]['finish_reason'] == 'length'


def test_bias_and_penalties(run):
  flags = ('--prompt=a', '--temperature=0', '--step=1', '--max-chars=4')
  assert run(*flags, '--logit-bias=x=99') == 'axxxx\n'
  assert run(*flags, '--logit-bias=b=-99')[1] != 'b'
  flags = (*flags, '--logit-bias=x=99', '--presence-penalty=200')
  assert run(*flags)[:2] == 'ax' and run(*flags).count('x') == 1
  assert run(*flags, '--penalty-window=1')[3] == 'x'


@pytest.mark.parametrize(
  'flags, words',
  [
    (['--regex=('], 'pattern'),
    (['--regex=a{9}', '--max-chars=8'], 'needs at least 9 symbols'),
    (['--choice=A'], "choice 0: the vocabulary cannot write 'A'"),
    (['--regex=a', '--choice=b'], 'allows no text'),
    (['--logit-bias=a'], '--logit-bias=a must be a character, = and a number'),
    (['--logit-bias=a=x'], '--logit-bias=a=x must be'),
    (['--logit-bias==1'], 'must be a character'),
    (['--min-p=2'], 'min_p=2.0 must be from 0 to 1'),
    (['--stop='], 'none of them empty'),
    (['--beams=2', '--num-samples=3'], 'set --beams=3 or'),
    (['--beams=2'], 'beam search does not go beyond it'),
    (['--prompt=a1'], r'U\+0031 \(DIGIT ONE\) at position 1 is not in'),
    (['--max-chars=0'], '--max-chars=0 must be at least 1'),
    (['--num-samples=-2'], '--num-samples=-2 must be at least 1'),
    (['--temperature=-1'], 'temperature=-1.0 must be finite'),
    (['--top-p=2'], 'top_p=2.0 must be from 0 to 1'),
    (['--seed=-1'], 'seed=-1 must be from 0'),
    (['--step=7'], 'has no step 7; it has 1, 2'),
    (['--step=soon'], 'must be a number, latest or best'),
  ],
)
def test_mistakes(run, flags, words):
  with pytest.raises(UserError, match=words):
    run(*flags)


def test_missing_files(run, tmp_path):
  with pytest.raises(UserError, match='no run directory'):
    run(workdir=tmp_path / 'none')
  with pytest.raises(FileNotFoundError):  # main says it in one line
    run(f'--prompt-file={tmp_path / "none"}')


@pytest.mark.slow
def test_a_reader_that_leaves_is_no_error(workdir):
  """`craft sample | head -c 1`, as processes."""
  command = [
    sys.executable, '-m', 'craft_jax.main', 'sample', f'--workdir={workdir}',
    '--prompt=a', '--max-chars=100000', '--ignore-end',
  ]  # fmt: skip
  with subprocess.Popen(
    command,
    stdin=subprocess.DEVNULL,
    stdout=subprocess.PIPE,
    stderr=subprocess.PIPE,
  ) as process:
    assert process.stdout.read(1) == b'a'
    process.stdout.close()
    assert process.stderr.read() == b''
    assert process.wait(60) == 0
