"""Samples on standard output, as they are written."""

import json
import sys
import time
from collections.abc import Iterator
from typing import Any


class Samples:
  """The samples so far, as the JSON objects they become."""

  def __init__(self, prompt: str, number: int, seed: int):
    self.prompt = prompt
    self.objects: list[dict[str, Any]] = [
      {
        'prompt': prompt,
        'text': '',
        'finish_reason': '',
        'seed': seed,
        'sample': i,
      }
      for i in range(number)
    ]

  def add(self, batch: list[Any]) -> None:
    for piece in batch:
      self.objects[piece.row]['text'] += piece.text
      self.objects[piece.row]['finish_reason'] = piece.finish_reason


class _Text:
  """Streams the first sample, then the others, each as soon as it can."""

  def __init__(self, samples: Samples):
    self._samples = samples
    self._current = -1
    self._written = 0
    self._begin_next()

  def _begin_next(self) -> None:
    self._current += 1
    self._written = 0
    number = len(self._samples.objects)
    if self._current < number:
      if number > 1:
        _write(f'--- sample {self._current + 1} ---\n')
      _write(self._samples.prompt)

  def update(self) -> None:
    objects = self._samples.objects
    while self._current < len(objects):
      sample = objects[self._current]
      _write(sample['text'][self._written :])
      self._written = len(sample['text'])
      if not sample['finish_reason']:
        break
      whole = sample['prompt'] + sample['text']
      _write('' if whole.endswith('\n') else '\n')
      self._begin_next()
    sys.stdout.flush()


class _Jsonl:
  """Writes each sample as one line, in order, as soon as it is finished."""

  def __init__(self, samples: Samples):
    self._samples = samples
    self._next = 0

  def update(self) -> None:
    objects = self._samples.objects
    while self._next < len(objects) and objects[self._next]['finish_reason']:
      print(json.dumps(objects[self._next]), flush=True)
      self._next += 1


WRITERS: dict[str, type[_Text] | type[_Jsonl]] = {
  'text': _Text,
  'jsonl': _Jsonl,
}


def _write(text: str) -> None:
  """Writes UTF-8 whatever the terminal says; a stray byte as it is."""
  from craft_jax.text.utf8 import to_bytes

  sys.stdout.flush()
  sys.stdout.buffer.write(to_bytes(text))


class Clock:
  """Characters and seconds, compilation apart."""

  def __init__(self) -> None:
    self._start = time.perf_counter()
    self._first = self._last = self._start
    self._chars = self._first_chars = 0

  def watch(self, batches: Iterator[list[Any]]) -> Iterator[list[Any]]:
    for i, batch in enumerate(batches):
      self._last = time.perf_counter()
      self._chars += sum(len(piece.text) for piece in batch)
      if i == 0:
        self._first, self._first_chars = self._last, self._chars
      yield batch

  def figures(self) -> dict[str, Any]:
    """The first dispatch compiles, so the speed is that of the others."""
    seconds = self._last - self._first
    chars = self._chars - self._first_chars
    return {
      'chars': self._chars,
      'seconds': self._last - self._start,
      'chars_per_second': chars / seconds if seconds else None,
    }
