"""Drafts change when a token is read, never which one is written."""

import dataclasses

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from craft_jax.config.settings import Model
from craft_jax.constrain import compile_regex
from craft_jax.data.text.vocabulary import Vocabulary
from craft_jax.errors import UserError
from craft_jax.inference.sampling import constraint_tables as tables_lib
from craft_jax.inference.sampling import slots as slots_lib
from craft_jax.inference.sampling import speculation as drafts_lib
from craft_jax.inference.sampling.decode import decode
from craft_jax.inference.sampling.generate import decoding_params, generate
from craft_jax.inference.sampling.settings import SampleSettings
from craft_jax.inference.sampling.speculation import Drafts
from craft_jax.model.build import build
from craft_jax.model.precision import platform_of

HERE = platform_of(jax.devices()[0])

CONTEXT = 32
CHARS = Vocabulary('char', 'e taoin\nshr')
BYTES = Vocabulary.byte()
COLD = SampleSettings(temperature=0, end=False)
WARM = SampleSettings(temperature=1, end=False)
CFG = Model(
  context=CONTEXT,
  width=16,
  depth=2,
  num_heads=2,
  precision='float32',
  zero_init=False,
)
KINDS = {
  'jump-forward': Drafts(cost=0.1),
  'jump-forward where it pays': Drafts(),
  'lookup': Drafts(match=2, cost=0.1),
  'first layers': Drafts(layers=1),
  'all layers': Drafts(layers=2, length=3),
}


def make(vocabulary=CHARS, **changes):
  model = build(
    dataclasses.replace(CFG, **changes),
    vocabulary.size,
    HERE,
  )
  params = jax.jit(model.init)(jax.random.key(0))
  params['blocks'] = jax.tree.map(lambda leaf: leaf * 3, params['blocks'])
  return model, params


@pytest.fixture(scope='module')
def toy():
  return make()


def whole(model, params, drafts, prompts, settings, seeds, vocabulary=CHARS):
  """Of each row its text, reason, ids and the logarithms of all tokens."""
  rows = [['', '', [], []] for _ in prompts]
  for pieces in generate(
    model, params, vocabulary, prompts, settings, seeds, 60,
    num_top=vocabulary.size, drafts=drafts,
  ):  # fmt: skip
    for piece in pieces:
      row = rows[piece.row]
      row[0] += piece.text
      row[1] = piece.finish_reason
      row[2] += piece.ids
      row[3] += [[p for _, p in sorted(pairs)] for pairs in piece.top]
  return rows


def compare(toy, prompts, settings, seeds, plain, drafted):
  """Equal but at near-ties, before which all logits agree; how many."""
  ties = 0
  for i, (a, b) in enumerate(zip(plain, drafted, strict=True)):
    pairs = enumerate(zip(a[2], b[2], strict=False))
    same = next((k for k, (x, y) in pairs if x != y), len(a[2]))
    np.testing.assert_allclose(
      np.array(a[3][:same]), np.array(b[3][:same]), atol=1e-4
    )
    if same == len(a[2]) == len(b[2]):
      assert a[:3] == b[:3]
      continue
    ties += 1
    logits_V = np.array(a[3][same])
    at = len(prompts[i]) + same
    if settings[i].temperature:
      key = jax.random.fold_in(jax.random.key(seeds[i]), i)
      key = jax.random.fold_in(key, at)
      logits_V = logits_V / settings[i].temperature
      logits_V += np.asarray(jax.random.gumbel(key, logits_V.shape))
    assert abs(logits_V[a[2][same]] - logits_V[b[2][same]]) < 1e-3
  return ties


@pytest.mark.parametrize('kind, changes', [
  *((kind, {}) for kind in KINDS),
  pytest.param(
    'lookup', {'position': 'alibi', 'window': 5, 'documents': True},
    marks=pytest.mark.slow,
  ),
  pytest.param(
    'first layers', {'position': 'learned', 'num_kv_heads': 1, 'ngrams': 2},
    marks=pytest.mark.slow,
  ),
])  # fmt: skip
def test_drafts_change_no_text(kind, changes):
  """Greedy, drawn, bound, penalised, and over several windows."""
  toy = make(**changes)
  runs = compile_regex('(the nation|no one is here|on)( (too|soon))*', CHARS)
  choices = [
    COLD,
    WARM,
    dataclasses.replace(COLD, constraint=runs),
    dataclasses.replace(WARM, constraint=runs, end=True),
    SampleSettings(1.0, top_k=4, repetition_penalty=1.2, presence_penalty=0.3),
    SampleSettings(0.8, min_chars=20, stop=('ee', 'tion')),
  ]
  texts = ('the sea the sea the s', 'a', 'on ', 'sh', 'none', 'is it so')
  prompts = [CHARS.encode(text) for text in texts]
  seeds = list(range(len(prompts)))
  plain = whole(*toy, None, prompts, choices, seeds)
  drafted = whole(*toy, KINDS[kind], prompts, choices, seeds)
  assert compare(toy, prompts, choices, seeds, plain, drafted) <= 1


