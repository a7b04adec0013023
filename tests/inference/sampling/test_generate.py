"""The sampler against plain `apply`: alone, in batches, past the context."""

import dataclasses
import re

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from craft_jax.config.settings import Model
from craft_jax.constrain import compile_regex, compile_without
from craft_jax.data.text.vocabulary import Vocabulary
from craft_jax.data.windows import bucket
from craft_jax.errors import UserError
from craft_jax.inference.sampling import constraint_tables as tables_lib
from craft_jax.inference.sampling import slots as slots_lib
from craft_jax.inference.sampling.decode import decode
from craft_jax.inference.sampling.generate import (
  decoding_params,
  generate,
  sample_text,
)
from craft_jax.inference.sampling.logits import RowSettings, choose, permit
from craft_jax.inference.sampling.output import setting_arrays
from craft_jax.inference.sampling.prompt import (
  encode_prompt,
  show_prompt,
  start_tokens,
)
from craft_jax.inference.sampling.settings import SampleSettings
from craft_jax.model.build import build
from craft_jax.model.precision import platform_of

HERE = platform_of(jax.devices()[0])

CONTEXT = 12
CHARS = Vocabulary('char', 'e taoin\nshr')
BYTES = Vocabulary.byte()
GREEDY = SampleSettings(temperature=0, end=False)
WARM = SampleSettings(temperature=1, end=False)
CFG = Model(
  context=CONTEXT,
  width=16,
  depth=2,
  num_heads=2,
  precision='float32',
  zero_init=False,
)


def make(vocabulary=CHARS, seed=0, **changes):
  model = build(
    dataclasses.replace(CFG, **changes),
    vocabulary.size,
    HERE,
  )
  params = jax.jit(model.init)(jax.random.key(seed))
  # Blocks that outweigh the embedding, so that what came before matters.
  params['blocks'] = jax.tree.map(lambda leaf: leaf * 3, params['blocks'])
  return model, params


@pytest.fixture(scope='module')
def toy():
  return make()


def texts(model, params, prompts, settings=WARM, vocabulary=CHARS, chars=30,
          seed=0, **more):  # fmt: skip
  """Text and finish reason per row, joined from the pieces."""
  result = [['', ''] for _ in prompts]
  for pieces in generate(
    model, params, vocabulary, prompts, settings, seed, chars, **more
  ):
    for piece in pieces:
      assert len(piece.ids) == len(piece.logprobs)
      assert not result[piece.row][1], 'a finished row writes no more'
      result[piece.row][0] += piece.text
      result[piece.row][1] = piece.finish_reason
  return [tuple(row) for row in result]


