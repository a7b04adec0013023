"""launch/locustfile.py, which users load their servers with."""

import csv
import importlib.util
import pathlib
import re
import signal
import subprocess
import sys

import pytest

_FILE = pathlib.Path(__file__).parents[2] / 'launch' / 'locustfile.py'


@pytest.mark.slow
@pytest.mark.skipif(
  # Not imported: it replaces sockets and threads.
  not importlib.util.find_spec('locust'),
  reason='needs locust, of the extra `dev`',
)
def test_users_are_served(start_server, tmp_path):
  key = 'a key of sixteen and more'.replace(' ', '-')
  server = start_server(CRAFT_API_KEYS=key)
  command = [
    sys.executable, '-m', 'locust', '-f', str(_FILE), f'--host={server.url}',
    '--headless', '--users=6', '--spawn-rate=6', f'--csv={tmp_path / "load"}',
  ]  # fmt: skip
  with subprocess.Popen(command, env={'CRAFT_API_KEY': key}) as users:
    try:
      headers = {'authorization': f'Bearer {key}'}
      server.until(lambda: _num_answers(server, headers) >= 80, 60)
      users.send_signal(signal.SIGTERM)
      assert users.wait(30) == 0
    finally:
      users.kill()
  with (tmp_path / 'load_stats.csv').open() as file:
    rows = {row['Name']: row for row in csv.DictReader(file)}
  assert int(rows['Aggregated']['Failure Count']) == 0
  for name in ('a text', 'short', 'short, streamed', 'first character'):
    assert int(rows[name]['Request Count']) > 0
  assert float(rows['character']['Average Response Time']) > 0


def _num_answers(server, headers):
  _, _, body = server.ask('/metrics', headers=headers)
  found = re.search(
    r'path="/v1/completions",status="200"\} (\S+)', body.decode()
  )
  return float(found[1]) if found else 0
