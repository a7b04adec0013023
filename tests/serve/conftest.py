"""A model of seconds, and servers of it."""

import contextlib
import json
import os
import pathlib
import re
import signal
import subprocess
import sys
import time
import urllib.error
import urllib.request

import pytest

from craft_jax.inference.load import load_model
from craft_jax.runtime import compilation_cache
from craft_jax.serve import completions
from craft_jax.serve.admission import Limits
from craft_jax.serve.logs import Log
from craft_jax.serve.service import Model, Service

TEXT = ''.join(f'{i} squared is {i * i}; é{i % 7}—😀\n' for i in range(400))
_SERVING = re.compile(r'^serving (\S+) .* at http://127\.0\.0\.1:(\d+)/$')


class Server:
  """`craft serve` as a process.

  Attributes:
    url: without a slash at its end.
    port: number.
    name: of its model.
    command: of Python, that is `craft`.
    process: the process.
    log: a file of what it says on standard error.
  """

  command = ('-m', 'craft_jax.main')

  def __init__(self, model_dir, log, *flags, **environment):
    self.log = log
    command = [
      sys.executable, *self.command, 'serve', f'--workdir={model_dir}',
      '--port=0', *flags,
    ]  # fmt: skip
    with open(log, 'wb') as errors:
      self.process = subprocess.Popen(
        command, stdout=subprocess.PIPE, stderr=errors, text=True,
        env=os.environ | environment,
      )  # fmt: skip
    line = self.process.stdout.readline()
    found = _SERVING.match(line)
    assert found, line + pathlib.Path(log).read_text()
    self.name, self.port = found.group(1), int(found.group(2))
    self.url = f'http://127.0.0.1:{self.port}'

  def ask(self, path, body=None, headers=(), method=None):
    """Status, headers and body (bytes) of one request; JSON is sent."""
    if body is not None and not isinstance(body, bytes):
      body = json.dumps(body).encode()
    names = {'content-type': 'application/json'} | dict(headers)
    request = urllib.request.Request(
      self.url + path, body, names, method=method
    )
    try:
      with urllib.request.urlopen(request, timeout=60) as answer:
        return answer.status, dict(answer.headers), answer.read()
    except urllib.error.HTTPError as e:
      return e.code, dict(e.headers), e.read()

  def complete(self, **fields):
    """The object of a completion, which must be one."""
    status, _, body = self.ask('/v1/completions', fields)
    assert status == 200, body
    return json.loads(body)

  def stream(self, **fields):
    """The objects of a streamed completion, after whose last comes [DONE]."""
    status, headers, body = self.ask(
      '/v1/completions', fields | {'stream': True}
    )
    assert status == 200, body
    assert headers['content-type'].startswith('text/event-stream')
    events = body.decode().split('\n\n')
    assert events[-2:] == ['data: [DONE]', '']
    return [json.loads(e.removeprefix('data: ')) for e in events[:-2]]

  def metric(self, name):
    """A figure of /metrics, by its name and labels as they stand there."""
    _, _, body = self.ask('/metrics')
    for line in body.decode().splitlines():
      if line.startswith(f'{name} '):
        return float(line.split()[-1])
    return 0.0

  def until(self, wanted, seconds=20):
    """Waits until `wanted()` is true."""
    end = time.monotonic() + seconds
    while not wanted():
      assert time.monotonic() < end, pathlib.Path(self.log).read_text()
      time.sleep(0.02)

  def stop(self, kind=signal.SIGTERM):
    """Asks it to end; its exit code."""
    if self.process.poll() is None:
      self.process.send_signal(kind)
    try:
      return self.process.wait(60)
    finally:
      self.process.kill()
      self.process.stdout.close()


@pytest.fixture(scope='session')
def model_dir(tmp_path_factory):
  """A byte model that was trained for some steps on a text of its own."""
  folder = tmp_path_factory.mktemp('served')
  text = folder / 'text.txt'
  text.write_text(TEXT, encoding='utf-8')
  flags = {
    'data.path': text, 'model.context': 64, 'model.width': 32,
    'model.depth': 2, 'model.num_heads': 2, 'model.precision': 'float32',
    'train.steps': 60, 'train.batch_size': 16, 'optim.warmup_steps': 5,
    'log.sample_chars': 0, 'mesh.cpu_devices': 1,
  }  # fmt: skip
  command = [
    sys.executable, '-m', 'craft_jax.main', 'train', '--config=text',
    f'--workdir={folder / "toy"}', '--quiet',
    *(f'--config.{name}={value}' for name, value in flags.items()),
  ]  # fmt: skip
  subprocess.run(command, check=True, stdout=subprocess.DEVNULL)
  return folder / 'toy'


@pytest.fixture
def start_server(model_dir, tmp_path):
  """`start_server(*flags, **environment) -> Server`; all end with the test."""
  servers = []

  def start(*flags, **environment):
    log = tmp_path / f'server-{len(servers)}.log'
    servers.append(Server(model_dir, log, *flags, **environment))
    return servers[-1]

  yield start
  for server in servers:
    server.stop(signal.SIGKILL)


@pytest.fixture(scope='session')
def server(model_dir, tmp_path_factory):
  """One with chats, for all tests that leave it as it was."""
  log = tmp_path_factory.mktemp('server') / 'log'
  found = Server(model_dir, log, '--chat')
  yield found
  assert found.stop() == 0


@contextlib.asynccontextmanager
async def in_process(model_dir, folder, limits=None, slots=2):
  """A service, started, of two slots unless told otherwise."""
  compilation_cache.use(pathlib.Path(os.environ.get('CRAFT_CACHE', folder)))
  trained = load_model(model_dir, 'latest', True)
  with (folder / 'log').open('w') as file:
    service = Service(
      Model.of(trained), 'm', slots, limits or Limits(), Log(file)
    )
    await service.start()
    try:
      yield service
    finally:
      await service.stop()


async def written(service, body):
  """The texts that a completion is given."""
  taken = await completions.take(service, body)
  try:
    await taken.begin()
    async for _ in taken.news():
      pass
    return [choice['text'] for choice in taken.choices()]
  finally:
    taken.close('failed')
