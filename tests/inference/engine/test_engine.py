"""A request's text, whatever else is under way."""

import dataclasses
import re

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from craft_jax.config.settings import Model
from craft_jax.constrain import compile_regex
from craft_jax.data.text.vocabulary import Vocabulary
from craft_jax.errors import UserError
from craft_jax.inference.engine import device as device_lib
from craft_jax.inference.engine import resident_constraints as tables_lib
from craft_jax.inference.engine.engine import Engine
from craft_jax.inference.engine.requests import Request
from craft_jax.inference.engine.scheduler import Full
from craft_jax.inference.sampling import prefill as prefix_lib
from craft_jax.inference.sampling import slots as slots_lib
from craft_jax.inference.sampling.constraint_tables import state_bytes
from craft_jax.inference.sampling.decode import decode
from craft_jax.inference.sampling.generate import decoding_params, generate
from craft_jax.inference.sampling.settings import SampleSettings
from craft_jax.inference.sampling.speculation import FORCED, Drafts
from craft_jax.model.build import build
from craft_jax.model.precision import platform_of

HERE = platform_of(jax.devices()[0])

CONTEXT = 32
CHARS = Vocabulary('char', 'e taoin\nshr')
BYTES = Vocabulary.byte()
WARM = SampleSettings(temperature=1, end=False)
CFG = Model(
  context=CONTEXT,
  width=16,
  depth=2,
  num_heads=2,
  precision='float32',
  zero_init=False,
)
# The plain model, and two that differ from it in everything that is kept.
CHANGES = [
  {},
  *(
    pytest.param(changes, marks=pytest.mark.slow)
    for changes in (
      {'position': 'alibi', 'window': 5, 'documents': True},
      {'position': 'learned', 'num_kv_heads': 1, 'ngrams': 2},
    )
  ),
]


def make(vocabulary=CHARS, **changes):
  model = build(
    dataclasses.replace(CFG, **changes),
    vocabulary.size,
    HERE,
  )
  params = jax.jit(model.init)(jax.random.key(0))
  # Blocks that outweigh the embedding, so that what came before matters.
  params['blocks'] = jax.tree.map(lambda leaf: leaf * 3, params['blocks'])
  return model, params


@pytest.fixture(scope='module')
def toy():
  return make()


def engine_of(toy, vocabulary=CHARS, **changes):
  """Without drafts, so that no bit depends on who else has any."""
  defaults = {
    'slots': 4, 'steps': 8, 'chunk': 16, 'reading': 40, 'drafts': None,
    'constraint_memory': 1 << 20,
  }  # fmt: skip
  return Engine(*toy, vocabulary, **(defaults | changes))


def request(text, chars=20, settings=WARM, vocabulary=CHARS, **more):
  return Request(vocabulary.encode(text), chars, settings, **more)


def mixed(count, seed=0):
  """Requests of every kind, from the constraints down to a greedy one."""
  rng = np.random.default_rng(seed)
  automata = [compile_regex(p, CHARS) for p in ('[nst]{3,9}', '(no|to)+')]
  kinds = [
    WARM,
    SampleSettings(temperature=0, end=False),
    SampleSettings(0.9, top_k=3, top_p=0.9),
    SampleSettings(1.2, end=False, constraint=automata[0]),
    SampleSettings(1.2, constraint=automata[1], min_chars=2),
    SampleSettings(1.0, min_p=0.1, typical_p=0.9, repetition_penalty=1.2,
                   logit_bias={3: 2}),
    SampleSettings(1.0, end=False, stop=('ee', 'tion', ' a')),
  ]  # fmt: skip
  found = []
  for i in range(count):
    slide = bool(rng.random() < 0.5)
    length = int(rng.integers(1, 60 if slide else CONTEXT - 8))
    found.append(
      Request(
        rng.integers(0, CHARS.num_text_tokens, length).astype(CHARS.dtype),
        int(rng.integers(9, 50)),
        kinds[i % len(kinds)],
        seed=i,
        samples=1 + (i % 5 == 0),
        slide=slide or kinds[i % len(kinds)].constraint is not None,
      )
    )
  return found


