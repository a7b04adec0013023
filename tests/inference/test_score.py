"""The scores of a text equal those of the plain forward pass."""

import functools
import re
from html.parser import HTMLParser

import jax
import numpy as np
import pytest

from craft_jax.config import load as config_lib
from craft_jax.data.corpus import Split
from craft_jax.data.text.vocabulary import Vocabulary
from craft_jax.errors import UserError
from craft_jax.inference import heatmap, score
from craft_jax.inference.evaluate import Evaluator
from craft_jax.model.build import build
from craft_jax.model.losses import token_losses
from craft_jax.model.precision import platform_of
from craft_jax.model.sharding import mesh as mesh_lib

HERE = platform_of(jax.devices()[0])

TEXT = 'the quick brown fox jumps over the lazy dog, ' * 4
CONTEXT = 32


@pytest.fixture(scope='module')
def setting():
  cfg = config_lib.load_config(
    'toy',
    [
      f'model.context={CONTEXT}',
      'model.width=16',
      'model.depth=1',
      'model.num_heads=1',
      'model.precision=float32',
      'eval.batch_size=4',
      'train.batch_size=4',
    ],
  )
  vocabulary = Vocabulary.from_text(TEXT)
  model = build(cfg.model, vocabulary.size, HERE)
  params = jax.tree.map(
    lambda p: p + 0.1 * jax.random.normal(jax.random.key(1), p.shape),
    jax.jit(model.init)(jax.random.key(0)),
  )
  return cfg, vocabulary, model, params


def plain(model, params, tokens):
  """Nats of all but the first, in one window of the whole context."""
  window = np.zeros((1, CONTEXT + 1), np.int32)
  window[0, : len(tokens)] = tokens
  return np.asarray(_plain(model, params, window))[: len(tokens) - 1]


@functools.partial(jax.jit, static_argnums=0)
def _plain(model, params, window_BS):
  logits_BTV = model.apply(params, window_BS[:, :-1])
  return token_losses(logits_BTV, window_BS[:, 1:])[1][0]


@pytest.mark.parametrize('length', [2, 3, 17, 32, 33])
def test_what_fits_a_window_is_one_window(setting, length):
  _, vocabulary, model, params = setting
  tokens = vocabulary.encode(TEXT)[:length]
  expected = plain(model, params, tokens)
  nats = score.token_nats(model, params, tokens)
  np.testing.assert_allclose(nats, expected, rtol=1e-5, atol=1e-6)
  # The sum is the loss of the window, whatever the stride.
  for stride in (1, CONTEXT):
    again = score.token_nats(model, params, tokens, stride=stride)
    assert again.sum() == pytest.approx(expected.sum(), rel=1e-5)


