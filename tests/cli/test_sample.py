"""`craft sample` on a checkpoint that always spells the alphabet."""

import argparse
import io
import json
import os
import pty
import select
import subprocess
import sys

import jax
import jax.numpy as jnp
import jsonschema
import numpy as np
import pytest

from craft_jax.cli import sample
from craft_jax.config.settings import Config, Data, Model, Text
from craft_jax.data.text.vocabulary import Vocabulary
from craft_jax.errors import UserError
from craft_jax.inference.load import load_model
from craft_jax.inference.sampling.answers import Answers
from craft_jax.model.build import build
from craft_jax.model.precision import platform_of
from craft_jax.runs import checkpoint

HERE = platform_of(jax.devices()[0])

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
  model = build(CFG.model, VOCABULARY.size, HERE)
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
    assert 'standard input is empty' in capsys.readouterr().err
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


@pytest.fixture
def written(run):
  """The text, and why it ended, greedy after an `a`."""

  def written(*flags):
    (sample,) = json.loads(
      run('--prompt=a', '--temperature=0', '--step=1', '--json', *flags)
    )['samples']
    return sample['text'], sample['finish_reason']

  return written


def test_regex(written):
  assert written('--regex=[x-z]{3}') == ('xyz', 'stop')
  assert written('--regex=[a-z]+é', '--max-chars=4') == ('bcdé', 'length')


def test_choices(written):
  assert written('--choices', 'no', 'bcdf') == ('bcdf', 'stop')
  assert written('--choices=no', '--choices=bcdf') == ('bcdf', 'stop')
  with pytest.raises(UserError, match=r"choice 1: .* write ','"):
    written('--choices', 'no', 'b,c')


def test_allowed_chars(written):
  text, reason = written('--allowed-chars=bde', '--max-chars=9')
  assert text[0] == 'b' and set(text) <= set('bde') and reason == 'length'


def test_forbidden_chars(written):
  text, _ = written('--forbidden-chars=eg', '--max-chars=40')
  assert text[:3] == 'bcd' and not set(text) & set('eg') and len(text) == 40


def test_bad_strings(written):
  text, _ = written('--forbid', 'bc', 'e', '--max-chars=40')
  assert text[0] == 'b' and 'e' not in text and 'bc' not in text


def test_stop_strings(written):
  assert written('--stop', 'fg', 'k') == ('bcde', 'stop')
  assert written('--stop', 'bcdefg', 'de') == ('bc', 'stop')
  assert written('--stop=fg', '--max-chars=5') == ('bcdef', 'length')


def test_several_constraints_hold_at_once(written):
  text, _ = written('--regex=[a-f]*', '--forbid=cd', '--max-chars=9')
  assert len(text) == 9 and set(text) <= set('abcdef') and 'cd' not in text
  assert written('--regex=..', '--choices', 'bcd', 'xy')[0] == 'xy'
  with pytest.raises(UserError, match='allows no text'):
    written('--regex=[a-c]', '--allowed-chars=xyz')


def test_max_chars(run):
  for chars in (1, 2, 31, 32, 33, 80):  # beyond a dispatch and the context
    out = run('--prompt=a', '--temperature=0', '--step=1',
              f'--max-chars={chars}')  # fmt: skip
    assert out.strip() == (LETTERS * 4)[: chars + 1]


def test_seed(run):
  flags = ('--prompt=a', '--temperature=9', '--step=1', '--max-chars=20')
  assert run(*flags, '--seed=3') == run(*flags, '--seed=3')
  assert run(*flags, '--seed=3') != run(*flags, '--seed=4')
  assert run(*flags) == run(*flags, '--seed=0')


def test_n_samples_are_different_and_the_first_is_that_alone(run):
  flags = ('--prompt=a', '--temperature=9', '--step=1', '--max-chars=20',
           '--format=jsonl')  # fmt: skip
  rows = _rows(run(*flags, '--num-samples=4'))
  assert len({row['text'] for row in rows}) == 4
  assert _rows(run(*flags)) == rows[:1]


