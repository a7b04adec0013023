"""A program that does everything with a tiny run and prints what came out.

  python tests/runtime/every_command.py FOLDER '{"jax_enable_x64": true}'

FOLDER holds `text.txt`; the settings are given to `jax.config.update` first, as
by a program that imports the package. The last line of standard output is a
JSON object: the exit code and a digest of each command, and of the same through
`craft_jax.load`.
"""

import contextlib
import hashlib
import io
import json
import os
import pathlib
import re
import signal
import sys
import threading
import time
import traceback
import urllib.request

FLAGS = {
  'data.split': 'fraction', 'model.context': 16, 'model.width': 16,
  'model.depth': 1, 'model.num_heads': 2, 'model.dropout': 0.1,
  'train.batch_size': 4, 'train.steps': 40, 'eval.batch_size': 4,
  'optim.warmup_steps': 1, 'log.sample_chars': 10, 'mesh.cpu_devices': 2,
  'data.noise_rate': 0.1, 'model.zero_init': False,
}  # fmt: skip
ASK = {'prompt': 'a', 'max_tokens': 20, 'seed': 5, 'temperature': 1.0}


def digest(value):
  if isinstance(value, str):
    value = value.encode()
  return hashlib.sha256(value).hexdigest()[:16]


def craft(*argv):
  """Exit code of a command and what it printed."""
  from craft_jax.main import main

  out = io.TextIOWrapper(io.BytesIO(), 'utf-8')
  with contextlib.redirect_stdout(out):
    code = main(argv)
    out.flush()
  return code, out.buffer.getvalue().decode()


def serve(run):
  """Exit code of a server and the text of its answer to one request."""
  from craft_jax.main import main

  out, found = io.StringIO(), []

  def ask():
    try:
      while not (at := re.search(r'http://127.0.0.1:\d+/', out.getvalue())):
        time.sleep(0.02)
      request = urllib.request.Request(
        f'{at.group()}v1/completions',
        json.dumps(ASK).encode(),
        {'content-type': 'application/json'},
      )
      with urllib.request.urlopen(request, timeout=60) as answer:
        found.append(json.load(answer)['choices'][0]['text'])
    finally:
      os.kill(os.getpid(), signal.SIGTERM)

  threading.Thread(target=ask, daemon=True).start()
  with contextlib.redirect_stdout(out):
    code = main(['serve', f'--workdir={run}', '--port=0'])
  return code, ''.join(found)


def summary(out, *names):
  row = json.loads(out.splitlines()[-1])
  return json.dumps([row[name] for name in names])


def train(folder, run):
  flags = [f'--config.{k}={v}' for k, v in FLAGS.items()]
  flags += [f'--config.data.path={folder / "text.txt"}', '--quiet', '--json']
  flags += ['--config=text', f'--workdir={run}']
  code, out = craft('train', *flags, '--stop-at-step=3')
  if not code:
    code, out = craft('train', *flags)
  return code, code or summary(out, 'val_loss', 'sample', 'params')


def evaluate(run):
  code, out = craft('eval', f'--workdir={run}', '--json')
  return code, code or summary(out, 'val_loss', 'val_positions')


def score(flag):
  code, out = craft('score', flag, '--text=a text', '--json')
  return code, code or summary(out, 'texts')


def pack(folder, run):
  archive = folder / f'{run.name}.craft'
  code, _ = craft(
    'compress', f'--workdir={run}', str(folder / 'short.txt'),
    f'--output={archive}',
  )  # fmt: skip
  return code, code or archive.read_bytes()


def unpack(folder, run):
  """Of an archive that was made without any setting."""
  back = folder / f'{run.name}.txt'
  back.unlink(missing_ok=True)
  code, _ = craft(
    'decompress', f'--workdir={folder / "plain"}',
    str(folder / 'plain.craft'), f'--output={back}',
  )  # fmt: skip
  return code, code or back.read_bytes()


def library(run):
  import craft_jax

  model = craft_jax.load(run)
  texts = [
    model.generate('a', max_chars=20, seed=5),
    ''.join(model.stream('a', max_chars=20, seed=5)),
    str(model.score('a text')),
    *model.generate('a', max_chars=8, n=2, beams=2),
  ]
  return 0, '|'.join(texts)


def params(run):
  import craft_jax
  from craft_jax.runs.checkpoint import tree_sha256

  return 0, tree_sha256(craft_jax.load(run).trained.params)


def main():
  from craft_jax.errors import UserError

  folder, name = pathlib.Path(sys.argv[1]), sys.argv[2]
  updates = json.loads(sys.argv[3])
  run = folder / name
  if updates:
    import jax

    for key, value in updates.items():
      jax.config.update(key, value)
    before = dict(jax.config.values)
  flag = f'--workdir={run}'
  sample = ('--prompt=a', '--max-chars=20', '--seed=5')
  commands = {
    'train': lambda: train(folder, run),
    'params': lambda: params(run),
    'eval': lambda: evaluate(run),
    'sample': lambda: craft('sample', flag, *sample),
    'score': lambda: score(flag),
    'compress': lambda: pack(folder, run),
    'decompress': lambda: unpack(folder, run),
    'library': lambda: library(run),
    'serve': lambda: serve(run),
  }
  found = {}
  for command, do in commands.items():
    try:
      code, value = do()
    except UserError as e:
      print(e, file=sys.stderr)
      code, value = 2, ''
    except Exception:
      traceback.print_exc()
      code, value = 'traceback', ''
    found[command] = [code, code or digest(value)]
  if updates:
    left = {k: str(v) for k, v in jax.config.values.items() if v != before[k]}
    left.pop('jax_num_cpu_devices', None)
    left.pop('jax_compilation_cache_dir', None)
    found['left'] = left
  print(json.dumps(found))


if __name__ == '__main__':
  main()
