"""The loop on the device: lossless, and as short as the model says."""

import dataclasses

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from craft_jax.config.settings import Model
from craft_jax.data.text.vocabulary import Vocabulary
from craft_jax.inference.compress import loop, symbols
from craft_jax.inference.compress.codec import Codec, Damaged
from craft_jax.model.build import build
from craft_jax.model.precision import platform_of

HERE = platform_of(jax.devices()[0])

BYTES = Vocabulary.byte()
CHARS = Vocabulary('char', 'e taoin\nshr')
CFG = Model(
  context=12,
  width=16,
  depth=1,
  num_heads=2,
  precision='float32',
  zero_init=False,
)
PLANES = ''.join(chr(plane << 16 | 0x1234) for plane in range(17)).encode()
TEXTS = [
  b'the nation is on the other shore\n' * 3,
  b'',
  b'e',
  b'\x80',
  bytes(range(256)),
  np.random.default_rng(0).bytes(700),
  b'the \xc3\xa9tat \xe2\x80\x94 is \xff\xfe here \xed\xa0\x80' * 4,
  PLANES,
]


def make(vocabulary=CHARS, documents=False, **changes):
  model = build(
    dataclasses.replace(CFG, **changes),
    vocabulary.size,
    HERE,
  )
  params = jax.jit(model.init)(jax.random.key(0))
  # Blocks that outweigh the embedding, so that what came before matters.
  params['blocks'] = jax.tree.map(lambda leaf: leaf * 3, params['blocks'])
  return Codec(model, params, vocabulary, documents), params


def round_trip(codec, texts):
  values = [symbols.to_values(codec.vocabulary, text) for text in texts]
  coded = codec.encode(values)
  back = codec.decode(coded.streams, [len(v) for v in values])
  assert [symbols.to_bytes(codec.vocabulary, v) for v in back] == texts
  return coded


@pytest.mark.parametrize(
  'vocabulary, changes',
  [
    (BYTES, {}),
    (CHARS, {'precision': 'bfloat16', 'ngrams': 3, 'ngram_rows': 64}),
    (CHARS, {'position': 'learned', 'context': 7, 'documents': True}),
    (CHARS, {'context': 1}),
    (BYTES, {'context': 2, 'position': 'alibi'}),
  ],
  ids=['bytes', 'bfloat16', 'odd', 'one', 'two'],
)
def test_any_bytes_come_back(vocabulary, changes):
  codec, _ = make(vocabulary, **changes)
  coded = round_trip(codec, TEXTS)
  total = sum(map(len, coded.streams))
  assert total <= coded.ideal_bits / 8 * 1.01 + 5 * len(TEXTS)
  assert total >= coded.ideal_bits / 8 * 0.99


def test_one_program_does_both():
  codec, _ = make()
  before = loop.advance._cache_size()
  texts = [b'the nation ' * 60, b'is on']
  round_trip(codec, texts)
  round_trip(codec, texts[::-1])
  assert loop.advance._cache_size() == before + 1


@pytest.mark.parametrize('context, documents', [(1, False), (7, True)])
def test_ideal_length_is_that_of_plain_apply(context, documents):
  """Without a cache, by the documented rule of the window."""
  codec, params = make(documents=documents, context=context)
  apply = jax.jit(codec.model.apply)
  values = symbols.to_values(CHARS, b'the nation \xff\xff is on the other')
  kept, period = context // 2, context - context // 2
  start = CHARS.bos if documents else int(CHARS.encode('\n')[0])
  read, last, raw, bits = [], start, 0, 0.0
  for i, value in enumerate(values.tolist()):
    if i % period == 0 and len(read) > kept:
      read = read[-kept:] if kept else []
    if raw:
      raw = value + 1 if raw < 0 else raw - 1
      bits += 8
      continue
    read.append(last)
    x_BT = np.zeros((1, context), np.int32)
    x_BT[0, : len(read)] = read
    logits_V = apply(params, x_BT)[0, len(read) - 1]
    coded_A = jnp.append(logits_V[: CHARS.num_text_tokens], logits_V[CHARS.unk])
    bits -= float(jax.nn.log_softmax(coded_A)[value]) / np.log(2)
    raw = -1 if value == symbols.escape(CHARS) else 0
    last = CHARS.unk if raw else value
  coded = codec.encode([values])
  assert coded.ideal_bits == pytest.approx(bits, rel=1e-4)


def test_streams_side_by_side_do_not_mix():
  codec, _ = make()
  values = [symbols.to_values(CHARS, text) for text in TEXTS[:2]]
  a, b = codec.encode(values).streams
  c, d = codec.encode(values[::-1]).streams
  assert (a, b) == (d, c)


def test_damaged_streams_give_no_text_silently():
  codec, _ = make()
  values = symbols.to_values(CHARS, TEXTS[0])
  (stream,) = codec.encode([values]).streams
  silent = 0
  for at in range(len(stream)):
    changed = bytearray(stream)
    changed[at] ^= 1 << at % 8
    try:
      (back,) = codec.decode([bytes(changed)], [len(values)])
    except Damaged:
      continue
    silent += 1  # the sha256 of the archive tells
    assert back.tolist() != values.tolist()
  assert silent <= len(stream) // 8


@pytest.mark.parametrize(
  'change, words',
  [
    (lambda s: s[:3], 'too short'),
    (lambda s: b'\x00' + s[1:], 'invalid initial state'),
    (lambda s: s[:-8], 'ends too early'),
    (lambda s: s + b'\x00', 'has extra bytes'),
  ],
)
def test_streams_of_another_length(change, words):
  codec, _ = make()
  values = symbols.to_values(CHARS, TEXTS[0])
  (stream,) = codec.encode([values]).streams
  with pytest.raises(Damaged, match=words):
    codec.decode([change(stream)], [len(values)])
  with pytest.raises(Damaged):
    codec.decode([stream], [len(values) - 5])


def test_logits_that_are_not_finite():
  codec, params = make()
  params['final_norm']['scale'] = params['final_norm']['scale'] * np.nan
  broken = Codec(codec.model, params, CHARS, False)
  with pytest.raises(FloatingPointError, match='not finite'):
    broken.encode([np.zeros(3, np.int32)])