def test_json_schema(run, byte_run, tmp_path):
  schema = {
    'type': 'object',
    'properties': {
      'name': {'type': 'string', 'maxLength': 3},
      'age': {'type': 'integer', 'minimum': 0, 'maximum': 99},
    },
    'required': ['name', 'age'],
  }
  path = tmp_path / 'schema.json'
  path.write_text(json.dumps(schema))
  flags = (f'--json-schema={path}', '--num-samples=8', '--json')
  rows = json.loads(run(*flags, workdir=byte_run))['samples']
  for row in rows:
    jsonschema.validate(json.loads(row['text']), schema)
  # With others at once.
  flags += (r'--regex=\{"name":"x+",.*7.', '--forbidden-chars=é1')
  for row in json.loads(run(*flags, workdir=byte_run))['samples']:
    value = json.loads(row['text'])
    assert set(value['name']) == {'x'} and value['age'] % 10 == 7
    assert value['age'] != 17
  # A file of requests has the schema itself.
  flag = _requests(tmp_path, {'json_schema': schema, 'seed': 0, 'n': 8})
  again = _rows(run(flag, workdir=byte_run))
  assert [row['text'] for row in again] == [row['text'] for row in rows]


def test_json_schemas_that_cannot_be(written, tmp_path):
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


def test_logit_bias_and_penalties(run):
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
    (['--regex=a{9}', '--max-chars=8'], 'needs at least 9 tokens'),
    (['--choices=A'], "choice 0: the vocabulary cannot write 'A'"),
    (['--regex=a', '--choices=b'], 'allows no text'),
    (['--logit-bias=a'], 'must be of characters, each with a number'),
    (['--logit-bias=a=x'], r"logit_bias=\['a=x'\] must be"),
    (['--logit-bias==1'], 'must be of characters'),
    (['--min-p=2'], 'min_p=2.0 must be from 0 to 1'),
    (['--stop='], 'none of them empty'),
    (['--beams=2', '--num-samples=3'], 'set beams=3 or'),
    (['--beams=2'], 'beam search does not go beyond it'),
    (['--prompt=a1'], r'U\+0031 \(DIGIT ONE\) at position 1 is not in'),
    (['--max-chars=0'], 'max_chars=0 must be at least 1'),
    (['--min-chars=9', '--max-chars=8'], 'min_chars=9 is over max_chars=8'),
    (['--num-samples=-2'], 'num_samples=-2 must be at least 1'),
    (['--temperature=-1'], 'temperature=-1.0 must be finite'),
    (['--top-p=2'], 'top_p=2.0 must be from 0 to 1'),
    (['--seed=-1'], 'seed=-1 must be from 0'),
    (['--best-of=2', '--num-samples=3'], 'set best_of=3 or more'),
    (['--best-of=3', '--beams=3'], 'give one of the two'),
    (['--beams=3', '--logprobs=1', '--json'], 'beams report no logprobs'),
    (['--beams=3', '--stop=a'], 'beams look for no stop texts'),
    (['--interactive', '--json'], 'remove --json'),
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
    '--step=1', '--prompt=a', '--max-chars=100000', '--ignore-end',
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


def _rows(out):
  return [json.loads(line) for line in out.splitlines()]


def _log_probabilities(workdir, text):
  """Of every token at every place after the first, by `apply` and NumPy."""
  trained = load_model(workdir, 1)
  x_BT = jnp.asarray(VOCABULARY.encode(text))[None].astype(jnp.int32)
  logits_BTV = jax.jit(trained.model.apply)(trained.params, x_BT)
  logits_TV = np.asarray(logits_BTV, np.float64)[0, :-1]
  return logits_TV - np.log(np.exp(logits_TV).sum(-1, keepdims=True))


def test_logprobs(run, workdir):
  flags = ('--prompt=xy', '--max-chars=6', '--step=1', '--temperature=9',
           '--top-k=3', '--logit-bias=q=2', '--seed=3')  # fmt: skip
  (row,) = _rows(run(*flags, '--logprobs=4', '--format=jsonl'))
  log_TV = _log_probabilities(workdir, 'xy' + row['text'])[1:]
  assert ''.join(token['char'] for token in row['tokens']) == row['text']
  for log_V, token in zip(log_TV, row['tokens'], strict=True):
    at = VOCABULARY.encode(token['char'])[0]
    assert token['logprob'] == pytest.approx(log_V[at], abs=1e-4)
    best = np.argsort(-log_V, kind='stable')[:4]
    got = [other['logprob'] for other in token['top']]
    np.testing.assert_allclose(got, log_V[best], atol=1e-4)
    assert set(token['top'][0]) <= {'char', 'special', 'logprob'}
  (only,) = json.loads(run(*flags, '--logprobs=0', '--json'))['samples']
  assert only['text'] == row['text']
  assert all(set(s) == {'char', 'logprob'} for s in only['tokens'])
  with pytest.raises(UserError, match='--logprobs needs --format=jsonl'):
    run(*flags, '--logprobs=1')
  with pytest.raises(UserError, match='at most the 32 tokens'):
    run(*flags, '--logprobs=33', '--json')


