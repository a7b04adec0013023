"""`craft predict`: prompts in, completions out in order, and their errors."""

import csv
import io
import json
import os
import random
import signal
import subprocess
import sys
import time
import urllib.request

import pytest

import craft_jax
from craft_jax import main as entry
from craft_jax.inference import predict as predict_lib

_HOSTILE = [
  'a\tb', 'say "a"', '"', 'a\nb', '', '🙂é', 'a\\nb', ' a ', '\r', "'", ',',
  'null', '{}',
]  # fmt: skip


@pytest.fixture(scope='module')
def words():
  """Words of a task: letters become capitals, ß becomes SS."""
  rng = random.Random(0)
  several = {
    ''.join(rng.choices('abcß', k=rng.randint(1, 5))) for _ in range(300)
  }
  return sorted(several)


@pytest.fixture(scope='module')
def folder(tmp_path_factory, words):
  """A folder with a tiny model of pairs, and files of prompts."""
  path = tmp_path_factory.mktemp('predict')
  write(path / 'pairs.tsv', [(w, w.upper()) for w in words])
  done = entry.main(
    [
      'train', '--config=pairs', f'--config.data.path={path}/pairs.tsv',
      '--config.model.context=32', '--config.model.width=32',
      '--config.model.depth=1', '--config.model.num_heads=2',
      '--config.train.batch_size=16', '--config.train.steps=80',
      '--config.eval.every=40', '--config.eval.task_rows=7',
      '--config.eval.batch_size=8', '--config.optim.warmup_steps=5',
      '--config.optim.learning_rate=0.01', '--config.checkpoint.best=val_cer',
      f'--workdir={path}/run', '--quiet',
    ]
  )  # fmt: skip
  assert done == 0
  return path


@pytest.fixture(scope='module')
def model(folder):
  return craft_jax.load(folder / 'run')


def write(path, rows, header=('prompt', 'completion'), delimiter='\t'):
  with open(path, 'w', newline='', encoding='utf-8') as file:
    csv.writer(file, delimiter=delimiter).writerows([header, *rows])
  return path


def read(path, delimiter='\t'):
  text = path.read_bytes().decode()
  rows = csv.DictReader(io.StringIO(text, newline=''), delimiter=delimiter)
  return list(rows)


def evaluations(folder):
  text = (folder / 'run/metrics.jsonl').read_text()
  rows = [json.loads(line) for line in text.splitlines()]
  return [row for row in rows if 'val_loss' in row]


@pytest.fixture
def run(folder, monkeypatch):
  """Runs `craft predict` in the folder."""
  monkeypatch.chdir(folder)

  def call(*flags):
    return entry.main(['predict', '--workdir=run', *map(str, flags)])

  return call


@pytest.fixture
def mistake(run, capfd):
  """The one line of a command that ends with exit code 2."""

  def call(*flags):
    capfd.readouterr()
    assert run(*flags) == 2
    err = capfd.readouterr().err
    assert err.startswith('craft: ') and err.count('\n') == 1, err
    return err

  return call


def test_evaluations_of_training_have_the_metrics(folder):
  rows = evaluations(folder)
  assert [row['step'] for row in rows] == [40, 80]
  assert rows[0]['val_task_rows'] == 7 and rows[1]['val_task_rows'] > 7
  assert all(0 <= row['val_exact_match'] <= 1 for row in rows)
  assert 0 < rows[1]['val_cer'] < rows[0]['val_cer'] * 1.5
  assert rows[1]['val_edits'][0].keys() == {'reference', 'completion', 'count'}


def test_eval_prints_them_with_intervals(folder, capsys):
  command = ['eval', f'--workdir={folder}/run', '--json']
  assert entry.main(command) == 0
  *text, last = capsys.readouterr().out.splitlines()
  found = json.loads(last)
  row = evaluations(folder)[-1]
  for name in ('val_exact_match', 'val_cer', 'val_wer', 'val_task_rows'):
    assert found[name] == row[name]
  assert found['val_cer_low'] <= found['val_cer'] <= found['val_cer_high']
  assert any(' character error rate (' in line for line in text)
  assert entry.main([*command, '--task-rows=0']) == 0
  assert 'val_cer' not in json.loads(capsys.readouterr().out.splitlines()[-1])