def test_alone_is_as_in_company(toy):
  """Bit for bit: in a full batch, in any slot, at any K, cached or not."""
  requests = mixed(14)
  together = engine_of(toy).run(requests)
  lone = engine_of(toy)
  for i, one in enumerate(requests):
    assert lone.run([one]) == [together[i]]
  assert lone.prefixes.hits == 0
  # Other neighbours, other slots.
  assert engine_of(toy).run(requests[::-1]) == together[::-1]
  for steps in (1, 32):
    assert engine_of(toy, steps=steps).run(requests) == together


@pytest.mark.parametrize('changes', CHANGES)
def test_texts_are_those_of_generate(changes):
  model, params = make(**changes)
  requests = [r for r in mixed(10) if r.slide][:5]
  for one, pieces in zip(
    requests, engine_of((model, params)).run(requests), strict=True
  ):
    want = [['', ''] for _ in pieces]
    for turn in generate(
      model, params, CHARS, [one.prompt] * one.samples, one.settings, one.seed,
      one.max_chars,
    ):  # fmt: skip
      for piece in turn:
        want[piece.row][0] += piece.text
        want[piece.row][1] = piece.finish_reason
    assert [[p.text, p.finish_reason] for p in pieces] == want


@pytest.mark.parametrize('steps', [1, 3, 32])
def test_stop_strings_within_each_other_end_as_in_generate(toy, steps):
  model, params = toy
  prompts = [CHARS.encode(c) for c in 'tash']
  for stop in (('e', 'tese'), ('a', ' na', 'ona '), ('s', 'hs', 'is')):
    settings = dataclasses.replace(WARM, stop=stop)
    got = engine_of(toy, steps=steps).run(
      [Request(prompt, 30, settings, slide=True) for prompt in prompts]
    )
    for prompt, (piece,) in zip(prompts, got, strict=True):
      pieces = generate(model, params, CHARS, [prompt], settings, 0, 30)
      want = [part for (part,) in pieces]
      assert piece.text == ''.join(part.text for part in want)
      assert piece.finish_reason == want[-1].finish_reason


def test_the_prefix_cache_changes_no_bit(toy):
  requests = mixed(8)
  shared = CHARS.encode('the nation is one so the')
  requests += [
    Request(np.concatenate([shared, CHARS.encode(end)]), 20, WARM)
    for end in ('', 'a', 'e rain')
  ]
  cold = engine_of(toy, prefix_bytes=0)
  first = cold.run(requests)
  assert cold.run(requests) == first and not len(cold.prefixes)
  cached = engine_of(toy)
  assert cached.run(requests) == first
  before = cached.prefixes.hits
  assert cached.run(requests) == first
  read = [min(len(r.prompt), CONTEXT) - 1 for r in requests]
  assert cached.prefixes.hits - before == sum(read)  # nothing was read twice
  # A beginning in common is found at the chunk of 16.
  fresh = engine_of(toy)
  fresh.run(requests[8:9])
  assert fresh.prefixes.hits == 0
  fresh.run(requests[10:11])
  assert fresh.prefixes.hits == 16


def test_the_prefix_cache_is_bounded(toy):
  small = engine_of(toy)
  bound = 3 * small._device.prefix_bytes
  small = engine_of(toy, prefix_bytes=bound)
  small.run(mixed(10))
  assert len(small.prefixes) == 3


def test_chunks_change_logits_by_rounding_only(toy):
  """The log-probabilities agree to 1e-4; where ids differ, nearly tied."""
  requests = [
    dataclasses.replace(one, settings=WARM) for one in mixed(12, seed=3)
  ]
  whole = engine_of(toy, chunk=32).run(requests)
  parts = engine_of(toy, chunk=4).run(requests)
  compared, differ = agree(toy, requests, whole, parts)
  assert compared > 200 and differ <= 1


