"""What the host makes of the tokens of dispatches."""

import random

import pytest

from craft_jax.data.text.streaming import StreamDecoder
from craft_jax.data.text.vocabulary import Vocabulary
from craft_jax.inference.sampling.output import Row

LETTERS = 'abxy'
VOCABULARY = Vocabulary('char', LETTERS)


def taken(text, stop, sizes, chars=99):
  """The text of a row that is given `text` in dispatches of these sizes."""
  row = Row([0], StreamDecoder(VOCABULARY), chars, stop)
  ids, out = VOCABULARY.encode(text).tolist(), ''
  for size in sizes:
    if not row.live or not ids:
      break
    new, ids = ids[:size], ids[size:]
    piece = row.take(0, new, [0.0] * len(new), (98, 99))
    out += piece.text
  return out + (row.held if row.live else ''), piece.finish_reason


def expected(text, stop):
  """Character by character; the longest of those complete at once."""
  for n in range(1, len(text) + 1):
    ends = [word for word in stop if text[:n].endswith(word)]
    if ends:
      return text[: n - max(map(len, ends))], 'stop'
  return text, ''


@pytest.mark.parametrize(
  'text, stop, want',
  [
    ('xaby', ('ab', 'xaby'), 'x'),  # the inner one is complete first
    ('xaby', ('xaby', 'b'), 'xa'),
    ('yxab', ('b', 'ab', 'xab'), 'y'),  # at once: the longest
    ('aab', ('ab',), 'a'),
    ('xaxa', ('xab', 'axa'), 'x'),  # 'xa' began one that did not come
  ],
)
def test_stop_texts_within_each_other(text, stop, want):
  for size in (1, 2, 3, 9):
    assert taken(text, stop, [size] * 9) == (want, 'stop')
  assert expected(text, stop) == (want, 'stop')


def test_stop_texts_do_not_depend_on_the_dispatches():
  rng = random.Random(0)
  stopped = 0
  for _ in range(5000):
    text = ''.join(rng.choices(LETTERS, k=rng.randint(1, 12)))
    stop = tuple(
      ''.join(rng.choices(LETTERS, k=rng.randint(1, 4)))
      for _ in range(rng.randint(1, 4))
    )
    sizes = [rng.randint(1, 5) for _ in text]
    want = expected(text, stop)
    assert taken(text, stop, sizes) == want, (text, stop, sizes)
    stopped += want[1] == 'stop'
  assert 1000 < stopped < 4900


def test_a_stop_text_beyond_the_length_is_not_met():
  for size in (1, 3, 9):
    assert taken('xyab', ('ab',), [size] * 9, 3) == ('xya', 'length')
    assert taken('xyab', ('ab',), [size] * 9, 4) == ('xy', 'stop')