def test_the_tokens_are_those_of_the_text(run):
  flags = ('--prompt=a', '--step=1', '--temperature=0', '--logprobs=1')
  (row,) = _rows(run(*flags, '--stop=fg', '--format=jsonl'))
  assert row['text'] == 'bcde'
  assert [token['char'] for token in row['tokens']] == list('bcde')


def test_echo(run, workdir):
  flags = ('--prompt=mnxy', '--max-chars=3', '--step=1', '--temperature=0',
           '--format=jsonl', '--echo')  # fmt: skip
  (row,) = _rows(run(*flags))
  assert row['text'] == 'mnxyzab' and row['prompt'] == 'mnxy'
  (row,) = _rows(run(*flags, '--logprobs=3'))
  first, *others = row['tokens']
  assert first == {'char': 'm', 'logprob': None, 'top': None}
  log_TV = _log_probabilities(workdir, 'mnxyzab')
  at = VOCABULARY.encode('nxyzab')
  np.testing.assert_allclose(
    [token['logprob'] for token in others],
    log_TV[np.arange(6), at],
    atol=1e-4,
  )
  for log_V, token in zip(log_TV, others, strict=True):
    best = np.sort(log_V)[:-4:-1]
    got = [other['logprob'] for other in token['top']]
    np.testing.assert_allclose(got, best, atol=1e-4)
    likeliest = token['top'][0]['char']
    assert VOCABULARY.encode(likeliest)[0] == np.argmax(log_V)
  (row,) = _rows(run(*flags[1:], '--prompt=', '--logprobs=0'))
  assert len(row['tokens']) == 3
  # A prompt of one token is not scored, others in the batch may be.
  (row,) = _rows(run(*flags[1:], '--prompt=x', '--logprobs=1'))
  assert [s['top'] and len(s['top']) for s in row['tokens']] == [None, 1, 1, 1]
  (row,) = _rows(run(*flags, '--logprobs=0'))
  assert not any('top' in token for token in row['tokens'])


def test_best_of(run):
  flags = ('--prompt=a', '--max-chars=5', '--temperature=9', '--step=1',
           '--format=jsonl', '--ignore-end')  # fmt: skip
  drawn = _rows(run(*flags, '--num-samples=7', '--logprobs=0'))
  means = {
    row['sample']: np.mean([token['logprob'] for token in row['tokens']])
    for row in drawn
  }
  best = _rows(run(*flags, '--num-samples=2', '--best-of=7'))
  assert [row['sample'] for row in best] == sorted(
    means, key=lambda i: -means[i]
  )[:2]
  for row in best:
    assert row['text'] == drawn[row['sample']]['text']
    assert row['mean_logprob'] == pytest.approx(means[row['sample']])
  text = run(*flags[:4], '--ignore-end', '--num-samples=2', '--best-of=7')
  assert text == ''.join(
    f'--- sample {i} ---\na{row["text"]}' + '\n' * (row['text'][-1] != '\n')
    for i, row in enumerate(best, 1)
  )


def _requests(tmp_path, *lines):
  path = tmp_path / 'requests.jsonl'
  path.write_text(
    ''.join(
      (line if isinstance(line, str) else json.dumps(line)) + '\n'
      for line in lines
    )
  )
  return f'--requests={path}'


def test_requests(run, tmp_path):
  wanted = [
    {'prompt': 'a', 'max_chars': 3, 'temperature': 0, 'id': 'first'},
    {'prompt': 'x', 'seed': 5, 'n': 2, 'temperature': 9, 'ignore_end': True},
    {'prompt': 'x', 'beams': 2, 'max_chars': 2, 'id': 7},
    {'prompt': 'a', 'regex': '[x-z]{3}', 'logprobs': 1, 'temperature': 0},
    {'choices': ['no', 'bcdf'], 'stop': 'f', 'logit_bias': {'n': -99}},
    {'prompt': 'k', 'forbidden_chars': 'lm', 'max_chars': 1},
  ]
  flag = _requests(tmp_path, wanted[0], '', *wanted[1:])
  rows = _rows(run(flag, '--step=1', '--max-chars=9'))
  assert [row.get('id') for row in rows] == [
    'first',
    *[None] * 2,
    7,
    *[None] * 3,
  ]
  assert [row['prompt'] for row in rows] == ['a', 'x', 'x', 'x', 'a', '', 'k']
  assert rows[0]['text'] == 'bcd' and rows[3]['text'] == 'yz'
  assert rows[4]['text'] == 'xyz' and rows[5]['text'] == 'bcd'
  assert len(rows[4]['tokens'][0]['top']) == 1 and 'tokens' not in rows[3]
  assert rows[6]['text'] not in 'lm'
  # As the command writes them by themselves.
  alone = run('--prompt=x', '--seed=5', '--num-samples=2', '--temperature=9',
              '--ignore-end', '--step=1', '--max-chars=9',
              '--format=jsonl')  # fmt: skip
  assert _rows(alone) == rows[1:3]
  lines = ('\n'.join(map(json.dumps, wanted)) + '\n').encode()
  out = run('--requests=-', '--step=1', '--max-chars=9', stdin=lines)
  assert _rows(out) == rows


