"""Downloads are checked before they are put in place."""

import hashlib
import http.server
import socket
import threading

import pytest

from craft_jax.config.settings import Data
from craft_jax.data import download, sources
from craft_jax.errors import UserError

TEXT = b'First Citizen:\n' * 1000
SHA256 = hashlib.sha256(TEXT).hexdigest()


@pytest.fixture
def server(monkeypatch):
  """A server on this machine; `/cut` stops in the middle."""
  monkeypatch.setenv('no_proxy', '*')
  hits = []

  class Handler(http.server.BaseHTTPRequestHandler):
    def do_GET(self):
      hits.append(self.path)
      if self.path == '/missing':
        self.send_error(404)
        return
      self.send_response(200)
      self.send_header('Content-Length', str(len(TEXT)))
      self.end_headers()
      self.wfile.write(TEXT[:100] if self.path == '/cut' else TEXT)

    def log_message(self, *args):
      pass

  with http.server.HTTPServer(('127.0.0.1', 0), Handler) as running:
    thread = threading.Thread(target=running.serve_forever, args=[0.02])
    thread.start()
    yield f'http://127.0.0.1:{running.server_port}', hits
    running.shutdown()
    thread.join()


def files(folder):
  return sorted(p.name for p in folder.rglob('*') if p.is_file())


def test_fetch_once(server, tmp_path):
  url, hits = server
  path = tmp_path / 'new' / 'folder' / 'text.txt'
  for _ in range(2):
    download.fetch(f'{url}/text', path, SHA256)
    assert path.read_bytes() == TEXT
  assert hits == ['/text']
  path.write_bytes(TEXT[:-1])  # damaged later: fetched again
  download.fetch(f'{url}/text', path, SHA256)
  assert path.read_bytes() == TEXT
  assert files(tmp_path) == ['text.txt']


@pytest.mark.parametrize(
  ('page', 'sha256', 'message'),
  [
    ('/text', '0' * 64, 'not the expected file'),
    ('/cut', SHA256, 'not the expected file'),
    ('/missing', SHA256, 'cannot download .* \\(Not Found\\)'),
  ],
)
def test_a_bad_answer_leaves_nothing(server, tmp_path, page, sha256, message):
  path = tmp_path / 'text.txt'
  with pytest.raises(UserError, match=message) as error:
    download.fetch(server[0] + page, path, sha256, remedy='or wait')
  assert str(error.value).endswith('or wait')
  assert '\n' not in str(error.value)
  assert files(tmp_path) == []
  path.write_bytes(b'before')
  with pytest.raises(UserError):
    download.fetch(server[0] + page, path, sha256)
  assert path.read_bytes() == b'before' and files(tmp_path) == ['text.txt']


def test_no_server_and_a_silent_one(monkeypatch, tmp_path):
  monkeypatch.setenv('no_proxy', '*')
  with socket.create_server(('127.0.0.1', 0)) as silent:
    url = f'http://127.0.0.1:{silent.getsockname()[1]}/'
    with pytest.raises(UserError, match='timed out'):
      download.fetch(url, tmp_path / 'text.txt', SHA256, timeout=0.2)
  with pytest.raises(UserError, match='check the network'):
    download.fetch(url, tmp_path / 'text.txt', SHA256, timeout=5)
  assert files(tmp_path) == []


def test_a_folder_that_cannot_be_made(server, tmp_path):
  (tmp_path / 'file').write_text('x')
  with pytest.raises(UserError, match=r'--config\.data\.cache_dir=DIR'):
    download.fetch(server[0], tmp_path / 'file' / 'text.txt', SHA256)


def test_shakespeare_offline_names_the_remedy(monkeypatch, tmp_path):
  monkeypatch.setattr(
    sources, 'SHAKESPEARE_URL', (tmp_path / 'gone.txt').as_uri()
  )
  with pytest.raises(UserError, match=r'--config\.data\.path=input\.txt'):
    sources.open_source(Data(source='shakespeare', cache_dir=str(tmp_path)))


def test_shakespeare_is_downloaded_into_the_cache(monkeypatch, tmp_path):
  (tmp_path / 'input.txt').write_bytes(TEXT)
  url = (tmp_path / 'input.txt').as_uri()
  monkeypatch.setattr(sources, 'SHAKESPEARE_URL', url)
  monkeypatch.setattr(sources, 'SHAKESPEARE_SHA256', SHA256)
  cache = tmp_path / 'cache'
  data = Data(source='shakespeare', cache_dir=str(cache))
  (document,) = sources.open_source(data).parts['all']
  assert document.read() == TEXT
  assert files(cache) == ['tinyshakespeare.txt']
  (tmp_path / 'input.txt').unlink()  # offline now
  assert sources.open_source(data).parts['all'][0].read() == TEXT