def test_lists_and_comparisons_know_them(folder, capsys):
  command = ['runs', 'list', str(folder), '--columns=name,val_cer', '--json']
  assert entry.main(command) == 0
  assert 'val_cer' in capsys.readouterr().out
  out = folder / 'report.html'
  assert entry.main(['runs', 'report', f'{folder}/run', f'--output={out}']) == 0
  page = out.read_text()
  assert 'Character error rate' in page and 'Edits' in page


@pytest.mark.parametrize('form', ['txt', 'tsv', 'csv', 'jsonl'])
def test_rows_keep_their_order_and_fields(form, run, folder, model, words):
  prompts = words[:9] if form == 'txt' else [*words[:9], *_HOSTILE]
  path, out = folder / f'in.{form}', folder / f'out.{form}'
  if form == 'txt':
    path.write_text(''.join(f'{w}\n' for w in prompts))
  elif form == 'jsonl':
    rows = [{'n': [i], 'prompt': w} for i, w in enumerate(prompts)]
    path.write_text(''.join(json.dumps(row) + '\n' for row in rows))
  else:
    delimiter = {'tsv': '\t', 'csv': ','}[form]
    rows = [(str(i), w) for i, w in enumerate(prompts)]
    write(path, rows, ('n', 'prompt'), delimiter)
  assert run(f'--input={path}', f'--output={out}', '--quiet') == 0
  want = model.predict(prompts)
  if form == 'txt':
    assert out.read_text().splitlines() == want
    return
  if form == 'jsonl':
    found = [json.loads(line) for line in out.read_text().splitlines()]
    assert [row['n'] for row in found] == [[i] for i in range(len(prompts))]
  else:
    found = read(out, delimiter)
    assert [row['n'] for row in found] == [str(i) for i in range(len(prompts))]
  assert [row['prompt'] for row in found] == prompts
  assert [row['completion'] for row in found] == want


@pytest.mark.slow
def test_sample_server_and_predict_agree(folder, run, model, words, capfd):
  prompts = words[:3]
  want = model.predict(prompts)
  command = [
    sys.executable, '-m', 'craft_jax.main', 'serve', f'--workdir={folder}/run',
    '--port=0',
  ]  # fmt: skip
  with subprocess.Popen(command, stdout=subprocess.PIPE, text=True) as server:
    url = server.stdout.readline().split()[-1]
    try:
      body = {'prompt': prompts, 'temperature': 0, 'max_tokens': 30}
      request = urllib.request.Request(
        f'{url}v1/completions',
        json.dumps(body).encode(),
        {'content-type': 'application/json'},
      )
      with urllib.request.urlopen(request, timeout=60) as answer:
        choices = json.load(answer)['choices']
    finally:
      server.terminate()
  assert [choice['text'] for choice in choices] == want
  for prompt, text in zip(prompts, want, strict=True):
    assert model.generate(prompt, temperature=0) == text
    capfd.readouterr()
    flags = [f'--prompt={prompt}', '--temperature=0', '--quiet']
    assert entry.main(['sample', f'--workdir={folder}/run', *flags]) == 0
    assert capfd.readouterr().out.removesuffix('\n') == text


@pytest.mark.slow
def test_pipes(folder, words):
  done = subprocess.run(
    [sys.executable, '-m', 'craft_jax.main', 'predict', '--workdir=run'],
    input='\n'.join(words[:3]).encode(),
    cwd=folder,
    capture_output=True,
    check=True,
  )
  assert len(done.stdout.splitlines()) == 3
  assert b'rows/s' in done.stderr or b'3 row(s)' in done.stderr


