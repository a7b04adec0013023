"""Users of `craft serve`, for Locust (https://locust.io).

  pip install locust
  CRAFT_API_KEY=KEY locust -f launch/locustfile.py --host=http://127.0.0.1:8000

has a page at port 8089; with `--headless --users=32 --spawn-rate=4
--run-time=1m` it prints a table. Prompts are cut from a text that the model has
written, so that they fit any vocabulary. Of streams there are two rows beside
the requests, in milliseconds: until the first character, and per character
after it.
"""

import json
import os
import random
import re
import time

from locust import HttpUser, between, task
from locust.exception import StopUser

_TEXT = 1000  # characters to cut prompts from
_KEY = os.environ.get('CRAFT_API_KEY')


class Writer(HttpUser):
  """Asks for texts: short and long ones, some in a form, half as streams."""

  wait_time = between(0.1, 1)

  def on_start(self) -> None:
    """Has a text written."""
    if _KEY:
      self.client.headers['Authorization'] = f'Bearer {_KEY}'
    asked = {'max_tokens': _TEXT, 'ignore_eos': True}
    answer = self.client.post('/v1/completions', json=asked, name='a text')
    if not answer.ok:
      raise StopUser
    self._text = answer.json()['choices'][0]['text']

  @task(6)
  def short(self) -> None:
    """A line after a line."""
    self._write('short', self._prompt(40), 64)

  @task(2)
  def long(self) -> None:
    """Much to read, and to write."""
    self._write('long', self._prompt(_TEXT), 400)

  @task(2)
  def constrained(self) -> None:
    """In a form: of a few characters, and of a length."""
    chars = ''.join(re.escape(c) for c in sorted(set(self._prompt(20))))
    form = f'[{chars}]{{8,16}}'
    self._write('constrained', self._prompt(40), 64, regex=form)

  def _prompt(self, length: int) -> str:
    begin = random.randrange(max(len(self._text) - length, 0) + 1)
    return self._text[begin : begin + length]

  def _write(self, name: str, prompt: str, chars: int, **more: str) -> None:
    asked = {'prompt': prompt, 'max_tokens': chars, **more}
    if random.random() < 0.5:
      self._read(name, asked)
    else:
      self.client.post('/v1/completions', json=asked, name=name)

  def _read(self, name: str, asked: dict) -> None:
    """A stream, while it is written."""
    begin, first, got = time.perf_counter(), 0.0, 0
    with self.client.post(
      '/v1/completions', json=asked | {'stream': True}, stream=True,
      catch_response=True, name=f'{name}, streamed',
    ) as answer:  # fmt: skip
      if not answer.ok:
        return
      for line in answer.iter_lines():
        data = line.removeprefix(b'data: ')
        if data in (b'', b'[DONE]'):
          continue
        event = json.loads(data)
        if 'error' in event:
          answer.failure(event['error']['message'])
          return
        text = event['choices'][0]['text']
        if text and not got:
          first = time.perf_counter()
          self._note('first character', first - begin)
          begin_chars = len(text)
        got += len(text)
    if got and got > begin_chars:
      seconds = time.perf_counter() - first
      self._note('character', seconds / (got - begin_chars))

  def _note(self, name: str, seconds: float) -> None:
    self.environment.events.request.fire(
      request_type='stream', name=name, response_time=seconds * 1000,
      response_length=0, exception=None, context={},
    )  # fmt: skip
