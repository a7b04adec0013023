"""schemathesis against the document of our own."""

import re
import subprocess
import sys

import pytest

_CASES = 2000
_CHECKS = (
  'not_a_server_error', 'status_code_conformance',
  'content_type_conformance', 'response_schema_conformance',
  'response_headers_conformance',
)  # fmt: skip


@pytest.mark.slow
def test_every_answer_is_as_the_document_says(start_server, tmp_path):
  server = start_server('--chat', '--max-tokens=16', '--max-texts=4')
  found = subprocess.run(
    [
      sys.executable, '-m', 'schemathesis.cli', 'run',
      f'{server.url}/openapi.json', f'--checks={",".join(_CHECKS)}',
      '--phases=examples,coverage,fuzzing', '--max-examples=400',
      '--seed=1', '--no-color', '--suppress-health-check=all',
    ],
    stdout=subprocess.PIPE, stderr=subprocess.STDOUT, text=True, cwd=tmp_path,
  )  # fmt: skip
  print(found.stdout)
  assert found.returncode == 0
  (cases,) = re.findall(r'([\d,]+) generated', found.stdout)
  assert int(cases.replace(',', '')) >= _CASES
  text = server.ask('/metrics')[2].decode()
  counts = re.findall(r'craft_requests_total\{.*status="(\d+)"\} (\S+)', text)
  by_status = {}
  for status, count in counts:
    by_status[status] = by_status.get(status, 0) + float(count)
  assert by_status['200'] > 100 and by_status['400'] > 100, by_status
  assert not any(status >= '500' for status in by_status), by_status
