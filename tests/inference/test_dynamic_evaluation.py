"""A model that adapts scores first and learns then."""

import jax
import numpy as np
import pytest

from craft_jax.config.settings import Model
from craft_jax.data.text.vocabulary import Vocabulary
from craft_jax.errors import UserError
from craft_jax.inference import dynamic_evaluation, score
from craft_jax.inference.dynamic_evaluation import Adaptation
from craft_jax.model.build import build
from craft_jax.model.losses import token_losses
from craft_jax.model.precision import platform_of
from craft_jax.types import Batch

HERE = platform_of(jax.devices()[0])

TEXT = 'the quick brown fox jumps over the lazy dog, ' * 8
VOCABULARY = Vocabulary.from_text(TEXT)
TOKENS = VOCABULARY.encode(TEXT)
CONTEXT, STRIDE = 16, 8
MODEL = build(
  Model(context=CONTEXT, width=16, depth=1, num_heads=1, precision='float32'),
  VOCABULARY.size,
  HERE,
)


@pytest.fixture(scope='module')
def params():
  return jax.tree.map(
    lambda p: p + 0.1 * jax.random.normal(jax.random.key(1), p.shape),
    jax.jit(MODEL.init)(jax.random.key(0)),
  )


def nats_of(params, tokens=TOKENS, rate=0.01, decay=0.001, stride=STRIDE):
  adaptation = Adaptation(rate, decay)
  return dynamic_evaluation.token_nats(
    MODEL, params, VOCABULARY, tokens, adaptation, stride=stride
  )


@pytest.mark.parametrize('stride', [STRIDE, CONTEXT, 5])
def test_without_a_rate_it_is_static(params, stride):
  static = score.token_nats(MODEL, params, TOKENS, stride=stride)
  frozen = nats_of(params, rate=0, stride=stride)
  # 360 tokens: more windows than one call takes, and a last one cut short.
  np.testing.assert_allclose(frozen, static, rtol=1e-4, atol=1e-5)


def test_it_learns_what_repeats_and_only_after(params):
  static = score.token_nats(MODEL, params, TOKENS, stride=STRIDE)
  adapted = nats_of(params)
  np.testing.assert_allclose(adapted[:CONTEXT], static[:CONTEXT], rtol=1e-4)
  assert adapted[-90:].mean() < static[-90:].mean() - 0.5


def test_the_trained_weights_stay(params):
  before = jax.device_get(params)
  first = nats_of(params)
  jax.tree.map(np.testing.assert_array_equal, before, jax.device_get(params))
  assert np.array_equal(nats_of(params), first)


@pytest.mark.parametrize('at', [5, 20, 24, 25, 200, 290, 359])
def test_no_later_token_matters(params, at):
  """Bit for bit; `at` lies in windows, at their borders and between calls."""
  other = TOKENS.copy()
  other[at:] = (other[at:] + 1) % VOCABULARY.num_text_tokens
  found = []
  for tokens in (TOKENS, other):
    static = score.token_nats(MODEL, params, tokens, stride=STRIDE)
    found.append(
      dynamic_evaluation.adaptive_nats(
        MODEL, params, VOCABULARY, tokens, static, stride=STRIDE,
        adaptation=Adaptation(0.01), cache=True,
      )
    )  # fmt: skip
  assert list(found[0]) == ['dynamic', 'dynamic_cache', 'dynamic_both']
  for name in found[0]:
    a, b = found[0][name], found[1][name]
    assert np.array_equal(a[: at - 1], b[: at - 1]), name
    assert a[at - 1] != b[at - 1], name


def test_a_step_is_the_rule(params):
  rate, decay = np.float32(0.01), np.float32(0.25)
  x_BT = TOKENS[None, :CONTEXT].astype(np.int32)
  y_BT = TOKENS[None, 1 : CONTEXT + 1].astype(np.int32)
  weight_BT = np.ones((1, CONTEXT), np.float32)
  weight_BT[:, :6] = 0
  batch = jax.device_put(Batch(x_BT, y_BT, weight_BT, np.zeros_like(x_BT)))

  @jax.jit
  @jax.grad
  def gradient(params):
    logits_BTV = MODEL.apply(params, batch.x_BT)
    return token_losses(logits_BTV, batch.y_BT)[1][:, 6:].mean()

  moved = jax.tree.map(lambda p: p + 0.1, params)
  a = gradient(moved)
  jitted = jax.jit(dynamic_evaluation.step, static_argnums=0)
  state = dynamic_evaluation.init(moved)
  state, _ = jitted(MODEL, params, state, batch, rate, decay)
  b = gradient(state.params)
  one = state.params
  state, _ = jitted(MODEL, params, state, batch, rate, decay)

  def compare(got, weight, trained, a, b):
    scaled = b / (np.sqrt((a * a + b * b) / 2) + 1e-8)
    expected = weight - rate * scaled + decay * (trained - weight)
    np.testing.assert_allclose(got, expected, atol=1e-4)

  jax.tree.map(compare, state.params, one, params, a, b)
  assert int(state.steps) == 2


def test_mistakes(params):
  with pytest.raises(UserError, match=r'rate -1\.0 must be finite'):
    Adaptation(-1.0)
  with pytest.raises(UserError, match='rate nan must be finite'):
    Adaptation(float('nan'))
  with pytest.raises(UserError, match=r'decay 1\.5 must be from 0 to 1'):
    Adaptation(decay=1.5)
  with pytest.raises(UserError, match='diverged at the dynamic rate'):
    nats_of(params, rate=1e30)