def agree(toy, requests, whole, parts):
  """Tokens compared, and texts that differ from a near-tie on."""
  differ = compared = 0
  for one, a, b in zip(requests, whole, parts, strict=True):
    for p, q in zip(a, b, strict=True):
      same = next(
        (i for i, (x, y) in enumerate(zip(p.ids, q.ids, strict=False))
         if x != y),
        len(p.ids),
      )  # fmt: skip
      np.testing.assert_allclose(
        p.logprobs[:same], q.logprobs[:same], atol=1e-4
      )
      compared += same
      if same < len(p.ids):
        differ += 1
        assert tied(toy, one, p.row, p.ids[:same], p.ids[same], q.ids[same])
      else:
        assert (p.text, p.finish_reason) == (q.text, q.finish_reason)
  return compared, differ


@pytest.mark.parametrize('drafts', [
  FORCED,
  Drafts(cost=0.1),
  Drafts(match=2, cost=0.1),
  Drafts(layers=1, length=3),
])  # fmt: skip
def test_drafts_change_logits_by_rounding_only(toy, drafts):
  """Jump-forward and speculation, beside requests of every kind."""
  runs = compile_regex('(the nation is|no one|so on){1,3}', CHARS)
  bound = dataclasses.replace(WARM, constraint=runs)
  requests = mixed(14, seed=5)
  requests += [request('on ', 30, bound, seed=i, slide=True) for i in range(4)]
  plain = engine_of(toy).run(requests)
  engine = engine_of(toy, drafts=drafts)
  compared, differ = agree(toy, requests, plain, engine.run(requests))
  assert compared > 200 and differ <= 1
  assert engine.scheduler.num_free == 4 and not engine._jobs


def test_drafts_that_fill_a_context_early(toy):
  """The dispatch after it, which was issued by then, writes nothing there."""
  runs = compile_regex('(the nation is |no one is ){3}', CHARS)
  settings = dataclasses.replace(WARM, constraint=runs, stop=('eee',))
  requests = [
    request('the nation is'[:n], 60, settings, slide=True) for n in range(1, 14)
  ]
  plain = engine_of(toy).run(requests)
  compared, differ = agree(
    toy, requests, plain, engine_of(toy, drafts=FORCED, steps=2).run(requests)
  )
  assert compared > 400 and differ <= 1


def test_jump_forward_takes_fewer_dispatches(toy):
  runs = compile_regex('(the nation is |no one is ){3}', CHARS)
  one = request('a', 60, dataclasses.replace(WARM, constraint=runs), slide=True)
  turns = {}
  for drafts in (None, FORCED):
    engine = engine_of(toy, steps=2, drafts=drafts)
    engine.submit(one)
    turns[drafts] = 0
    while engine.busy:
      engine.step()
      turns[drafts] += 1
  assert turns[FORCED] <= 0.4 * turns[None]


@pytest.mark.parametrize('changes', CHANGES)
def test_logits_after_a_prompt_in_any_chunks(changes):
  """Whole, in pieces, one by one, from a prefix in the cache: within 1e-4."""
  model, params = make(**changes)
  params = decoding_params(model, params)
  extend = jax.jit(model.extend)
  ids = CHARS.encode('the nation is on its rise so').astype(np.int32)

  def logits(chunk, prefix=None, done=0):
    prefix = prefix or prefix_lib.empty_prefix(model)
    for start in range(done, len(ids) - 1, chunk):
      part = ids[start : min(start + chunk, len(ids) - 1)]
      padded = np.zeros((1, chunk), np.int32)
      padded[0, : len(part)] = part
      prefix = prefix_lib.read_chunk(
        model, CHARS, params, prefix, jnp.asarray(padded),
        jnp.array([len(part)]),
      )  # fmt: skip
    last_BT = jnp.asarray(ids[None, -1:])
    return extend(
      params, prefix.cache, last_BT, jnp.ones(1, jnp.int32),
      prefix.segment_B[:, None],
    )[1], prefix  # fmt: skip

  want, _ = logits(32)
  cache = device_lib.PrefixCache(1 << 10)
  for chunk in (1, 4, 16):
    got, prefix = logits(chunk)
    np.testing.assert_allclose(got, want, atol=1e-4)
    cache.keep(ids[:-1], prefix)
    done, found = cache.find(ids[:-1], 16)
    np.testing.assert_array_equal(logits(chunk, found, done)[0], got)