def test_many_requests_are_several_batches(run, tmp_path):
  flag = _requests(
    tmp_path, *({'prompt': c, 'n': 40, 'max_chars': 2} for c in 'adgx')
  )
  rows = _rows(run(flag, '--step=1', '--temperature=0'))
  assert [row['text'] for row in rows] == [
    text for text in ('bc', 'ef', 'hi', 'yz') for _ in range(40)
  ]


@pytest.mark.parametrize(
  'line, words',
  [
    ('{"prompt": ', 'line 2: not JSON'),
    ('[1]', r'line 2: must be an object like \{"prompt"'),
    ({'temprature': 1}, "line 2: there is no setting 'temprature', did you "),
    ({'top_k': 'x'}, "line 2: top_k='x' must be a whole number"),
    ({'top_k': True}, 'line 2: top_k=True must be a whole number'),
    ({'top_k': None}, 'line 2: top_k=None must be a whole number'),
    ({'prompt': 3}, 'line 2: prompt=3 must be a text'),
    ({'stop': [1]}, r'line 2: stop=\[1\] must be a text or a list of texts'),
    ({'top_p': 3}, r'line 2: top_p=3.0 must be from 0 to 1'),
    ({'seed': -1}, 'line 2: seed=-1 must be from 0'),
    ({'echo': 1}, 'line 2: echo=1 must be true or false'),
    ({'logit_bias': {'ab': 1}}, 'line 2: logit_bias=.* must be of characters'),
    ({'prompt': 'A'}, r'line 2: .*U\+0041'),
    ({'regex': '('}, 'line 2: .*pattern'),
    ({'regex': 'a{9}', 'max_chars': 8}, 'line 2: .* needs at least 9 tokens'),
    ({'beams': 2, 'max_chars': 99}, 'line 2: .* not go beyond it'),
    ({'best_of': 2, 'n': 3}, 'line 2: best_of=2 has no 3 texts'),
    ({'workdir': 'x'}, "line 2: there is no setting 'workdir'"),
  ],
)
def test_mistakes_in_requests(run, tmp_path, line, words):
  flag = _requests(tmp_path, {'prompt': 'a'}, line)
  output = tmp_path / 'out.jsonl'
  with pytest.raises(UserError, match=words):
    run(flag, f'--output={output}')
  assert not output.exists()


def test_no_requests(run, tmp_path):
  with pytest.raises(UserError, match='has no requests'):
    run(_requests(tmp_path, ''))
  with pytest.raises(UserError, match='remove --format'):
    run(_requests(tmp_path, {}), '--format=text')


def test_output(run, tmp_path):
  path = tmp_path / 'out'
  flags = ('--prompt=a', '--max-chars=4', '--num-samples=3', '--step=1',
           '--temperature=9')  # fmt: skip
  for form in ('text', 'jsonl'):
    assert run(*flags, f'--format={form}', f'--output={path}') == ''
    assert path.read_text() == run(*flags, f'--format={form}')
  assert [p.name for p in tmp_path.iterdir()] == ['out']
  assert json.loads(run(*flags, '--json', f'--output={path}'))['chars']
  with pytest.raises(UserError, match='there is no folder'):
    run(*flags, f'--output={tmp_path}/none/out')
  with pytest.raises(UserError, match='is a folder'):
    run(*flags, f'--output={tmp_path}')