@pytest.mark.slow
def test_a_cut_output_is_continued(run, folder, words, capfd):
  hostile = [(p, 'x') for p in _HOSTILE]
  path = write(folder / 'cut_in.tsv', [*((w, 'é') for w in words), *hostile])
  whole, out = folder / 'whole.tsv', folder / 'cut.tsv'
  flags = [f'--input={path}', '--logprobs', '--temperature=1', '--seed=3']
  assert run(*flags, f'--output={whole}') == 0
  data = whole.read_bytes()
  ends = [0, 3, data.index(b'\n') + 1, 2001, data.rindex(b'"') - 1]
  accent = data.index('é'.encode(), len(data) // 3)
  for end in (*ends, accent + 1, len(data) - 1):
    out.write_bytes(data[:end])
    assert run(*flags, f'--output={out}', '--quiet') == 0
    assert out.read_bytes() == data, end
  before = out.stat().st_mtime_ns
  capfd.readouterr()
  assert run(*flags, f'--output={out}') == 0
  assert out.stat().st_mtime_ns == before
  assert f'{len(words) + len(hostile)} were there' in capfd.readouterr().err


def test_metrics_after_a_cut_are_those_of_all_rows(run, folder, words, capsys):
  path = write(folder / 'm.tsv', [(w, w.upper()) for w in words])
  out = folder / 'm_out.tsv'
  flags = [f'--input={path}', f'--output={out}', '--errors', '--json']
  assert run(*flags, '--quiet') == 0
  first = json.loads(capsys.readouterr().out)
  out.write_bytes(out.read_bytes()[:999])
  assert run(*flags, '--quiet') == 0
  again = json.loads(capsys.readouterr().out)
  for name in ('metrics', 'worst', 'errors'):
    assert again[name] == first[name]
  assert first['metrics']['task_rows'] == len(words)
  rows = read(out)
  exact = [row['completion'] == row['prediction'] for row in rows]
  assert first['metrics']['exact_match'] == pytest.approx(
    sum(exact) / len(rows)
  )
  assert len(first['worst']) == min(10, exact.count(False))


@pytest.mark.slow
def test_a_killed_command_is_continued(folder, run, words):
  path = write(folder / 'k.tsv', [(w, w) for w in words] * 6)
  whole, out = folder / 'k_whole.tsv', folder / 'k_out.tsv'
  assert run(f'--input={path}', f'--output={whole}', '--quiet') == 0
  command = [
    sys.executable, '-m', 'craft_jax.main', 'predict', '--workdir=run',
    f'--input={path}', f'--output={out}',
  ]  # fmt: skip
  with subprocess.Popen(command, cwd=folder, stderr=subprocess.DEVNULL) as job:
    while job.poll() is None and not (out.exists() and out.stat().st_size):
      time.sleep(0.01)
    os.kill(job.pid, signal.SIGKILL)
  assert out.stat().st_size <= whole.stat().st_size
  assert run(f'--input={path}', f'--output={out}', '--quiet') == 0
  assert out.read_bytes() == whole.read_bytes()


@pytest.mark.slow
def test_several_references(run, folder, model, words, capsys):
  word = words[5]
  (text,) = model.predict([word])
  write(folder / 'r.tsv', [(word, 'far away'), (word, text)])
  flags = ['--references', '--json', '--quiet']
  assert run('--input=r.tsv', '--output=r_out.tsv', *flags) == 0
  found = json.loads(capsys.readouterr().out)['metrics']
  assert found['task_rows'] == 1 and found['exact_match'] == 1
  rows = [{'prompt': word, 'all': ['far away', text]}]
  (folder / 'r.jsonl').write_text(json.dumps(rows[0]))
  flags = ['--references=all', '--json', '--quiet']
  assert run('--input=r.jsonl', '--output=r_out.jsonl', *flags) == 0
  assert json.loads(capsys.readouterr().out)['metrics']['cer'] == 0
  (folder / 'r.txt').write_text(f'{word}\n')
  (folder / 'refs.txt').write_text(f'{text}x\n')
  flags = ['--references=refs.txt', '--errors', '--quiet']
  assert run('--input=r.txt', '--output=r_out.txt', *flags) == 0
  out = capsys.readouterr().out
  assert f'row 1, {1 / (len(text) + 1):.0%}: {word} | {text}[x→∅]' in out
  assert out.endswith('reference→completion:\n  x→∅ 1\n')


def test_n_best_begins_with_the_best(run, folder, words):
  write(folder / 'n.tsv', [(w, '') for w in words[:3]])
  flags = ['--n-best=3', '--logprobs', '--length-penalty=0', '--quiet']
  assert run('--input=n.tsv', '--output=n_out.tsv', *flags) == 0
  for row in read(folder / 'n_out.tsv'):
    names = ('logprob', 'logprob_2', 'logprob_3')
    several = [float(row[name]) for name in names]
    assert several == sorted(several, reverse=True)
    texts = [row[n] for n in ('prediction', 'prediction_2', 'prediction_3')]
    assert len(set(texts)) == 3
  assert run('--input=n.tsv', '--output=n_out.jsonl', *flags) == 0
  row = json.loads((folder / 'n_out.jsonl').read_text().splitlines()[0])
  assert row['prediction'] == row['n_best'][0]['text']
  assert len(row['n_best']) == 3


def test_constraints_of_the_file_and_of_a_row(run, folder, words):
  rows = [(words[0], 'x+', ''), (words[1], '[0-9]{2}', '')]
  write(folder / 'c.tsv', rows, ('prompt', 'pattern', 'n'))
  flags = ['--input=c.tsv', '--quiet']
  out = '--output=c_out.tsv'
  assert run(*flags, out, '--regex-field=pattern', '--max-chars=4') == 0
  one, two = read(folder / 'c_out.tsv')
  assert set(one['completion']) == {'x'}
  assert len(two['completion']) == 2 and two['completion'].isdigit()
  assert run(*flags, '--output=d_out.tsv', '--regex=yes|no') == 0
  found = {row['completion'] for row in read(folder / 'd_out.tsv')}
  assert found <= {'yes', 'no'}


@pytest.mark.slow
def test_a_run_of_text_writes_lines(byte_run, tmp_path):
  path = tmp_path / 'p.txt'
  path.write_text('ab\n\ncd\r\n')
  out = tmp_path / 'out.txt'
  flags = [f'--input={path}', f'--output={out}', '--max-chars=40', '--quiet']
  assert entry.main(['predict', f'--workdir={byte_run}', *flags]) == 0
  assert len(out.read_bytes().split(b'\n')) == 4
  loaded = craft_jax.load(byte_run)
  want = loaded.predict(['ab', '', 'cd'], max_chars=40)
  assert out.read_text().split('\n')[:3] == [
    t.replace('\r', '\\r') for t in want
  ]
  whole = loaded.generate('ab', temperature=0, max_chars=40)
  assert want[0] == whole.partition('\n')[0]


def test_neighbours_and_slots_do_not_matter(model, words):
  request = predict_lib.request_of('pairs', 32, {'temperature': 1.0})
  trained = model.trained
  found = []
  for slots in (1, 4):
    predictor = predict_lib.Predictor(
      trained.model, trained.params, trained.vocabulary, request,
      documents=True, data_format='pairs', slots=slots,
    )  # fmt: skip
    rows = [predictor.prepare(i, word) for i, word in enumerate(words[:30])]
    found.append([one.text for (one,) in predictor.completions(rows)])
    (alone,) = predictor.completions(rows[7:8])
    assert alone[0].text == found[-1][7]
  assert found[0] == found[1]


@pytest.mark.slow
def test_mistakes_are_one_line_and_write_nothing(mistake, folder, words):
  write(folder / 'ok.tsv', [(words[0], 'A')])
  (folder / 'latin.txt').write_bytes(b'abc\nd\xe9\n')
  (folder / 'open.tsv').write_text('prompt\tx\na\t1\n"b\t2\nc\t3\n')
  (folder / 'ragged.csv').write_text('prompt,x\na,1\nb\n')
  (folder / 'twice.csv').write_text('prompt,prompt\na,1\n')
  (folder / 'long.txt').write_text(f'a\n{"b" * 40}\n')
  (folder / 'none.txt').write_text('')
  (folder / 'bad.jsonl').write_text('{"prompt": "a"}\n{"prompt": 3}\n')
  (folder / 'worse.jsonl').write_text('{"prompt": "a"}\n["a"]\n')
  (folder / 'two.txt').write_text('a\nb\n')
  (folder / 'empty.tsv').write_text('prompt\tcompletion\na\t\n')
  out = folder / 'nothing.tsv'
  for flags, words_of_error in (
    (['--input=gone.tsv'], 'gone.tsv'),
    (['--input=latin.txt'], 'latin.txt:2: byte 2 of the line is not UTF-8'),
    (['--input=open.tsv'], 'open.tsv:3: a quote is opened here'),
    (['--input=ragged.csv'], 'ragged.csv:3: the row has 1 field(s)'),
    (['--input=twice.csv'], "column 'prompt' twice"),
    (['--input=long.txt'], 'long.txt:2: the prompt takes 42 of the 32 tokens'),
    (['--input=none.txt'], 'none.txt has no rows'),
    (['--input=bad.jsonl'], "bad.jsonl:2: the field 'prompt' must be a text"),
    (['--input=worse.jsonl'], 'worse.jsonl:2: must be an object'),
    (['--input=ok.tsv', '--prompt-field=promt'],
     "no column 'promt', did you mean 'prompt'?; it has prompt, completion"),
    (['--input=ok.tsv', '--references=pron'], "no column 'pron'"),
    (['--input=ok.tsv', '--n-best=-1'], '--n-best=-1 must be at least 0'),
    (['--input=ok.tsv', '--temperature=-1'], 'temperature=-1.0 must be'),
    (['--input=ok.tsv', '--output-field=prompt'], "a field 'prompt' already"),
    (['--input=ok.tsv', '--regex=('], 'pattern: this ( is never closed'),
    (['--input=empty.tsv', '--references'], 'empty.tsv:2: the reference'),
    (['--input=two.txt', '--references'], '--references=FILE'),
    (['--input=two.txt', '--references=none.txt'],
     'two.txt has 2 lines, none.txt only 0'),
    (['--input=ok.tsv', '--workdir=nowhere'], 'nowhere'),
    (['--input=ok.tsv', '--input-file=x'], 'unknown flag'),
    (['--input=run'], 'run'),
  ):  # fmt: skip
    said = mistake(*flags, f'--output={out}')
    assert words_of_error in said, said
    assert not out.exists()
  assert 'is the input' in mistake('--input=ok.tsv', '--output=ok.tsv')
  assert 'give --output=FILE' in mistake('--input=ok.tsv', '--json')


@pytest.mark.slow
def test_a_foreign_output_is_refused(mistake, run, folder, words):
  write(folder / 'f.tsv', [(w, 'x') for w in words[:4]])
  out = folder / 'f_out.tsv'
  assert run('--input=f.tsv', f'--output={out}', '--quiet') == 0
  data = out.read_bytes()
  first, rest = data.split(b'\n', 1)
  for other, why in (
    (b'something else', 'its header is another'),
    (b'prompt\tcompletion\n', 'its header is another'),
    (first + b'\n' + rest.replace(b'\tx\t', b'\ty\t', 1), 'row 1 is not'),
    (data + rest, 'more than the 4 rows'),
    (data[:-1] + b'Q\n', 'row 4 is not what the model writes'),
    (data[: len(first) + 4] + b'Q', 'row 1 is not what the model writes'),
  ):
    out.write_bytes(other)
    assert why in mistake('--input=f.tsv', f'--output={out}')
    assert out.read_bytes() == other
