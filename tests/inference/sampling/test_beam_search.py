"""Beam search against every text there is, on an alphabet of two."""

import dataclasses
import functools
import itertools
import re

import jax
import numpy as np
import pytest
import scipy.special

from craft_jax.config.settings import Model
from craft_jax.constrain import compile_regex
from craft_jax.data.text.vocabulary import Vocabulary
from craft_jax.errors import UserError
from craft_jax.inference.sampling import beam_search as beam_lib
from craft_jax.inference.sampling import prefill as prefix_lib
from craft_jax.inference.sampling.beam_search import beam_search, search_steps
from craft_jax.inference.sampling.settings import SampleSettings
from craft_jax.model.build import build
from craft_jax.model.precision import platform_of

HERE = platform_of(jax.devices()[0])

AB = Vocabulary('char', 'ab')
ENDS = (AB.bos, AB.eos)
CFG = Model(
  context=12, width=16, depth=2, num_heads=2, precision='float32',
  zero_init=False,
)  # fmt: skip
LENGTH = 4


@pytest.fixture(scope='module')
def toy():
  model = build(CFG, AB.size, HERE)
  params = jax.jit(model.init)(jax.random.key(1))
  params['blocks'] = jax.tree.map(lambda leaf: leaf * 3, params['blocks'])
  # Ends about as likely as tokens, so that they are among the best texts.
  head = params['head']['kernel']
  key = jax.random.key(2)
  params['head']['kernel'] = jax.random.normal(key, head.shape) / 4
  return model, params


def logits_TV(model, params, ids):
  """Of any text by one program: padded to the context."""
  x_BT = np.zeros((1, CFG.context), np.int32)
  x_BT[0, : len(ids)] = ids
  return np.asarray(_apply(model, params, x_BT))[0, : len(ids)]


@functools.partial(jax.jit, static_argnums=0)
def _apply(model, params, x_BT):
  return model.apply(params, x_BT)


def every_text(model, params, prompt, penalty, end, pattern='.*', least=0):
  """Score, ids and finish reason of all texts, best first."""

  def log_TV(ids):
    logits = logits_TV(model, params, [*prompt, *ids])
    return scipy.special.log_softmax(logits, axis=-1)

  found = []
  for length in range(LENGTH + 1):
    for ids in itertools.product(range(2), repeat=length):
      if not re.fullmatch(pattern, AB.decode(ids)):
        continue
      table = log_TV(ids)
      logprob = sum(table[len(prompt) - 1 + i][s] for i, s in enumerate(ids))
      scale = max(length, 1) ** penalty
      if length == LENGTH:
        found.append((logprob / scale, list(ids), 'length'))
      elif end and length >= least:
        logprob += max(table[len(prompt) - 1 + length][e] for e in ENDS)
        found.append((logprob / scale, list(ids), 'stop'))
  return sorted(found, key=lambda f: -f[0])


@pytest.mark.parametrize('penalty', [0.0, 0.7, 2.0])
@pytest.mark.parametrize('end', [False, True])
def test_exact_where_nothing_is_dropped(toy, penalty, end):
  model, params = toy
  prompt = AB.encode('abb')
  settings = SampleSettings(end=end)
  found = beam_search(
    model, params, AB, prompt, 2**LENGTH, LENGTH, penalty, settings
  )
  want = every_text(model, params, prompt.tolist(), penalty, end)
  want = want[: 2**LENGTH]
  assert len(found) == len(want)
  np.testing.assert_allclose(
    [f.score for f in found], [score for score, *_ in want], atol=1e-4
  )
  gaps = np.diff([score for score, *_ in want])
  assert np.abs(gaps).min() > 1e-4  # no near-ties: the order is sure
  assert [(f.ids, f.finish_reason) for f in found] == [w[1:] for w in want]


def test_obeys_a_constraint(toy):
  model, params = toy
  prompt, pattern = AB.encode('b'), 'a?(ba|bb)*'
  settings = SampleSettings(
    end=True, min_chars=2, constraint=compile_regex(pattern, AB)
  )
  found = beam_search(
    model, params, AB, prompt, 2**LENGTH, LENGTH, 1.0, settings
  )
  want = every_text(model, params, prompt.tolist(), 1.0, True, pattern, least=2)
  assert [(f.ids, f.finish_reason) for f in found] == [w[1:] for w in want]