@pytest.mark.slow
def test_jump_forward_of_bytes():
  toy = make(BYTES)
  bound = compile_regex('(漢字|日本語){3}(😀|é)', BYTES)
  settings = dataclasses.replace(WARM, constraint=bound)
  prompts, seeds = [BYTES.encode(b'a')] * 3, [1, 2, 3]
  args = (prompts, settings, seeds, BYTES)
  plain, drafted = whole(*toy, None, *args), whole(*toy, Drafts(), *args)
  assert [row[:3] for row in plain] == [row[:3] for row in drafted]
  assert all(row[0][-1] in '😀é' for row in plain)


def opened(model, params, texts, settings=WARM, constraint=None):
  """Slots that have read their texts, all but the newest token."""
  prompts = [CHARS.encode(text) for text in texts]
  B = len(prompts)
  tables, start_B = tables_lib.stack(
    [constraint] * B, CHARS.size, jax.devices()[0]
  )
  rows = [
    slots_lib.EMPTY
    | {'last': int(prompt[-1]), 'position': len(prompt), 'left': 99}
    | {'state': start_B[i], 'sample': i}
    for i, prompt in enumerate(prompts)
  ]
  packed = slots_lib.pack(rows, [settings] * B, CHARS.size)
  packed = jax.tree.map(jnp.asarray, packed)
  slots = slots_lib.open_slots(model, CHARS.size, B, jnp.int32(0))
  window_BT = np.zeros((B, CONTEXT), np.int32)
  for row_T, prompt in zip(window_BT, prompts, strict=True):
    row_T[: len(prompt) - 1] = prompt[:-1]
  slots = slots_lib.fill(
    model, CHARS, params, slots, packed, jnp.asarray(window_BT),
    jnp.array([len(prompt) - 1 for prompt in prompts]), jnp.ones(B, bool),
  )  # fmt: skip
  return tables, slots


def one_turn(toy, texts, drafts, settings=WARM, constraint=None, limit=16):
  model, params = toy
  params = decoding_params(model, params)
  tables, slots = opened(model, params, texts, settings, constraint)
  limit_B = jnp.full(len(texts), limit)
  return decode(
    model, CHARS, params, tables, slots, limit_B, jnp.int32(1), 16,
    drafts=drafts,
  )[1]  # fmt: skip


def test_a_forced_run_is_one_turn(toy):
  """Pass after pass of seven drafts and a token, then the end."""
  runs = compile_regex('the nation is', CHARS)
  written = one_turn(toy, ['a'], Drafts(), constraint=runs)
  *tokens, end = written.token_BC[0, : written.count_B[0]].tolist()
  assert CHARS.decode(tokens) == 'the nation is'
  assert end in (CHARS.bos, CHARS.eos)
  plain = one_turn(toy, ['a'], None, constraint=runs)
  assert plain.count_B.tolist() == [1]


@pytest.mark.slow
def test_drafts_of_all_layers_are_all_accepted(toy):
  for settings in (COLD, WARM):
    written = one_turn(toy, ['a', 'the'], Drafts(layers=2), settings)
    assert written.count_B.tolist() == [16, 16]  # all that is asked for