def tied(toy, one, row, before, a, b):
  """Whether two tokens were equally good, noise and all."""
  model, params = toy
  text = [*one.prompt.tolist(), *before]
  window = text[-CONTEXT:]
  logits_V = jax.jit(model.apply)(params, jnp.array([window]))[0, -1]
  key = jax.random.fold_in(jax.random.key(one.seed), row)
  key = jax.random.fold_in(key, len(text))
  noisy_V = logits_V + jax.random.gumbel(key, logits_V.shape)
  return abs(noisy_V[a] - noisy_V[b]) < 1e-3


def test_samples_share_one_reading(toy, monkeypatch):
  calls = []
  real = device_lib.Device.read
  monkeypatch.setattr(
    device_lib.Device,
    'read',
    lambda self, *args: calls.append(args) or real(self, *args),
  )
  (pieces,) = engine_of(toy, slots=2).run([request('the', samples=5)])
  assert len(calls) == 1
  assert len({piece.text for piece in pieces}) == 5
  for i, piece in enumerate(pieces):
    ((one,),) = engine_of(toy, slots=2).run([request('the', first_sample=i)])
    assert (one.ids, one.text) == (piece.ids, piece.text)


def test_the_context_ends_a_text_or_slides(toy):
  prompt = 'the nation is on the rise'
  ((stays,),) = engine_of(toy).run([request(prompt, 70)])
  room = CONTEXT + 1 - len(prompt)
  assert len(stays.text) == room and stays.finish_reason == 'length'
  ((slides,),) = engine_of(toy).run([request(prompt, 70, slide=True)])
  assert len(slides.text) == 70 and slides.text.startswith(stays.text)
  automaton = compile_regex('[a-z ]*', CHARS)
  settings = dataclasses.replace(WARM, constraint=automaton)
  ((bound,),) = engine_of(toy).run([request(prompt, 70, settings)])
  assert re.fullmatch('[a-z ]*', bound.text) and len(bound.text) == room


@pytest.mark.slow
def test_only_whole_characters_of_bytes():
  toy = make(BYTES)
  utf8 = dataclasses.replace(WARM, utf8=True)
  automaton = compile_regex('[é漢😀]{12,40}', BYTES)
  bound = dataclasses.replace(WARM, constraint=automaton)
  prompts = [b'a', 'é漢'.encode()[:-1], b'on the']
  requests = [
    Request(BYTES.encode(p), 40, s, slide=True)
    for p in prompts
    for s in (utf8, bound)
    # A constraint says nothing of the end of the prompt.
    if s is utf8 or p != prompts[1]
  ]
  whole = engine_of(toy, BYTES).run(requests)
  for one, (piece,) in zip(requests, whole, strict=True):
    assert '\ufffd' not in piece.text
    if one.settings is bound:
      assert re.fullmatch('[é漢😀]{12,40}', piece.text)
    else:
      assert len(piece.text) == 40
  assert engine_of(toy, BYTES, steps=3).run(requests) == whole


def test_cancelling_leaves_the_others_alone(toy):
  keep = [request('no', 30, seed=1), request('to', 30, seed=2)]
  want = [piece for (piece,) in engine_of(toy, slots=2, steps=3).run(keep)]
  engine = engine_of(toy, slots=2, steps=3)
  gone = engine.submit(request('the', 30, samples=4))
  handles = [engine.submit(one) for one in keep]
  got = dict.fromkeys(handles, '')
  for turn in range(100):
    if turn == 3:
      assert engine.cancel(gone) and not engine.cancel(gone)
    for handle, piece in engine.step():
      assert turn < 3 or handle != gone
      if handle != gone:
        got[handle] += piece.text
    if not engine.busy:
      break
  assert [got[h] for h in handles] == [piece.text for piece in want]
  assert engine.scheduler.num_free == 2 and not engine._jobs


def caches():
  programs = (
    prefix_lib.empty_prefix, prefix_lib.read_chunk, slots_lib.place, decode,
    tables_lib.write_rows,
  )  # fmt: skip
  return [program._cache_size() for program in programs]


