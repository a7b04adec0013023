"""The evaluation equals a plain computation of the same thing."""

import functools
import json
import math

import jax
import numpy as np
import pytest

from craft_jax.config import load as config_lib
from craft_jax.config.settings import Model
from craft_jax.data.corpus import Split
from craft_jax.data.text.vocabulary import Vocabulary
from craft_jax.inference import dynamic_evaluation, evaluate, score
from craft_jax.inference.evaluate import Evaluator
from craft_jax.inference.load import Trained
from craft_jax.model.build import build
from craft_jax.model.precision import platform_of
from craft_jax.model.sharding import mesh as mesh_lib

HERE = platform_of(jax.devices()[0])

TEXT = 'ab 12,é漢\n' * 3 + 'the end'


@pytest.fixture(scope='module')
def setting():
  cfg = config_lib.load_config(
    'toy',
    [
      'model.context=8',
      'model.width=16',
      'model.precision=float32',
      'eval.batch_size=4',
      'train.batch_size=4',
    ],
  )
  vocabulary = Vocabulary.from_text(TEXT, 0, 'error')
  model = build(cfg.model, vocabulary.size, HERE)
  params = jax.tree.map(
    lambda p: p + 0.1 * jax.random.normal(jax.random.key(1), p.shape),
    jax.jit(model.init)(jax.random.key(0)),
  )
  mesh = mesh_lib.data_mesh(cfg.eval.batch_size)
  return cfg, vocabulary, model, params, Evaluator(cfg, model, vocabulary, mesh)


def split_of(tokens):
  return Split('valid', tokens, len(tokens), 0, 1)


def nll_of(model, params, tokens, start, target):
  """Nats of one target, seen from the window that starts at `start`."""
  x = np.zeros((1, 8), np.int32)  # padded: one program for every length
  x[0, : target - start] = tokens[start:target]
  logits = _apply(model, params, x)[0, target - start - 1]
  return float(-jax.nn.log_softmax(logits)[int(tokens[target])])


@functools.partial(jax.jit, static_argnums=0)
def _apply(model, params, x_BT):
  return model.apply(params, x_BT)


@pytest.mark.parametrize('stride', [0, 3])
def test_equals_one_by_one(setting, stride):
  cfg, vocabulary, model, params, evaluate = setting
  tokens = vocabulary.encode(TEXT)
  context = cfg.model.context
  step = stride or context
  nats = []
  for target in range(1, len(tokens)):
    start = max(0, -(-(target - context) // step)) * step
    nats.append(nll_of(model, params, tokens, start, target))
  got = evaluate(params, split_of(tokens), stride=stride)
  key = 'val_loss_strided' if stride else 'val_loss'
  assert got[key] == pytest.approx(np.mean(nats), rel=1e-5)
  bits = sum(nats) / math.log(2)
  suffix = '_strided' if stride else ''
  num_bytes = len(TEXT[1:].encode())
  assert got['val_bpb' + suffix] == pytest.approx(bits / num_bytes, rel=1e-5)
  assert got['val_bpc' + suffix] == pytest.approx(bits / (len(TEXT) - 1), 1e-5)
  assert got['val_count'] == len(tokens) - 1
  json.dumps(got)
  shares = [c['share'] for c in got['val_classes'].values()]
  assert sum(shares) == pytest.approx(1)


def test_separators_do_not_count(setting):
  _, vocabulary, _, params, evaluate = setting
  piece = vocabulary.encode('ab 12,')
  bos = np.array([vocabulary.bos], piece.dtype)
  got = evaluate(params, split_of(np.concatenate([piece, bos, piece])))
  assert got['val_count'] == 11


def test_withheld(setting):
  _, vocabulary, _, params, evaluate = setting
  split = split_of(vocabulary.encode(TEXT))
  got = evaluate(params, split, 'because', prefix='test')
  assert got['test_bpb'] is None and got['test_withheld'] == 'because'
  assert got['test_bpc'] > 0


@pytest.mark.parametrize('stride', [0, 3])
def test_adaptive_figures(setting, stride):
  cfg, vocabulary, model, params, evaluator = setting
  bos = np.array([vocabulary.bos], vocabulary.dtype)
  piece = vocabulary.encode(TEXT)
  tokens = np.concatenate([piece, bos, piece])
  trained = Trained(cfg, vocabulary, model, params, None)
  split = split_of(tokens)
  frozen = dynamic_evaluation.Adaptation(0.0)
  got = evaluate.adaptive_figures(trained, split, '', stride, frozen, True)
  # A rate of zero is the static model, under another name.
  static = evaluator(params, split, stride=stride)
  suffix = '_strided' if stride else ''
  for name in ('loss', 'bpc', 'bpb', 'perplexity'):
    expected = pytest.approx(static[f'val_{name}{suffix}'], rel=1e-5)
    assert got[f'{name}_dynamic'] == expected
  assert got['stride_dynamic'] == (stride or cfg.model.context)
  assert got['loss_dynamic_cache'] == pytest.approx(
    got['loss_dynamic_both'], rel=1e-4
  )
  assert got['loss_dynamic_cache'] < got['loss_dynamic']
  json.dumps(got)
  adapting = dynamic_evaluation.Adaptation(0.01)
  only = evaluate.adaptive_figures(
    trained, split, 'because', stride, adapting, False
  )
  assert only['bpb_dynamic'] is None and 'loss_dynamic_cache' not in only
  assert only['loss_dynamic'] < got['loss_dynamic'] - 0.05


def test_scores_stop_at_documents():
  cfg = Model(
    context=16, width=16, depth=1, num_heads=1, documents=True,
    precision='float32',
  )  # fmt: skip
  vocabulary = Vocabulary.byte()
  model = build(cfg, vocabulary.size, HERE)
  params = jax.tree.map(
    lambda p: p + 0.1 * jax.random.normal(jax.random.key(1), p.shape),
    jax.jit(model.init)(jax.random.key(0)),
  )
  before, after = (vocabulary.encode(text) for text in ('one two', 'three'))
  bos = np.array([vocabulary.bos], vocabulary.dtype)
  tokens = np.concatenate([before, bos, after])
  nats = score.token_nats(model, params, tokens, separator=vocabulary.bos)
  alone = score.token_nats(model, params, np.concatenate([bos, after]))
  np.testing.assert_allclose(nats[-5:], alone, rtol=1e-4)
  joined = score.token_nats(model, params, tokens)
  assert abs(joined[-5:] - alone).max() > 1e-3