def test_an_interrupt_keeps_the_finished_samples(run, tmp_path, monkeypatch):
  lines = [{'prompt': c, 'n': 40, 'max_chars': 2} for c in 'adg']
  flag = _requests(tmp_path, *lines)
  path = tmp_path / 'out'
  draw = Answers._draw

  def interrupted(self, batch):
    if batch[0].request.prompt == 'g':
      raise KeyboardInterrupt
    return draw(self, batch)

  monkeypatch.setattr(Answers, '_draw', interrupted)
  with pytest.raises(KeyboardInterrupt):
    run(flag, '--step=1', f'--output={path}')
  rows = _rows(path.read_text())
  assert [row['prompt'] for row in rows] == ['a'] * 40 + ['d'] * 40
  path.unlink()
  with pytest.raises(KeyboardInterrupt):
    run(_requests(tmp_path, lines[2]), '--step=1', f'--output={path}')
  assert not path.exists()


def test_the_bar_is_for_terminals(run, tmp_path, monkeypatch, capsys):
  flags = ('--prompt=a', '--num-samples=3', '--step=1', '--max-chars=4',
           f'--output={tmp_path / "out"}')  # fmt: skip
  run(*flags)
  assert capsys.readouterr().err == ''
  monkeypatch.setattr('sys.stderr', _Terminal())
  run(*flags)
  assert '3/3' in sys.stderr.getvalue()
  monkeypatch.setattr('sys.stderr', _Terminal())
  run(*flags, '--quiet')
  run(*flags[:1], *flags[2:])
  assert sys.stderr.getvalue() == ''


class _Terminal(io.StringIO):
  def isatty(self):
    return True


def test_interactive_settings_change(run, monkeypatch):
  lines = iter([
    ':set max-chars 3', ':set temperature 0', 'a', ':set n 2', 'x', ':set n',
    ':set temprature 1', ':set top-k x', ':set prompt a', ':set json-schema no',
    ':wrong', 'A', r'm\n', '', ':set regex [x-z]+', 'a', ':set regex',
    ':set choices ["no way", "b, c"]', ':set logit-bias {"é": 9}', ':show',
    ':set stop [', ':set logit-bias 3', ':show', ':help',
    KeyboardInterrupt,
  ])  # fmt: skip

  def ask(prompt):
    line = next(lines, EOFError)
    if not isinstance(line, str):
      raise line
    return line

  monkeypatch.setattr('builtins.input', ask)
  out = run('--interactive', '--step=1')
  assert out.startswith(
    'step 1; type a prompt, or :help\nabcd\n--- sample 1 ---\n'
  )
  for words in (
    '--- sample 2 ---\nxyza\n',
    "craft: there is no setting 'temprature', did you mean 'temperature'?\n",
    "craft: top_k='x' must be a whole number\n",
    'craft: prompt cannot be set here',
    'craft: no: No such file',
    "craft: unknown command ':wrong'",
    'U+0041 (LATIN CAPITAL LETTER A)',
    'm\nabc\n',
    '  max_chars = 3\n',
    "  choices = ('no way', 'b, c')\n",
    "  logit_bias = {'é': 9.0}\n",
    "  stop = ('[',)\n",
    "craft: logit_bias='3' must be of characters",
    '  regex = None\n',
    ':quit',
  ):
    assert words in out, words


@pytest.mark.slow
def test_interactive_on_a_terminal(workdir):
  """Ctrl-C ends the text, Ctrl-D the loop."""
  master, slave = pty.openpty()
  # The terminal sends Ctrl-C to the session that it belongs to.
  program = (
    'import fcntl, termios; fcntl.ioctl(0, termios.TIOCSCTTY, 0); '
    'from craft_jax import main; main.console()'
  )
  command = [
    sys.executable, '-c', program, 'sample', f'--workdir={workdir}',
    '--interactive', '--step=1', '--temperature=0', '--max-chars=1000000',
  ]  # fmt: skip
  with subprocess.Popen(
    command, stdin=slave, stdout=slave, stderr=slave, start_new_session=True
  ) as process:
    os.close(slave)
    seen = b''

    def wait_for(words):
      nonlocal seen
      while words not in seen:
        if not select.select([master], [], [], 60)[0]:
          process.kill()  # else the end of the block waits for it
          pytest.fail(f'no {words} after {seen[-200:]}')
        seen += os.read(master, 65536)
      # One read may bring what is waited for next as well.
      seen = seen.partition(words)[2]

    wait_for(b'> ')
    os.write(master, b'a\n')
    wait_for(b'bcdefghijklmnop')
    os.write(master, b'\x03')
    wait_for(b'> ')
    os.write(master, b':set max-chars 3\n')
    wait_for(b'> ')
    os.write(master, b'x\n')
    wait_for(b'xyza')
    wait_for(b'> ')  # before it the terminal itself would take Ctrl-D
    os.write(master, b'\x04')
    assert process.wait(60) == 0
  os.close(master)