@pytest.mark.parametrize('stride', [None, 0, 1, 5, CONTEXT])
def test_each_token_has_its_context(setting, stride):
  _, vocabulary, model, params = setting
  tokens = vocabulary.encode(TEXT)
  nats = score.token_nats(model, params, tokens, stride=stride)
  assert nats.shape == (len(tokens) - 1,)
  step = CONTEXT // 2 if stride is None else stride or CONTEXT
  for target in (1, 31, 32, 33, 60, 100, len(tokens) - 1):
    start = max(0, -(-(target - CONTEXT) // step)) * step
    assert target - start >= min(target, CONTEXT - step)
    expected = plain(model, params, tokens[start : target + 1])[-1]
    assert nats[target - 1] == pytest.approx(expected, rel=1e-4, abs=1e-5)


def test_equals_the_strided_evaluation(setting):
  cfg, vocabulary, model, params = setting
  tokens = vocabulary.encode(TEXT)
  mesh = mesh_lib.data_mesh(cfg.eval.batch_size)
  evaluate = Evaluator(cfg, model, vocabulary, mesh)
  got = evaluate(params, Split('valid', tokens, 1, 1, 1), stride=8)
  nats = score.token_nats(model, params, tokens, stride=8)
  assert nats.mean() == pytest.approx(got['val_loss_strided'], rel=1e-5)


def test_many_equal_one_by_one(setting):
  _, vocabulary, model, params = setting
  ids = vocabulary.encode(TEXT)
  texts = [ids[i : i + n] for i, n in enumerate((2, 150, 9, 40, 33, 90, 5))]
  together = score.texts_scores(model, params, texts)
  for i, (tokens, scored) in enumerate(zip(texts, together, strict=True)):
    alone = score.token_nats(model, params, tokens)
    assert (scored.text, scored.first, scored.top.size) == (i, 0, 0)
    np.testing.assert_allclose(scored.nats, alone, rtol=1e-4, atol=1e-5)


@pytest.mark.parametrize('num_top', [1, 4, 'all'])
def test_the_most_likely_tokens_of_each_place(setting, num_top):
  _, vocabulary, model, params = setting
  K = vocabulary.size if num_top == 'all' else num_top
  tokens = vocabulary.encode(TEXT)[:CONTEXT]
  long = vocabulary.encode(TEXT)  # several windows
  scored, other = score.texts_scores(model, params, [tokens, long], num_top=K)
  assert other.top.shape == other.top_ids.shape == (len(long) - 1, K)
  logits_TV = np.asarray(
    jax.jit(model.apply)(params, tokens[None, :-1].astype(np.int32)),
    np.float64,
  )[0]
  log_TV = logits_TV - np.log(np.exp(logits_TV).sum(-1, keepdims=True))
  order_TK = np.argsort(-log_TV, axis=-1, kind='stable')[:, :K]
  assert (scored.top_ids == order_TK).all()
  want_TK = np.take_along_axis(log_TV, order_TK, axis=-1)
  np.testing.assert_allclose(scored.top, want_TK, rtol=1e-4, atol=1e-5)


def test_lengths_share_programs(setting):
  _, vocabulary, model, params = setting
  ids = vocabulary.encode(TEXT)
  score.token_nats(model, params, ids[:5])
  compiled = score.window_nats._cache_size()
  for length in range(2, 17):
    score.token_nats(model, params, ids[:length])
  assert score.window_nats._cache_size() == compiled


@pytest.mark.parametrize('most, reads', [
  (5 * CONTEXT, 1 << 20), (1 << 20, 5 * CONTEXT)
])  # fmt: skip
def test_batches_are_bounded(setting, monkeypatch, most, reads):
  _, vocabulary, model, params = setting
  tokens = vocabulary.encode(TEXT)
  expected = score.token_nats(model, params, tokens, stride=4)
  monkeypatch.setattr(score, '_MOST_LOGITS', most * vocabulary.size)
  rows = []
  apply = score.window_nats

  def watched(model, params, x_BT, *rest):
    rows.append(len(x_BT))
    return apply(model, params, x_BT, *rest)

  monkeypatch.setattr(score, 'window_nats', watched)
  (found,) = score.finished(
    score.texts_steps(model, params, [tokens], stride=4, most_reads=reads)
  )
  nats = found.nats
  assert max(rows) == 4 and len(rows) > 3
  np.testing.assert_allclose(nats, expected, rtol=1e-4, atol=1e-5)


def test_a_later_token_changes_no_earlier_score(setting):
  _, vocabulary, model, params = setting
  tokens = vocabulary.encode(TEXT)
  other = tokens.copy()
  other[90] = (other[90] + 1) % vocabulary.num_text_tokens
  a, b = (score.token_nats(model, params, t) for t in (tokens, other))
  assert np.array_equal(a[:89], b[:89]) and a[89] != b[89]


def test_mistakes(setting):
  _, _, model, params = setting
  one = np.zeros(1, np.uint8)
  with pytest.raises(ValueError, match='needs at least 2 tokens'):
    score.token_nats(model, params, one)
  with pytest.raises(UserError, match='stride=33'):
    score.token_nats(model, params, np.zeros(4, np.uint8), stride=33)


def test_characters_of_bytes():
  data = 'aé漢'.encode() + b'\xff\x80' + '😀'.encode()
  vocabulary = Vocabulary.byte()
  nats = np.arange(1, len(data) + 1, dtype=np.float32)
  text, offsets, sums = score.characters(vocabulary, data, nats)
  assert text == 'aé漢\udcff\udc80😀'
  assert offsets.tolist() == [0, 1, 3, 6, 7, 8]
  assert sums.tolist() == [1, 5, 15, 7, 8, 42]


def test_characters_of_characters():
  vocabulary = Vocabulary.from_text('aé漢')
  nats = np.array([1, 2, 3], np.float32)
  text, offsets, same = score.characters(vocabulary, 'é漢a'.encode(), nats)
  assert (text, offsets.tolist(), same.tolist()) == (
    'é漢a',
    [0, 2, 5],
    [1, 2, 3],
  )


# --- heat --------------------------------------------------------------------

HOSTILE = '<b a="1">&\'\n\t\x1b[31m\u202e\u0301\udcff é漢'


@pytest.mark.parametrize(
  'character, shown',
  [
    ('a', 'a'),
    (' ', '·'),
    ('\n', '↵'),
    ('\x1b', '␛'),
    ('\x7f', '␡'),
    ('\x85', 'U+0085'),
    ('\u202e', 'U+202E'),
    ('\u3000', 'U+3000'),
    ('\u0301', '◌\u0301'),
    ('\udcff', '\\xff'),
    ('漢', '漢'),
  ],
)
def test_everything_is_visible(character, shown):
  assert heatmap.visible(character) == shown


def test_levels():
  bits = np.array([0, 0.49, 0.5, 1, 7.99, 8, 100, np.inf])
  found = heatmap.levels(bits * np.log(2) * (1 + 1e-12))
  assert found.tolist() == [0, 0, 1, 2, 6, 7, 7, 7]
  assert (
    len(heatmap.legend()) == len(heatmap.COLOURS) == len(heatmap.BOUNDS) + 1
  )


class _Page(HTMLParser):
  """Collects tags and text."""

  def __init__(self):
    super().__init__()
    self.tags, self.said, self.titles = [], [], []
    self._in_pre = False

  def handle_starttag(self, tag, attrs):
    self.tags.append(tag)
    self._in_pre |= tag == 'pre'
    if self._in_pre and tag == 'b':
      self.titles.append(dict(attrs)['title'])

  def handle_endtag(self, tag):
    self._in_pre &= tag != 'pre'

  def handle_data(self, data):
    if self._in_pre:
      self.said.append(data)


def test_page_escapes_and_names_everything():
  nats = np.arange(len(HOSTILE)) * np.log(2) / 2
  page = heatmap.page(
    '<run>', [heatmap.Heat('a&b.txt', HOSTILE, nats, ['1 < 2'])]
  )
  page.encode()  # no lone surrogate
  reader = _Page()
  reader.feed(page)
  shown = [heatmap.visible(character) for character in HOSTILE]
  assert ''.join(reader.said).replace('\n', '') == ''.join(shown)
  assert len(reader.titles) == len(HOSTILE)
  assert reader.titles[1] == 'U+0062: 0.50 bits'
  assert 'byte 0xFF: ' in page and 'script' not in reader.tags
  assert not re.search(r'(src|href)=|url\(|@import|https?:', page)
  assert '\x1b' not in page and '\u202e' not in page
  assert all(colour in page for colour in heatmap.COLOURS)


def test_marked_lines_align():
  text = 'ab\n漢é'
  rows = list(
    heatmap.marked(text, np.array([0, 3, 50, 2, 1]) * np.log(2) + 1e-9)
  )
  assert rows == ['ab↵', '039', '漢é', '2 1']
