"""Attention in blocks, with its own backward pass, beside the formula."""

import types

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from craft_jax.model import causal
from craft_jax.model.attention import allowed
from craft_jax.model.precision import Policy, platform_of

HERE = platform_of(jax.devices()[0])
EXACT = Policy('float32', HERE)


def plain(q_BTNH, k_BTKH, v_BTKH, mask_BTT, slopes):
  """Softmax attention as it is written in a book, in float32."""
  T, N, H = q_BTNH.shape[1:]
  repeats = N // k_BTKH.shape[2]
  k_BTNH, v_BTNH = (jnp.repeat(x, repeats, axis=2) for x in (k_BTKH, v_BTKH))
  logits_BNTT = jnp.einsum(
    'BTNH,BSNH->BNTS', q_BTNH, k_BTNH, precision='highest'
  ) / np.sqrt(H)
  if slopes:
    distance_TT = jnp.arange(T)[:, None] - jnp.arange(T)[None]
    slope_N = jnp.asarray(slopes)[None, :, None, None]
    logits_BNTT -= slope_N * distance_TT.astype(jnp.float32)[None, None]
  logits_BNTT = jnp.where(mask_BTT[:, None], logits_BNTT, -1e30)
  weights_BNTT = jax.nn.softmax(logits_BNTT, axis=-1)
  return jnp.einsum(
    'BNTS,BSNH->BTNH', weights_BNTT, v_BTNH, precision='highest'
  )


def both(attend, q_BTNH, k_BTKH, v_BTKH, grad_BTNH):
  """What attention gives, and the gradients, as one program."""

  @jax.jit
  def forward_and_backward(*qkv):
    y_BTNH, back = jax.vjp(attend, *qkv)
    return y_BTNH, *back(grad_BTNH)

  return forward_and_backward(q_BTNH, k_BTKH, v_BTKH)


@pytest.mark.parametrize('T', [1, 64, 65, 150, 700])
@pytest.mark.parametrize(
  'keys, window, slopes',
  [(4, 0, ()), (2, 0, ()), (1, 70, ()), (4, 0, (0.5, 0.1, 0.01, 0.0))],
  ids=['all', 'grouped', 'window', 'alibi'],
)
def test_equals_the_plain_formula(T, keys, window, slopes):
  random = jax.random.split(jax.random.key(T), 4)
  heads = (4, keys, keys, 4)
  q, k, v, grad = (
    jax.random.normal(key, (2, T, n, 8))
    for key, n in zip(random, heads, strict=True)
  )
  position_1T = jnp.arange(T)[None]
  mask_BTT = allowed(position_1T, position_1T, window)

  want = both(lambda *qkv: plain(*qkv, mask_BTT, slopes), q, k, v, grad)
  for precision, atol in (('float32', 2e-5), ('bfloat16', 0.08)):
    policy = Policy(precision, HERE)
    got = both(
      lambda *qkv, p=policy: causal.attend(*qkv, mask_BTT, p, slopes),
      q, k, v, grad,
    )  # fmt: skip
    for ours, theirs in zip(got, want, strict=True):
      np.testing.assert_allclose(ours, theirs, atol=atol)


@pytest.mark.parametrize('T', [2, 64, 150])
@pytest.mark.parametrize(
  'keys, masked, slopes',
  [(4, False, ()), (2, True, ()), (1, False, (0.5, 0.1, 0.01, 0.0))],
  ids=['causal', 'grouped, window', 'alibi'],
)
def test_the_fused_form_is_the_same(T, keys, masked, slopes):
  """Of the call that cuDNN gets on a GPU, by XLA's implementation."""
  random = jax.random.split(jax.random.key(T), 4)
  heads = (4, keys, keys, 4)
  q, k, v, grad = (
    jax.random.normal(key, (2, T, n, 8))
    for key, n in zip(random, heads, strict=True)
  )
  position_1T = jnp.arange(T)[None]
  mask_BTT = allowed(position_1T, position_1T, 7) if masked else None

  want = both(
    lambda *qkv: causal.attend(*qkv, mask_BTT, EXACT, slopes), q, k, v, grad
  )
  with jax.default_matmul_precision('highest'):  # a GPU rounds to TF32 else
    got = both(
      lambda *qkv: causal.fused(*qkv, mask_BTT, slopes, 'xla'), q, k, v, grad
    )
  for ours, theirs in zip(got, want, strict=True):
    np.testing.assert_allclose(ours, theirs, atol=2e-5)


def test_fused_where_cudnn_has_it():
  def on(capability, precision='bfloat16'):
    gpu = types.SimpleNamespace(platform='gpu', compute_capability=capability)
    return Policy(precision, platform_of(gpu))

  assert causal.fuses(on('9.0'), 256, 64)
  assert not causal.fuses(on('9.0', 'float32'), 256, 64)
  assert not causal.fuses(on('9.0'), 255, 64)
  assert not causal.fuses(on('9.0'), 256, 36)
  assert not causal.fuses(on('9.0'), 256, 192)
  for other in ('7.5', 'gfx942'):
    assert not causal.fuses(on(other), 256, 64)


def test_no_mask_is_causal():
  q, k, v = jax.random.normal(jax.random.key(0), (3, 2, 130, 2, 4))
  position_1T = jnp.arange(130)[None]
  mask_BTT = allowed(position_1T, position_1T, 0)
  np.testing.assert_array_equal(
    causal.attend(q, k, v, None, EXACT),
    causal.attend(q, k, v, mask_BTT, EXACT),
  )


def test_blocks_cover_every_query_once():
  for length in (1, 63, 64, 65, 256, 513, 5000):
    found = causal.blocks(length, 'cpu')
    assert len(found) <= 8
    assert [i for a, b in found for i in range(a, b)] == list(range(length))


def test_rows_of_documents_do_not_mix():
  """A mask with a row of its own per sequence, across the blocks."""
  T = 130
  q, k, v = jax.random.normal(jax.random.key(0), (3, 2, T, 2, 4))
  segment_BT = jnp.stack([jnp.arange(T) // 50, jnp.arange(T) // 90])
  position_1T = jnp.arange(T)[None]
  mask_BTT = allowed(position_1T, position_1T, 0) & (
    segment_BT[:, :, None] == segment_BT[:, None]
  )
  got = causal.attend(q, k, v, mask_BTT, EXACT)
  np.testing.assert_allclose(got, plain(q, k, v, mask_BTT, ()), atol=2e-5)
