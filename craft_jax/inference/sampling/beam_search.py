"""Beam search: the likeliest texts instead of random ones.

Of all texts one token longer than those kept, the W likeliest are kept; what
ends is compared with the other ended ones. A search is cut into dispatches that
are short whatever its size, as others may wait for the device.
"""

import dataclasses
import functools
from collections.abc import Generator
from typing import NamedTuple

import flax.struct
import jax
import jax.numpy as jnp
import numpy as np
from jaxtyping import Array, Bool, Float, Int

from craft_jax.constrain.automaton import Automaton
from craft_jax.data.text.vocabulary import Vocabulary
from craft_jax.data.windows import bucket
from craft_jax.errors import UserError
from craft_jax.inference import score
from craft_jax.inference.engine.device import decoding_params
from craft_jax.inference.sampling import constraint_tables as tables_lib
from craft_jax.inference.sampling import prefill as prefix_lib
from craft_jax.inference.sampling.output import constraint_of, decoder_after
from craft_jax.inference.sampling.prefill import CHUNK, Prefix
from craft_jax.inference.sampling.settings import SampleSettings
from craft_jax.model.cache import Cache
from craft_jax.model.protocol import Model
from craft_jax.types import Params

# Tokens that one dispatch writes, those of all beams together; a step of more
# beams is not cut. As many as the slots of a server do in one of theirs on an
# accelerator. With a fourth of it 64 beams take 1.8 times the processor time of
# a search that is not cut: each dispatch copies their caches.
_TOKENS = 256


class Found(NamedTuple):
  """A text and how good it is.

  Attributes:
    ids: its tokens, without the prompt and without an end.
    logprob: logarithm of the probability of the tokens, the end included.
    score: `logprob` divided by the number of tokens, the end left out and at
      least 1, to the power of the length penalty.
    finish_reason: 'stop' if it ended, 'length' if there was no more room.
  """

  ids: list[int]
  logprob: float
  score: float
  finish_reason: str


@flax.struct.dataclass
class _Beams:
  """The kept texts, and the best that have ended.

  Attributes:
    cache: what the model has read of each.
    last_W: newest tokens.
    segment_W: their documents.
    state_W: of the constraint.
    logprob_W: of what was written; minus infinity for no text at all.
    text_WC: what was written.
    ended_score_W: of those that have ended, minus infinity for none.
    ended_logprob_W: theirs.
    ended_text_WC: theirs.
    ended_length_W: theirs, the end left out.
  """

  cache: Cache
  last_W: Int[Array, 'W']
  segment_W: Int[Array, 'W']
  state_W: Int[Array, 'W']
  logprob_W: Float[Array, 'W']
  text_WC: Int[Array, 'W C']
  ended_score_W: Float[Array, 'W']
  ended_logprob_W: Float[Array, 'W']
  ended_text_WC: Int[Array, 'W C']
  ended_length_W: Int[Array, 'W']


def beam_search(
  model: Model,
  params: Params,
  vocabulary: Vocabulary,
  prompt: np.ndarray,
  width: int,
  max_tokens: int,
  length_penalty: float = 1.0,
  settings: SampleSettings | None = None,
) -> list[Found]:
  """The best continuations of a prompt, best first.

  A text may be missed whose beginning is unlikely, unless `width` is as many as
  there are texts.

  Args:
    model: the model.
    params: its parameters.
    vocabulary: its tokens.
    prompt: its ids, at least one.
    width: W, texts kept, and at most returned.
    max_tokens: of a text, the end left out.
    length_penalty: 0 compares probabilities, which favours short texts, 1 the
      mean of the logarithms; above, longer is better.
    settings: of them `end`, `min_chars` (in tokens), `constraint`, `utf8`.

  Raises:
    UserError: prompt and text do not fit the context, or a number is wrong.
  """
  return score.finished(
    search_steps(
      model, params, vocabulary, prompt, width, max_tokens, length_penalty,
      settings,
    )
  )  # fmt: skip


