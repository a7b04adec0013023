"""`craft_jax.load`: a run directory as one object."""

import dataclasses
import math
import subprocess
import sys

import jax
import numpy as np
import pytest

import craft_jax
from craft_jax.data.text.vocabulary import Vocabulary
from craft_jax.errors import UserError
from craft_jax.inference.sampling.generate import generate
from craft_jax.inference.sampling.prompt import encode_prompt
from craft_jax.inference.sampling.settings import SampleSettings

VOCABULARY = Vocabulary.byte()


@pytest.fixture(scope='module')
def loaded(byte_run):
  return craft_jax.load(byte_run)


def test_what_it_says_of_itself(loaded):
  assert loaded.cfg.model.context == 16 and loaded.step == 3
  assert loaded.vocabulary == VOCABULARY
  assert isinstance(loaded, craft_jax.LanguageModel)


def test_one_text_or_a_list(loaded):
  options = {'max_chars': 7, 'seed': 4}
  text = loaded.generate('ab', **options)
  assert isinstance(text, str) and len(text) == 7
  several = loaded.generate('ab', n=3, **options)
  assert len(set(several)) == 3 and several[0] == text
  assert loaded.generate('ab', n=1, **options) == [text]
  assert loaded.generate(b'ab', num_samples=1, **options) == [text]
  assert loaded.generate('ab', echo=True, **options) == 'ab' + text
  assert len(loaded.generate(max_chars=5)) == 5


def test_the_texts_are_those_of_the_sampler(loaded):
  trained = loaded.trained
  pieces = generate(
    trained.model,
    trained.params,
    VOCABULARY,
    [encode_prompt(VOCABULARY, 'ab', trained.meta.documents)],
    SampleSettings(0.5, top_k=9, end=False, utf8=True),
    4,
    40,
  )
  want = ''.join(piece.text for (piece,) in pieces)
  options = {'temperature': 0.5, 'top_k': 9, 'seed': 4, 'max_chars': 40}
  assert loaded.generate('ab', **options) == want
  streamed = list(loaded.stream('ab', **options))
  assert ''.join(streamed) == want and len(streamed) > 1


def test_samples_know_their_probabilities(loaded):
  (sample,) = loaded.samples('ab', max_chars=3, logprobs=2, any_bytes=True)
  shown = sample.to_json(VOCABULARY)['tokens']
  assert [token['byte'] for token in shown] == sample.ids
  assert [len(pairs) for pairs in sample.top] == [2] * len(sample.ids)
  assert sample.mean_logprob == pytest.approx(np.mean(sample.logprobs))


def test_tokens_of_bytes_end_with_the_text(loaded):
  """What came after a stop text in the same dispatch is left out."""
  text = loaded.generate('ab', max_chars=30, seed=1)
  stop = text[9:11]
  (sample,) = loaded.samples('ab', max_chars=30, seed=1, stop=stop)
  assert sample.finish_reason == 'stop'
  assert sample.text == text[: text.index(stop)]
  assert VOCABULARY.decode(sample.ids) == sample.text


def test_score(loaded):
  text = 'été'
  ids = np.concatenate([[10], VOCABULARY.encode(text)])
  logits_TV = np.asarray(
    jax.jit(loaded.trained.model.apply)(
      loaded.trained.params, ids[None, :-1].astype(np.int32)
    ),
    np.float64,
  )[0]
  log_TV = logits_TV - np.log(np.exp(logits_TV).sum(-1, keepdims=True))
  nats = -log_TV[np.arange(len(ids) - 1), ids[1:]].sum()
  assert loaded.score(text) == pytest.approx(nats / 3, rel=1e-4)
  assert loaded.score(text.encode()) == loaded.score(text)


def test_mistakes(loaded, tmp_path):
  with pytest.raises(UserError, match="no setting 'temprature', did you mean"):
    loaded.generate('a', temprature=1)
  with pytest.raises(UserError, match="max_chars='3' must be a whole number"):
    loaded.generate('a', max_chars='3')
  with pytest.raises(UserError, match='remove n and best_of'):
    loaded.stream('a', n=2)
  with pytest.raises(UserError, match='text to score'):
    loaded.score('')
  with pytest.raises(UserError, match='no run directory'):
    craft_jax.load(tmp_path / 'none')
  with pytest.raises(AttributeError, match='no attribute'):
    craft_jax.nothing  # noqa: B018


def test_a_text_without_tokens_is_the_worst(loaded):
  (sample,) = loaded.samples('ab', max_chars=1)
  empty = dataclasses.replace(sample, ids=[], logprobs=[])
  assert empty.mean_logprob == -math.inf


def test_the_package_alone_is_light():
  code = (
    'import craft_jax, sys; '
    'assert not {"jax", "numpy"} & set(sys.modules); '
    'assert "load" in dir(craft_jax)'
  )
  subprocess.run([sys.executable, '-c', code], check=True)
