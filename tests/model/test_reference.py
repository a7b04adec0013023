"""The whole decoder against a plain NumPy one, token by token in float64."""

import math

import jax
import numpy as np
import pytest


def _norm(x, params):
  if 'bias' in params:
    x = x - x.mean(-1, keepdims=True)
  x = x / np.sqrt((x**2).mean(-1, keepdims=True) + 1e-6)
  return x * params['scale'] + params.get('bias', 0.0)


def _unit(x):
  return x / np.sqrt((x**2).mean(-1, keepdims=True) + 1e-6)


def _rotate(x_H, position, cfg):
  half = int(x_H.size * cfg.rope_fraction) // 2
  y_H = x_H.copy()
  for i in range(half):
    turn = np.exp(1j * position * cfg.rope_base ** (-i / half))
    z = (x_H[i] + 1j * x_H[i + half]) * turn
    y_H[i], y_H[i + half] = z.real, z.imag
  return y_H


def _attention(x_TD, x_T, segment_T, params, cfg, window):
  T, D = x_TD.shape
  N, K, H = cfg.num_heads, cfg.num_kv_heads or cfg.num_heads, D // cfg.num_heads
  q = (x_TD @ params['query']['kernel']).reshape(T, N, H)
  k = (x_TD @ params['key']['kernel']).reshape(T, K, H)
  v = x_TD @ params['value']['kernel']
  if cfg.value_embeddings:
    v = v + params['value_embedding']['embedding'][x_T]
  v = v.reshape(T, K, H)
  if cfg.qk_norm:
    q, k = _unit(q), _unit(k)
  if cfg.position == 'rope':
    q, k = (
      np.stack(
        [[_rotate(h, t, cfg) for h in row] for t, row in enumerate(heads)]
      )
      for heads in (q, k)
    )
  y = np.zeros((T, N, H))
  for t in range(T):
    for n in range(N):
      kv = n // (N // K)  # neighbouring query heads share a key/value head
      seen = [
        s
        for s in range(t + 1)
        if (not window or t - s < window)
        and (not cfg.documents or segment_T[s] == segment_T[t])
      ]
      logits = np.array([q[t, n] @ k[s, kv] / math.sqrt(H) for s in seen])
      if cfg.position == 'alibi':
        logits -= 2.0 ** (-8 * (n + 1) / N) * (t - np.array(seen))
      weights = np.exp(logits - logits.max())
      weights /= weights.sum()
      y[t, n] = weights @ v[seen, kv]
  return y.reshape(T, D) @ params['output']['kernel']


def _mlp(x_TD, params, cfg):
  hidden = x_TD @ params['in']['kernel']
  if cfg.mlp == 'gelu':
    inner = math.sqrt(2 / math.pi) * (hidden + 0.044715 * hidden**3)
    hidden = 0.5 * hidden * (1 + np.tanh(inner))
  elif cfg.mlp == 'relu2':
    hidden = np.maximum(hidden, 0) ** 2
  else:
    gate = x_TD @ params['gate']['kernel']
    hidden = gate / (1 + np.exp(-gate)) * hidden
  return hidden @ params['out']['kernel']


def _ngrams(params, x_T, segment_T, cfg, length):
  """Embeddings of n-grams, each with a row of its own."""
  V = len(params['embed']['embedding'])
  rows = []
  for t in range(len(x_T)):
    row = x_T[t]
    for back in range(1, length):
      same = t >= back and (
        not cfg.documents or segment_T[t - back] == segment_T[t]
      )
      before = x_T[t - back] + 1 if same else 0
      row += before * V * (V + 1) ** (back - 1)
    rows.append(row)
  return params['ngrams']['embedding'][length - 2][np.array(rows)]


def _decoder(params, x_T, segment_T, cfg):
  params = jax.tree.map(lambda leaf: np.asarray(leaf, np.float64), params)
  T, D = x_T.size, cfg.width
  table = params['embed']['embedding']
  stream = table[x_T] * (math.sqrt(D) if cfg.tied else 1.0)
  for length in range(2, cfg.ngrams + 1):
    stream = stream + _ngrams(params, x_T, segment_T, cfg, length)
  if cfg.position == 'learned':
    stream = stream + params['positions']['embedding'][:T]
  if cfg.position == 'sinusoidal':
    for t in range(T):
      for i in range(D // 2):
        angle = t * 10000 ** (-i / (D // 2))
        stream[t, i] += math.sin(angle)
        stream[t, i + D // 2] += math.cos(angle)
  for layer in range(cfg.depth):
    p = jax.tree.map(lambda leaf, layer=layer: leaf[layer], params['blocks'])
    period = cfg.local_per_global + 1
    is_global = cfg.local_per_global and layer % period == period - 1
    x = _norm(stream, p['attention_norm'])
    window = 0 if is_global else cfg.window
    stream = stream + _attention(x, x_T, segment_T, p['attention'], cfg, window)
    stream = stream + _mlp(_norm(stream, p['mlp_norm']), p['mlp'], cfg)
  stream = _norm(stream, params['final_norm'])
  logits = stream @ (table.T if cfg.tied else params['head']['kernel'])
  cap = cfg.logit_cap
  return cap * np.tanh(logits / cap) if cap else logits


CASES = {
  'rope-mha': {},
  'rope-partial-gqa-gelu-layer-tied': {
    'rope_fraction': 0.5,
    'rope_base': 100.0,
    'num_kv_heads': 2,
    'mlp': 'gelu',
    'norm': 'layer',
    'tied': True,
    'qk_norm': False,
  },
  'alibi-gqa-window-swiglu': {
    'position': 'alibi',
    'num_kv_heads': 2,
    'window': 4,
    'mlp': 'swiglu',
    'logit_cap': 0.0,
  },
  'learned-mqa-local-global-values': {
    'position': 'learned',
    'num_kv_heads': 1,
    'window': 3,
    'local_per_global': 2,
    'depth': 3,
    'value_embeddings': True,
    'ngrams': 2,
    'ngram_rows': 132,
    'mlp_width': 24,
  },
  'sinusoidal-gqa-documents-values': {
    'position': 'sinusoidal',
    'num_kv_heads': 2,
    'documents': True,
    'value_embeddings': True,
    'ngrams': 3,
    'ngram_rows': 11 * 12**2,
    'logit_cap': 2.0,
  },
  'none-odd-sizes': {
    'position': 'none',
    'width': 15,
    'num_heads': 3,
    'num_kv_heads': 1,
    'tied': True,
  },
}


@pytest.mark.parametrize('name', CASES)
def test_equals_numpy(name, toy, tokens):
  model, params = toy(**CASES[name])
  x_BT = tokens(2, 9)
  segment_BT = np.array([[0] * 4 + [1] * 5, [0] * 7 + [1] + [2]])
  got = jax.jit(model.apply)(params, x_BT, segment_BT)
  for row in range(2):
    want = _decoder(params, np.asarray(x_BT[row]), segment_BT[row], model.cfg)
    np.testing.assert_allclose(got[row], want, rtol=2e-4, atol=2e-4)