def search_steps(
  model: Model,
  params: Params,
  vocabulary: Vocabulary,
  prompt: np.ndarray,
  width: int,
  max_tokens: int,
  length_penalty: float = 1.0,
  settings: SampleSettings | None = None,
) -> Generator[int, None, list[Found]]:
  """`beam_search` by dispatches; yields the tokens that each has written."""
  settings = settings or SampleSettings()
  context = model.context
  automaton, begin = check_search(
    vocabulary, prompt, width, max_tokens, length_penalty, context, settings
  )
  params = decoding_params(model, params)
  device = next(iter(jax.tree.leaves(params)[0].devices()))
  put = functools.partial(jax.device_put, device=device)
  prefix = put(prefix_lib.empty_prefix(model))
  for start in range(0, len(prompt) - 1, CHUNK):
    ids = prompt[start : min(start + CHUNK, len(prompt) - 1)]
    prefix = prefix_lib.read(
      model, vocabulary, params, prefix, ids, min(CHUNK, context)
    )
    jax.block_until_ready(prefix.segment_B)
    yield 0
  tables, (state,) = tables_lib.stack([automaton], vocabulary.size, device)
  beams = _begin(
    prefix,
    *put((np.int32(prompt[-1]), np.int32(state + begin))),
    width,
    bucket(max_tokens, context),
  )
  fixed = put(
    (
      np.int32(max_tokens),
      np.float32(length_penalty),
      np.array(settings.end),
      np.int32(settings.min_chars),
    )
  )
  steps, done, goes_on = max(_TOKENS // width, 1), 0, True
  while goes_on:
    until = min(done + steps, max_tokens)
    beams, more = _write(
      model, vocabulary, params, tables, beams,
      *put((np.int32(done), np.int32(until))), *fixed,
    )  # fmt: skip
    goes_on = bool(jax.device_get(more))
    yield width * (until - done)
    done = until
  return _found(jax.device_get(beams), max_tokens, length_penalty)


def check_search(
  vocabulary: Vocabulary,
  prompt: np.ndarray,
  width: int,
  max_tokens: int,
  length_penalty: float,
  context: int,
  settings: SampleSettings,
) -> tuple[Automaton | None, int]:
  """The automaton of a text and its first state; raises as `beam_search`."""
  for name, value in (('width', width), ('max_tokens', max_tokens)):
    if value < 1:
      raise UserError(f'{name}={value} must be at least 1')
  if not 0 <= length_penalty < 100:
    raise UserError(
      f'length_penalty={length_penalty} must be from 0 to 100 (0 is none)'
    )
  if not len(prompt):
    raise ValueError('the prompt needs at least one token')
  if len(prompt) + max_tokens > context + 1:
    raise UserError(
      f'a prompt of {len(prompt)} tokens and a text of {max_tokens} do not '
      f'fit the context of {context}; beam search does not go beyond it'
    )
  decoder = decoder_after(vocabulary, prompt, settings)
  automaton, begin, _ = constraint_of(vocabulary, settings, decoder, max_tokens)
  if automaton is not None and automaton.distance[begin] > max_tokens:
    raise UserError(
      f'max_tokens={max_tokens} is too short: the constraint needs at least '
      f'{automaton.distance[begin]}'
    )
  return automaton, begin


def _found(beams: _Beams, max_tokens: int, penalty: float) -> list[Found]:
  """Ended texts and those that ran out of room, by score."""
  found = [
    Found(text[:length].tolist(), float(logprob), float(score), 'stop')
    for text, length, logprob, score in zip(
      beams.ended_text_WC,
      beams.ended_length_W,
      beams.ended_logprob_W,
      beams.ended_score_W,
      strict=True,
    )
    if np.isfinite(score)
  ]
  found += [
    Found(
      text[:max_tokens].tolist(),
      float(logprob),
      float(logprob / max_tokens**penalty),
      'length',
    )
    for text, logprob in zip(beams.text_WC, beams.logprob_W, strict=True)
    if np.isfinite(logprob)
  ]
  return sorted(found, key=lambda f: -f.score)[: len(beams.logprob_W)]


@functools.partial(
  jax.jit, static_argnames=('model', 'vocabulary'), donate_argnames='beams'
)
def _write(
  model: Model,
  vocabulary: Vocabulary,
  params: Params,
  tables: tables_lib.Tables,
  beams: _Beams,
  begin: Int[Array, ''],
  until: Int[Array, ''],
  num_steps: Int[Array, ''],
  penalty: Float[Array, ''],
  end: Bool[Array, ''],
  least: Int[Array, ''],
) -> tuple[_Beams, Bool[Array, '']]:
  """The texts after `until` tokens, and whether longer ones may be better.

  Args:
    model: the model.
    vocabulary: its tokens.
    params: its parameters.
    tables: the constraint.
    beams: the texts after `begin` tokens; donated.
    begin: tokens so far.
    until: at most `num_steps`.
    num_steps: of the longest text.
    penalty: see `beam_search`.
    end: whether a text may end before.
    least: tokens of the shortest.
  """
  ends = jnp.asarray((vocabulary.bos, vocabulary.eos))

  def hopes(step, beams):
    # A text that goes on can only become less likely, and at best as long as
    # may be: then it is better than the worst ended one, or never.
    hope = jnp.max(beams.logprob_W) / num_steps.astype(jnp.float32) ** penalty
    return (step < num_steps) & (hope > jnp.min(beams.ended_score_W))

  def more(carry):
    return (carry[0] < until) & hopes(*carry)

  def body(carry):
    step, beams = carry
    W = len(beams.last_W)
    segment_W = beams.segment_W + (beams.last_W == vocabulary.bos)
    cache, logits_WTV = model.extend(
      params,
      beams.cache,
      beams.last_W[:, None],
      jnp.ones(W, jnp.int32),
      segment_W[:, None],
    )
    log_WV = jax.nn.log_softmax(logits_WTV[:, 0], axis=-1)
    log_WV, next_WV = tables_lib.restrict(
      tables,
      vocabulary,
      log_WV,
      beams.state_W,
      jnp.broadcast_to(num_steps - step, W),
      jnp.broadcast_to(end & (step >= least), W),
    )
    total_WV = beams.logprob_W[:, None] + log_WV
    end_W = jnp.max(total_WV[:, ends], axis=1)
    beams = _ended(beams, end_W, step, penalty)
    total_WV = total_WV.at[:, ends].set(-jnp.inf)
    beams = dataclasses.replace(beams, cache=cache, segment_W=segment_W)
    return step + 1, _longer(beams, total_WV, next_WV, step)

  carry = jax.lax.while_loop(more, body, (begin, beams))
  return carry[1], hopes(*carry)


def _longer(
  beams: _Beams,
  total_WV: Float[Array, 'W V'],
  next_WV: Int[Array, 'W V'],
  step: Int[Array, ''],
) -> _Beams:
  """The likeliest of all texts one token longer."""
  W, V = total_WV.shape
  logprob_W, index_W = jax.lax.top_k(total_WV.reshape(-1), W)
  parent_W, token_W = index_W // V, (index_W % V).astype(jnp.int32)
  text_WC = beams.text_WC[parent_W]
  return dataclasses.replace(
    beams,
    cache=jax.tree.map(lambda leaf: leaf[parent_W], beams.cache),
    last_W=token_W,
    segment_W=beams.segment_W[parent_W],
    state_W=next_WV[parent_W, token_W],
    logprob_W=logprob_W,
    text_WC=jax.lax.dynamic_update_slice(text_WC, token_W[:, None], (0, step)),
  )


@functools.partial(jax.jit, static_argnames=('width', 'capacity'))
def _begin(
  prefix: Prefix,
  last: Int[Array, ''],
  state: Int[Array, ''],
  width: int,
  capacity: int,
) -> _Beams:
  """The empty text, and as many of nothing as there are beams besides."""
  W = width
  nothing_W = jnp.full(W, -jnp.inf)
  return _Beams(
    cache=jax.tree.map(lambda leaf: jnp.repeat(leaf, W, axis=0), prefix.cache),
    last_W=jnp.broadcast_to(last, W),
    segment_W=jnp.broadcast_to(prefix.segment_B, W),
    state_W=jnp.broadcast_to(state, W),
    logprob_W=nothing_W.at[0].set(0.0),
    text_WC=jnp.zeros((W, capacity), jnp.int32),
    ended_score_W=nothing_W,
    ended_logprob_W=nothing_W,
    ended_text_WC=jnp.zeros((W, capacity), jnp.int32),
    ended_length_W=jnp.zeros(W, jnp.int32),
  )


def _ended(beams, end_W, step, penalty):
  """The best of what had ended and what ends now, after `step` tokens."""
  W = len(end_W)
  score_W = end_W / jnp.maximum(step, 1).astype(jnp.float32) ** penalty
  score_W, index_W = jax.lax.top_k(
    jnp.concatenate([beams.ended_score_W, score_W]), W
  )
  length_W = jnp.full(W, step)
  return dataclasses.replace(
    beams,
    ended_score_W=score_W,
    ended_logprob_W=jnp.concatenate([beams.ended_logprob_W, end_W])[index_W],
    ended_text_WC=jnp.concatenate([beams.ended_text_WC, beams.text_WC])[
      index_W
    ],
    ended_length_W=jnp.concatenate([beams.ended_length_W, length_W])[index_W],
  )