@pytest.mark.slow
def test_a_thousand_requests_compile_nothing(toy):
  engine = engine_of(toy, slots=8, drafts=FORCED)
  engine.warm()
  before, compiled = caches(), []

  def listener(event, duration, **_):
    if 'backend_compile' in event:
      compiled.append(event)

  jax.monitoring.register_event_duration_secs_listener(listener)
  try:
    jax.jit(lambda x: x + 1)(jnp.arange(7))
    assert compiled, 'the listener hears of compilations'
    del compiled[:]
    answers = engine.run(mixed(1000, seed=1))
  finally:
    jax.monitoring.unregister_event_duration_listener(listener)
  assert len(answers) == 1000 and not compiled and caches() == before
  assert engine.scheduler.num_free == 8


def test_constraints_come_and_go(toy):
  engine = engine_of(toy, constraint_memory=32 * state_bytes(CHARS.size))
  store = engine._device.store
  assert store.tables.accepting_R.shape == (32,)
  engine.warm()
  before = caches()
  for i in range(12):
    settings = dataclasses.replace(
      WARM, constraint=compile_regex(f'[nst]{{{i + 1}}}', CHARS)
    )
    ((piece,),) = engine.run([request('the', 20, settings)])
    assert re.fullmatch(f'[nst]{{{i + 1}}}', piece.text)
  assert caches() == before and store.num_held < 12
  wide = dataclasses.replace(
    WARM, constraint=compile_regex('[nst]{12}[aeo]{8}', CHARS)
  )
  other = dataclasses.replace(WARM, constraint=compile_regex('a{15}', CHARS))
  # One that has no room now waits for it, until the other is done or gone.
  for cancels in (False, True):
    handles = [engine.submit(request('the', 21, s)) for s in (wide, other)]
    got = dict.fromkeys(handles, '')
    for turn in range(30):
      if turn == 2:
        assert engine.scheduler.num_waiting == 1
      if turn == 2 and cancels:
        assert engine.cancel(handles[0])
      for handle, piece in engine.step():
        got[handle] += piece.text
    assert not engine.busy and not store.num_users
    assert cancels or re.fullmatch('[nst]{12}[aeo]{8}', got[handles[0]])
    assert got[handles[1]] == 'a' * 15
  huge = dataclasses.replace(WARM, constraint=compile_regex('a{32}', CHARS))
  with pytest.raises(UserError, match='33 states, more than the 31'):
    engine.submit(request('t', 40, huge, slide=True))


def test_a_full_queue_leaves_nothing_behind(toy):
  engine = engine_of(toy, waiting=1)
  settings = dataclasses.replace(WARM, constraint=compile_regex('n*', CHARS))
  engine.submit(request('a', 5, settings))
  with pytest.raises(Full, match='1 requests are waiting'):
    engine.submit(request('a', 5, settings))
  while engine.busy:
    engine.step()
  assert not engine._jobs and not engine._device.store.num_users


def test_mistakes(toy):
  engine = engine_of(toy)
  for wrong, message in [
    (request('t', 0), 'max_chars=0 must be at least 1'),
    (request('t', seed=-1), 'seed=-1 must be from 0'),
    (request('t', samples=0), 'samples=0 must be'),
    (request('t' * 33), 'the prompt has 33 tokens, the context 32'),
    (
      request('t', 19, dataclasses.replace(
        WARM, constraint=compile_regex('n{20}', CHARS))),
      '19 tokens are too few .* at least 20',
    ),
  ]:  # fmt: skip
    with pytest.raises(UserError, match=message):
      engine.submit(wrong)
  with pytest.raises(ValueError, match='at least one token'):
    engine.submit(Request(np.zeros(0, np.uint8), 3))
  engine.submit(request('t'))
  with pytest.raises(ValueError, match='are under way'):
    engine.run([])


def test_a_dispatch_is_issued_before_the_last_is_read(toy, monkeypatch):
  calls = []
  for name in ('decode', 'fetch'):
    real = getattr(device_lib.Device, name)

    def logged(self, *args, name=name, real=real):
      calls.append(name)
      return real(self, *args)

    monkeypatch.setattr(device_lib.Device, name, logged)
  engine_of(toy, steps=4).run([request('the', 12)])
  assert calls == ['decode', 'decode', 'fetch', 'decode', 'fetch', 'fetch']