def test_one_beam_is_greedy(toy):
  model, params = toy
  settings = SampleSettings(end=False)
  (found,) = beam_search(
    model, params, AB, AB.encode('ab'), 1, 9, settings=settings
  )
  ids = AB.encode('ab').tolist()
  for _ in range(9):
    ids.append(int(np.argmax(logits_TV(model, params, ids)[-1, :2])))
  assert found.ids == ids[2:] and found.finish_reason == 'length'


def test_more_beams_are_no_worse(toy):
  model, params = toy
  scores = [
    beam_search(model, params, AB, AB.encode('ba'), width, 10)[0].score
    for width in (2, 8, 64)
  ]
  assert scores[0] <= scores[2] + 1e-5 and scores[1] <= scores[2] + 1e-5


@pytest.mark.parametrize('width', [1, 5, 64])
@pytest.mark.parametrize('end', [False, True])
def test_no_dispatch_is_long(toy, monkeypatch, width, end):
  """A search of any size is cut, and finds what a whole one does."""
  model, params = toy
  prompt, settings = AB.encode('abbaab'), SampleSettings(end=end)
  monkeypatch.setattr(beam_lib, '_TOKENS', 10)
  monkeypatch.setattr(beam_lib, 'CHUNK', 2)
  written, read = [], []
  write, read_chunk = beam_lib._write, prefix_lib.read_chunk

  def watched_write(*args):
    begin, until = map(int, args[5:7])
    written.append((begin, until))
    return write(*args)

  def watched_read(*args):
    read.append(int(args[-1][0]))
    return read_chunk(*args)

  monkeypatch.setattr(beam_lib, '_write', watched_write)
  monkeypatch.setattr(prefix_lib, 'read_chunk', watched_read)
  done = []
  steps = search_steps(model, params, AB, prompt, width, 7, settings=settings)
  with pytest.raises(StopIteration) as ended:
    while True:
      done.append(next(steps))
  found = ended.value.value
  assert read == [2, 2, 1]
  assert [begin for begin, _ in written] == [0, *(u for _, u in written[:-1])]
  most = max(10 // width, 1)
  assert all(until - begin <= most for begin, until in written)
  if not end:
    assert len(written) == -(-7 // most)
  assert done == [0, 0, 0, *(width * (u - b) for b, u in written)]
  monkeypatch.undo()
  whole = beam_search(model, params, AB, prompt, width, 7, settings=settings)
  assert [f.ids for f in found] == [f.ids for f in whole]
  np.testing.assert_allclose(
    [f.score for f in found], [f.score for f in whole], atol=1e-5
  )


def test_bytes_are_valid_utf8():
  vocabulary = Vocabulary.byte()
  model = build(CFG, vocabulary.size, HERE)
  params = jax.jit(model.init)(jax.random.key(0))
  # Stray bytes are the likeliest by far.
  kernel = params['head']['kernel'] * 0.1
  params['head']['kernel'] = kernel.at[:, 0x80:0x90].add(1.0)
  prompt = vocabulary.encode('é'.encode()[:1])  # its end is still to come

  def texts(utf8):
    settings = SampleSettings(end=False, utf8=utf8)
    found = beam_search(
      model, params, vocabulary, prompt, 8, 7, settings=settings
    )
    return [bytes([0xC3, *text.ids]) for text in found]

  for text in texts(True):
    assert len(text.decode()) >= 2 and len(text) == 8
  with pytest.raises(UnicodeDecodeError):
    texts(False)[0].decode()
  emoji = vocabulary.encode('😀'.encode()[:1])
  with pytest.raises(UserError, match='needs at least 3'):
    beam_search(
      model, params, vocabulary, emoji, 2, 2, settings=SampleSettings(utf8=True)
    )


def test_mistakes(toy):
  model, params = toy
  prompt = AB.encode('a' * 5)
  for width, tokens, penalty, words in (
    (0, 3, 1.0, 'width=0 must be at least 1'),
    (2, 0, 1.0, 'max_tokens=0 must be at least 1'),
    (2, 3, -1.0, 'length_penalty=-1.0 must be from 0'),
    (2, 9, 1.0, 'prompt of 5 tokens and a text of 9 do not fit'),
  ):
    with pytest.raises(UserError, match=words):
      beam_search(model, params, AB, prompt, width, tokens, penalty)
  settings = dataclasses.replace(
    SampleSettings(), constraint=compile_regex('a{5}', AB)
  )
  with pytest.raises(UserError, match='needs at least 5'):
    beam_search(model, params, AB, prompt, 2, 4, settings=settings)