def reference(model, params, prompt, settings, row, kept=CONTEXT // 2):
  """30 ids written without a cache, by the documented rule of the window."""

  @jax.jit
  def following(x_BT, at, position_B):
    segment_BT = jnp.cumsum(jnp.int32(x_BT == CHARS.bos), axis=1)
    logits_BV = model.apply(params, x_BT, segment_BT)[:, at]
    logits_BV = permit(
      logits_BV,
      jnp.ones(logits_BV.shape, bool),
      jnp.zeros(1, bool),
      CHARS.num_text_tokens,
      (),
    )
    rows = RowSettings(
      key_B=jax.random.fold_in(jax.random.key(0), row)[None],
      **jax.tree.map(jnp.asarray, setting_arrays([settings], CHARS.size)),
    )
    return choose(logits_BV, rows, position_B)[0]

  window, out = list(prompt[-CONTEXT:]), []
  for step in range(30):
    if len(window) > CONTEXT:
      window = window[-kept:]
    x_BT = np.zeros((1, CONTEXT), np.int32)  # causal: what follows is unseen
    x_BT[0, : len(window)] = window
    position_B = jnp.array([len(prompt) + step], jnp.int32)
    out.append(int(following(x_BT, len(window) - 1, position_B)))
    window.append(out[-1])
  return out


@pytest.mark.parametrize(
  'changes',
  [
    {},
    pytest.param(
      {'position': 'learned', 'num_kv_heads': 1, 'mlp': 'swiglu', 'tied': True},
      marks=pytest.mark.slow,
    ),
    pytest.param(
      {'position': 'alibi', 'window': 5, 'documents': True},
      marks=pytest.mark.slow,
    ),
  ],
  ids=['rope', 'learned', 'alibi'],
)
def test_texts_equal_apply_without_cache(changes):
  model, params = make(**changes)
  bos = np.array([CHARS.bos])
  prompts = [
    CHARS.encode('t'),
    np.concatenate([CHARS.encode('sh'), bos, CHARS.encode('to')]),
    CHARS.encode('the nation'),
    CHARS.encode('or a station in the north'),  # longer than the context
    CHARS.encode('the nation is')[:CONTEXT],
    bos,
  ]
  settings = [
    WARM,
    WARM,
    GREEDY,
    WARM,
    SampleSettings(0.9, 4, 0.8, end=False),
    WARM,
  ]
  answers = texts(model, params, prompts, settings)
  for i, (text, reason) in enumerate(answers):
    args = (model, params, prompts[i], settings[i], i)
    assert CHARS.encode(text).tolist() == reference(*args)
    assert reason == 'length'
  # The comparison would see another rule.
  args = (model, params, prompts[0], WARM, 0)
  assert reference(*args, kept=1) != reference(*args)


@pytest.mark.parametrize('context', [1, 2, 3])
def test_tiny_contexts(context):
  model, params = make(context=context)
  ((text, reason),) = texts(model, params, [CHARS.encode('the')], chars=9)
  assert len(text) == 9 and reason == 'length'


@pytest.mark.slow
def test_batch_and_dispatch_change_no_text(toy):
  prompts = [CHARS.encode(p) for p in ('t', 'the noise', 'a', 'on')]
  together = texts(*toy, prompts)
  assert len({text for text, _ in together}) == 4
  for i, prompt in enumerate(prompts):
    assert texts(*toy, [prompt], first_row=i) == [together[i]]
  for steps in (1, 7):
    assert texts(*toy, prompts, steps_per_dispatch=steps) == together


def test_seed(toy):
  prompt = [CHARS.encode('t')]
  four = texts(*toy, prompt * 4, seed=5)
  assert four == texts(*toy, prompt * 4, seed=5)
  assert len({text for text, _ in four}) == 4
  assert texts(*toy, prompt, seed=5) == four[:1]
  assert texts(*toy, prompt, seed=6) != four[:1]
  assert texts(*toy, prompt, seed=2**32 - 1) != four[:1]


def test_going_on_from_a_part_gives_the_rest(toy):
  ((text, _),) = texts(*toy, [CHARS.encode('the')], chars=8)
  ((rest, _),) = texts(*toy, [CHARS.encode('the' + text[:5])], chars=3)
  assert rest == text[5:]


def test_settings_of_rows_do_not_mix(toy):
  prompts = [CHARS.encode('t')] * 3
  mix = [GREEDY, WARM, SampleSettings(0.7, top_k=2, end=False)]
  mixed = texts(*toy, prompts, mix)
  for i, settings in enumerate(mix):
    assert texts(*toy, prompts, settings)[i] == mixed[i]


def test_other_settings_compile_nothing(toy):
  prompts = [CHARS.encode('on a')] * 2
  texts(*toy, prompts)
  programs = (slots_lib.open_filled, slots_lib.fill, decode)
  before = [program._cache_size() for program in programs]
  for settings in (GREEDY, WARM, SampleSettings(2.0, 3, 0.4)):
    for chars in (3, 40):
      texts(*toy, prompts, settings, chars=chars, seed=chars)
  texts(*toy, [CHARS.encode('the rise')] * 2)  # another length, same bucket
  # Nor does another model of the same settings, as another load gives.
  texts(*make(seed=1), prompts)
  assert [program._cache_size() for program in programs] == before


def biased(vocabulary, logits_of):
  """Parameters that ignore the input: each token has the given logit."""
  model = build(
    dataclasses.replace(CFG, logit_cap=0.0, zero_init=True),
    vocabulary.size,
    HERE,
  )
  params = jax.jit(model.init)(jax.random.key(0))
  # Blocks that start at zero leave the stream as the embedding, all ones; so
  # every row of the head adds its share of the logit.
  logits_V = np.full(vocabulary.size, -30.0, np.float32)
  for token, logit in logits_of.items():
    logits_V[token] = logit
  params['embed']['embedding'] = jnp.ones_like(params['embed']['embedding'])
  params['head']['kernel'] = jnp.tile(logits_V / CFG.width, (CFG.width, 1))
  return model, params


def test_a_constraint_is_met_as_a_whole_and_never_truncated(toy):
  """Whatever the model would write, at any length, and never cut short."""
  patterns = [r'(the|no)( (rain|noise))*', 'h{3}', '(ta|to|n)+e', '[aeio]*']
  automata = [compile_regex(p, CHARS) for p in patterns]
  prompts = [CHARS.encode('t')] * len(patterns)
  for chars in (4, 9, 31):
    for seed in range(3):
      settings = [
        SampleSettings(1.3, end=seed == 0, constraint=a) for a in automata
      ]
      answers = texts(*toy, prompts, settings, chars=chars, seed=seed)
      for (text, reason), pattern in zip(answers, patterns, strict=True):
        assert re.fullmatch(pattern, text), (text, pattern)
        assert reason == 'stop' or len(text) == chars
      assert answers[1] == ('hhh', 'stop')


@pytest.mark.slow
def test_constraints_and_free_rows_do_not_mix(toy):
  prompts = [CHARS.encode('t')] * 3
  automaton = compile_regex('[nst]*', CHARS)
  mix = [WARM, dataclasses.replace(WARM, constraint=automaton), WARM]
  free, bound, other = texts(*toy, prompts, mix)
  assert [free, other] == texts(*toy, prompts)[::2]
  assert set(bound[0]) <= set('nst')
  assert bound == texts(*toy, prompts[:1], mix[1:2], first_row=1)[0]


def test_other_constraints_compile_nothing(toy):
  prompts = [CHARS.encode('on a')] * 2
  first = dataclasses.replace(WARM, constraint=compile_regex('[no]+', CHARS))
  texts(*toy, prompts, [first, WARM])
  programs = (slots_lib.open_filled, slots_lib.fill, decode)
  before = [program._cache_size() for program in programs]
  for pattern in ('[nst]{3,9}', '(no|to)+', 'the .*'):
    automaton = compile_regex(pattern, CHARS)
    settings = SampleSettings(
      1.0, min_p=0.1, typical_p=0.9, repetition_penalty=1.2, logit_bias={3: 2},
      min_chars=3, stop=('ee',), constraint=automaton,
    )  # fmt: skip
    texts(*toy, prompts, [settings, WARM])
  assert [program._cache_size() for program in programs] == before


def test_a_constraint_that_does_not_fit_is_one_line(toy):
  settings = SampleSettings(constraint=compile_regex('n{20}', CHARS))
  with pytest.raises(
    UserError, match=r'max_chars=19 is too short: .* least 20'
  ):
    generate(*toy, CHARS, [CHARS.encode('t')], settings, 0, 19)


def test_bad_strings_never_occur(toy):
  prompts = [CHARS.encode('t')] * 8
  words = ('e', 'th', 'tion', 'on')
  plain = ''.join(text for text, _ in texts(*toy, prompts, chars=60))
  assert all(word in plain for word in words[:2])
  automaton = compile_without(words, CHARS)
  settings = dataclasses.replace(WARM, constraint=automaton)
  for text, reason in texts(*toy, prompts, settings, chars=60):
    assert len(text) == 60 and reason == 'length'
    assert not any(word in text for word in words)


@pytest.mark.parametrize('steps', [1, 3, 32])
def test_stop_strings_end_the_text(toy, steps):
  prompts = [CHARS.encode('t')] * 6
  whole = texts(*toy, prompts, chars=60)
  words = ('ee', 'a ', 'the n')
  # One that begins before 'ee', and ends after it.
  outer = next(full[at - 1 : at + 3] for full, _ in whole
               if (at := full.find('ee')) > 0)  # fmt: skip
  settings = dataclasses.replace(WARM, stop=(*words, outer))
  got = texts(*toy, prompts, settings, chars=60, steps_per_dispatch=steps)
  assert any(reason == 'stop' for _, reason in got)
  for (text, reason), (full, _) in zip(got, whole, strict=True):
    found = [at for word in words if (at := full.find(word)) >= 0]
    assert text == full[: min(found, default=60)]
    assert reason == ('stop' if found else 'length')


def test_logit_bias_and_min_chars():
  model, params = biased(CHARS, {0: 3.0, 1: 0.0, CHARS.bos: 2.9})
  prompts = [CHARS.encode('t')] * 8
  settings = SampleSettings(1.0, min_chars=7, logit_bias={0: -40.0, 5: 3.0})
  answers = texts(model, params, prompts, settings, chars=20)
  assert {len(text) for text, _ in answers} >= {7}
  for text, reason in answers:
    assert len(text) >= 7 and set(text) <= set(CHARS.chars[1] + CHARS.chars[5])
    assert reason == ('length' if len(text) == 20 else 'stop')


def test_a_penalty_ends_repetition():
  model, params = biased(CHARS, {0: 4.0, 1: 3.0, 2: 2.0})
  prompts = [CHARS.encode('t')]
  assert texts(model, params, prompts, GREEDY, chars=6)[0][0] == 'e' * 6
  settings = dataclasses.replace(GREEDY, frequency_penalty=1.5)
  # Of 'e', ' ' and 't', which the prompt has once: 4 3 .5, 2.5 3 .5,
  # 2.5 1.5 .5, 1 1.5 .5.
  assert texts(model, params, prompts, settings, chars=4)[0][0] == 'e e '
  settings = dataclasses.replace(GREEDY, presence_penalty=1.5, penalty_window=1)
  assert texts(model, params, prompts, settings, chars=6)[0][0] == 'e e e '


def test_valid_utf8(monkeypatch):
  data = sorted(set('é漢😀a'.encode()))
  model, params = biased(BYTES, dict.fromkeys([*data, 0xFF], 1.0))
  prompt = BYTES.encode('漢'.encode()[:2])  # its last byte is still to come
  settings = dataclasses.replace(WARM, utf8=True)
  assert '�' in ''.join(
    text for text, _ in texts(model, params, [prompt] * 4, WARM, BYTES)
  )
  for text, reason in texts(model, params, [prompt] * 4, settings, BYTES):
    assert '�' not in text and len(text) == 30 and reason == 'length'


def test_logprobs_are_those_of_the_model(toy):
  model, params = toy
  prompt = CHARS.encode('no')
  settings = SampleSettings(
    0.3, 2, end=False, logit_bias={1: 5.0}, repetition_penalty=1.4
  )
  ids, logprobs = [], []
  for (piece,) in generate(model, params, CHARS, [prompt], settings, 0, 9):
    ids += piece.ids
    logprobs += piece.logprobs
  x_BT = jnp.asarray([[*prompt.tolist(), *ids]], jnp.int32)
  log_BTV = jax.nn.log_softmax(jax.jit(model.apply)(params, x_BT[:, :-1]))
  want = jnp.take_along_axis(log_BTV, x_BT[:, 1:, None], 2)[0, 1:, 0]
  np.testing.assert_allclose(logprobs, want, atol=1e-4)


@pytest.mark.parametrize('num_top', [1, 3, CHARS.size])
def test_the_most_likely_tokens_are_those_of_the_model(toy, num_top):
  model, params = toy
  prompt = CHARS.encode('no')
  settings = SampleSettings(0.3, 2, end=False, logit_bias={1: 5.0})
  ids, top = [], []
  for (piece,) in generate(
    model, params, CHARS, [prompt], settings, 0, 9, steps_per_dispatch=4,
    num_top=num_top,
  ):  # fmt: skip
    ids += piece.ids
    top += piece.top
  x_BT = jnp.asarray([[*prompt.tolist(), *ids]], jnp.int32)
  logits_BTV = jax.jit(model.apply)(params, x_BT[:, :-1])
  logits_TV = np.asarray(logits_BTV, np.float64)[0, 1:]
  log_TV = logits_TV - np.log(np.exp(logits_TV).sum(-1, keepdims=True))
  order_TV = np.argsort(-log_TV, axis=-1, kind='stable')[:, :num_top]
  assert len(top) == 9
  for log_V, order_V, pairs in zip(log_TV, order_TV, top, strict=True):
    assert [token for token, _ in pairs] == order_V.tolist()
    np.testing.assert_allclose([p for _, p in pairs], log_V[order_V], atol=1e-4)


def test_without_the_most_likely_the_program_has_no_search(toy):
  model, params = toy
  text = {}
  for num_top in (0, 5):
    slots, tables = _opened(model, params)
    text[num_top] = decode.lower(
      model, CHARS, decoding_params(model, params), tables, slots,
      jnp.array([4]), jnp.int32(4), 4, num_top,
    ).as_text()  # fmt: skip
  assert 'chlo.top_k' in text[5] and 'chlo.top_k' not in text[0]


def _opened(model, params):
  tables, _ = tables_lib.stack([None], CHARS.size, jax.devices()[0])
  slots = slots_lib.open_slots(model, CHARS.size, 1, jnp.int32(0))
  return slots, tables


def test_a_seed_a_number_and_a_length_of_each_row(toy):
  prompts = [CHARS.encode(p) for p in ('t', 'the noise', 'a')]
  got = texts(
    *toy, prompts, seed=[5, 6, 5], chars=[7, 20, 9], first_row=[0, 3, 1]
  )
  for i, (seed, chars, row) in enumerate(((5, 7, 0), (6, 20, 3), (5, 9, 1))):
    assert [got[i]] == texts(
      *toy, [prompts[i]], seed=seed, chars=chars, first_row=row
    )


def test_the_end_stops_and_is_not_text():
  model, params = biased(CHARS, {0: 3.5, CHARS.bos: 0.0, CHARS.pad: 9.0})
  prompts = [CHARS.encode('t')] * 8
  ended = SampleSettings(temperature=1)
  answers = texts(model, params, prompts, ended, chars=20)
  assert {reason for _, reason in answers} == {'stop', 'length'}
  for text, reason in answers:
    assert set(text) <= {'e'}
    assert (len(text) == 20) == (reason == 'length')
  for steps in (1, 3):
    assert answers == texts(
      model, params, prompts, ended, chars=20, steps_per_dispatch=steps
    )
  assert (
    texts(model, params, prompts, WARM, chars=20) == [('e' * 20, 'length')] * 8
  )


def test_eos_ends_too():
  model, params = biased(CHARS, {CHARS.eos: 9.0})
  assert texts(model, params, [CHARS.encode('t')], SampleSettings()) == [
    ('', 'stop')
  ]


def test_characters_are_never_cut():
  # Bytes of é, 漢 and U+1F600 by chance: much valid, much not.
  data = sorted(set('é漢😀a'.encode()))
  model, params = biased(BYTES, dict.fromkeys(data, 1.0))
  one = [BYTES.encode('a')]
  for seed in range(3):
    pieces = [
      piece
      for (piece,) in generate(
        model, params, BYTES, one, WARM, seed, 40, steps_per_dispatch=3
      )
    ]
    text = ''.join(piece.text for piece in pieces)
    assert len(text) == 40 and pieces[-1].finish_reason == 'length'
    ((whole, _),) = texts(
      model, params, one, WARM, BYTES, 40, seed, steps_per_dispatch=32
    )
    assert whole == text  # cut by dispatches of 3 or 32 tokens: one text


@pytest.mark.parametrize('cut', [1, 2, 3])
def test_a_budget_counts_whole_characters(cut):
  """A prompt cut within a character: it is completed, and counted once."""
  model, params = cycle('😀'.encode())
  prompt = np.frombuffer('😀😀'.encode()[:-cut], np.uint8)
  answers = texts(model, params, [prompt], GREEDY, BYTES, chars=3)
  assert answers == [('😀😀😀', 'length')]


def cycle(data):
  """A model that always follows a byte of `data` with the next one."""
  model = build(
    dataclasses.replace(CFG, width=64, logit_cap=0.0, zero_init=True),
    BYTES.size,
    HERE,
  )
  params = jax.jit(model.init)(jax.random.key(0))
  embedding = np.zeros((BYTES.size, 64), np.float32)
  head = np.zeros((64, BYTES.size), np.float32)
  for i, byte in enumerate(data):
    embedding[byte, i] = 1.0
    head[i, data[(i + 1) % len(data)]] = 1.0
  params['embed']['embedding'] = jnp.asarray(embedding)
  params['head']['kernel'] = jnp.asarray(head)
  return model, params


def test_an_end_within_a_character_drops_its_bytes():
  model, params = cycle([0xC3])
  kernel = params['head']['kernel'].at[:, 0xC3].set(0.0)
  params['head']['kernel'] = kernel.at[0, BYTES.bos].set(1.0)
  prompt = np.frombuffer(b'a\xc3', np.uint8)
  answers = texts(model, params, [prompt], SampleSettings(0), BYTES)
  assert answers == [('', 'stop')]


def test_start_tokens():
  assert start_tokens(CHARS, True).tolist() == [CHARS.bos]
  assert start_tokens(CHARS, False).tolist() == [CHARS.chars.index('\n')]
  assert start_tokens(Vocabulary('char', 'ab'), False).tolist() == [0]
  assert start_tokens(BYTES, True).tolist() == [256]
  assert start_tokens(BYTES, False).tolist() == [10]


def test_prompts():
  assert encode_prompt(CHARS, '', True).tolist() == [CHARS.bos]
  assert encode_prompt(BYTES, b'\xff\xc3', False).tolist() == [255, 195]
  with pytest.raises(UserError, match=r'U\+007A .*LETTER Z.* position 2'):
    encode_prompt(CHARS, 'toz', False)
  replacing = Vocabulary('char', 'to', 'replace')
  assert encode_prompt(replacing, 'toz', False).tolist() == [
    0,
    1,
    replacing.unk,
  ]
  assert show_prompt(BYTES, 'aé'.encode()[:-1]) == 'a'
  assert show_prompt(BYTES, b'a\xffb') == 'a\ufffdb'
  assert show_prompt(CHARS, 'aé'.encode()) == 'aé'
  assert show_prompt(CHARS, 'aé') == 'aé'


def test_sample_text_at_full_guard(toy):
  """The training loop calls it with arrays on its mesh, transfers forbidden."""
  mesh = jax.make_mesh(
    (2,), ('data',), axis_types=(jax.sharding.AxisType.Auto,)
  )
  spec = jax.sharding.PartitionSpec
  model, params = toy
  on_mesh = jax.device_put(params, jax.sharding.NamedSharding(mesh, spec()))
  split = jax.tree.map(
    lambda leaf: jax.device_put(
      leaf,
      jax.sharding.NamedSharding(
        mesh, spec(*[None] * (leaf.ndim - 1), 'data')
        if leaf.shape[-1] % 2 == 0 else spec()
      ),
    ),
    params,
  )  # fmt: skip
  expected = sample_text(model, params, CHARS, 'the', 25, 3)
  assert len(expected) > 3
  with jax.transfer_guard('disallow'):
    assert sample_text(model, on_mesh, CHARS, 'the', 25, 3) == expected
    assert sample_text(model, split, CHARS, 'the', 25, 3) == expected


@pytest.mark.slow
def test_rounding_the_matrices_first_changes_nothing():
  model, params = make(precision='bfloat16')
  rounded = decoding_params(model, params)
  kernel = rounded['blocks'][0]['mlp']['in']['kernel']
  assert kernel.dtype == jnp.bfloat16
  assert rounded['embed']['embedding'].dtype == jnp.float32
  assert decoding_params(model, rounded) is rounded
  x_BT, cache = jnp.arange(8)[None], model.init_cache(1, 8)
  extend = jax.jit(model.extend)
  _, want = extend(params, cache, x_BT, jnp.array([8]))
  _, got = extend(rounded, cache, x_BT, jnp.array([8]))
  assert (got == want).all()
  ((text, _),) = texts(model, params, [CHARS.encode('the')])
  assert len(text) == 30


def test_buckets():
  assert [bucket(n, 256) for n in (0, 1, 16, 17, 64, 200, 255)] == [
    16, 16, 16, 32, 64, 256, 256,
  ]  # fmt: skip
  assert bucket(90, 100) == 100 and bucket(0, 1) == 1


def test_mistakes(toy):
  prompt = [CHARS.encode('t')]
  for seed in (-1, 2**32):
    with pytest.raises(UserError, match=f'seed={seed} must be from 0'):
      generate(*toy, CHARS, prompt, WARM, seed, 5)
  with pytest.raises(UserError, match='max_chars=0 must be at least 1'):
    generate(*toy, CHARS, prompt, WARM, 0, 0)
  for prompts in ([], [np.zeros(0, np.uint8)]):
    with pytest.raises(ValueError, match='at least one token'):
      generate(*toy, CHARS, prompts, WARM, 0, 5)
  with pytest.raises(ValueError, match='1 prompts, 2 settings'):
    generate(*toy, CHARS, prompt, [WARM, WARM], 0, 5)
  with pytest.raises(ValueError, match='1 prompts, 2 seeds'):
    generate(*toy, CHARS, prompt, WARM, [0, 1], 5)