def test_a_turn_keeps_to_the_limit_and_the_room(toy):
  runs = compile_regex('(the nation is here )+', CHARS)
  written = one_turn(toy, ['a'], Drafts(), constraint=runs, limit=3)
  assert written.count_B.tolist() == [3]
  text = 'no' * (CONTEXT // 2 - 1)
  written = one_turn(toy, [text], Drafts(), constraint=runs)
  # The newest token and two more are read, and one may follow those.
  assert written.count_B.tolist() == [CONTEXT + 1 - len(text)]


@pytest.mark.slow
def test_few_drafts_among_many_rows_are_not_read_ahead(toy):
  text = 'the nation is on the '
  rows = ['a'] * 15
  cost = drafts_lib.pass_cost(len(rows) + 1, HERE.name)
  assert cost * (len(rows) + 1) > 8
  written = one_turn(toy, [text, *rows], Drafts(match=3), COLD)
  assert written.count_B.tolist() == [1] * 16
  # Alone the same row reads what followed `the ` before.
  assert drafts_lib.pass_cost(1, HERE.name) < 2


@pytest.mark.slow
def test_free_rows_do_not_feel_the_drafts_of_others(toy):
  """The log-probabilities of such a row are the same to the last bit."""
  runs = compile_regex('(the nation is here )+', CHARS)
  bound = dataclasses.replace(WARM, constraint=runs)
  prompts = [CHARS.encode('a')] * 2
  seeds = [1, 2]
  for other in (WARM, bound):
    rows = whole(*toy, Drafts(), prompts, [bound, WARM], seeds)
    alone = whole(*toy, Drafts(match=16), prompts, [other, WARM], seeds)
    assert rows[1] == alone[1]


@pytest.mark.slow
def test_the_distribution_is_that_of_the_model(toy):
  """Pairs of tokens of 2,000 draws, by a chi-squared statistic."""
  model, params = toy
  prompt = CHARS.encode('the sea the se').astype(np.int32)
  N, V = 2000, CHARS.num_text_tokens
  prompt_1T = jnp.asarray(prompt)[None]
  apply = jax.jit(model.apply)
  log_V = jax.nn.log_softmax(apply(params, prompt_1T)[0, -1, :V])
  after_VT = jnp.concatenate(
    [jnp.tile(prompt_1T, (V, 1)), jnp.arange(V)[:, None]], axis=1
  )
  log_VV = jax.nn.log_softmax(apply(params, after_VT)[:, -1, :V])
  expected_VV = N * np.exp(np.asarray(log_V[:, None] + log_VV))
  for drafts in (None, Drafts(match=2, cost=0.1), Drafts(layers=1)):
    found_VV = np.zeros((V, V))
    for pieces in generate(
      model, params, CHARS, [prompt] * N, WARM, 7, 2, drafts=drafts
    ):
      for piece in pieces:
        found_VV[tuple(piece.ids)] += 1
    assert found_VV.sum() == N
    often = expected_VV >= 5
    both = [
      [*array[often], array[~often].sum()] for array in (found_VV, expected_VV)
    ]
    found, expected = map(np.array, both)
    statistic = np.sum((found - expected) ** 2 / expected)
    freedom = len(found) - 1
    # Its mean is the freedom, its variance twice that.
    assert statistic < freedom + 5 * (2 * freedom) ** 0.5, drafts


def test_forced_tokens_are_those_of_the_automaton():
  automaton = compile_regex('(the|one) nation', CHARS)
  tables, start_B = tables_lib.stack(
    [automaton, None], CHARS.size, jax.devices()[0]
  )
  state_B = [start_B[0] + automaton.walk(CHARS.encode(t)) for t in ('', 't')]
  state_B = jnp.array([*state_B, start_B[1]])
  draft_BD = drafts_lib.forced(tables, state_B, 12)
  assert drafts_lib.counts(draft_BD).tolist() == [0, 9, 0]
  assert CHARS.decode(np.asarray(draft_BD[1, :9])) == 'he nation'


def test_a_pass_is_made_where_more_is_expected_of_it_than_it_costs():
  draft_BD = jnp.array([[4, 5, -1, 6], [-1, 4, 5, 6], [1, 2, 3, 4]])
  acceptance_B = jnp.array([0.5, 1.0, 1.0])
  expected_B = drafts_lib.expected(draft_BD, acceptance_B)
  assert expected_B.tolist() == [1.75, 0, 5]


def test_drafts_that_fail_are_soon_not_read_ahead(toy):
  """Once drafts would be accepted again, they are, as all are compared."""
  acceptance_B = jnp.full(1, drafts_lib.FIRST_ACCEPTANCE)
  paid = []
  for accepted in [False] * 6 + [True] * 12:
    expected_B = drafts_lib.expected(jnp.zeros((1, 7), jnp.int32), acceptance_B)
    paid.append(float(expected_B[0]) > drafts_lib.pass_cost(1, HERE.name))
    acceptance_B = drafts_lib.learned(acceptance_B, jnp.array([accepted]))
  assert paid[0] and not paid[6] and paid[-1]


def longest_match(text, match, length):
  """The same by the plainest of ways."""
  best, place = 0, 0
  for end in range(1, len(text)):
    run = 0
    while run < min(16, end) and text[end - 1 - run] == text[-1 - run]:
      run += 1
    if run >= max(match, best, 1):
      best, place = run, end
  draft = list(text[place : place + length]) if best else []
  return draft + [-1] * (length - len(draft))


def test_lookup_finds_the_longest_and_latest_match():
  rng = np.random.default_rng(0)
  rows, S, D = 400, 24, 5
  length_B = rng.integers(0, S + 1, rows)
  text_BS = rng.integers(0, 3, (rows, S + 1))
  last_B = text_BS[np.arange(rows), length_B]
  # What is past the length is of other texts.
  for match in (1, 2, 4):
    found_BD = drafts_lib.lookup(
      jnp.asarray(text_BS[:, :S]), jnp.asarray(length_B), jnp.asarray(last_B),
      match, D, 99,
    )  # fmt: skip
    for text_S, n, draft_D in zip(text_BS, length_B, found_BD, strict=True):
      if n < S:  # in a full cache the newest token has no place
        text = [*text_S[:n].tolist(), int(text_S[n])]
        assert draft_D.tolist() == longest_match(text, match, D), (text, match)
  assert (found_BD >= 0).any() and (found_BD < 0).any()


def test_specials_are_not_drafted():
  text = [5, 6, CHARS.bos, 7, 5]
  draft_BD = drafts_lib.lookup(
    jnp.array([[*text, 0, 0]]), jnp.array([5]), jnp.array([6]), 1, 3,
    CHARS.num_text_tokens,
  )  # fmt: skip
  assert draft_BD.tolist() == [[-1, -1, -1]]


@pytest.mark.parametrize('changes, message', [
  ({'length': 0}, 'length=0 must be at least 1'),
  ({'match': 17}, 'match=17 must be from 0 to 16'),
  ({'layers': 1, 'match': 2}, 'layers=1 must be at least 0, and 0 beside'),
])  # fmt: skip
def test_mistakes(changes, message):
  with pytest.raises(UserError, match=message):
    Drafts(**changes)
