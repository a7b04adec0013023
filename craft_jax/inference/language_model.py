"""The Python API for trained models: `craft_jax.load`."""

import functools
from collections.abc import Iterable, Iterator
from typing import Any

from etils import epath

from craft_jax.config.settings import Config
from craft_jax.data.text import utf8
from craft_jax.data.text.vocabulary import Vocabulary
from craft_jax.errors import UserError
from craft_jax.inference import predict
from craft_jax.inference.engine.device import decoding_params
from craft_jax.inference.load import Trained, load_model
from craft_jax.inference.sampling import speculation
from craft_jax.inference.sampling.answers import Answers, Sample, prepare
from craft_jax.inference.sampling.request import Request, field_name
from craft_jax.inference.surprisal import score_texts
from craft_jax.runs import checkpoint
from craft_jax.runtime import jax_settings
from craft_jax.types import Params


class LanguageModel:
  """A trained model that generates and scores text.

  The options of `generate`, `stream` and `samples` are the flags of `craft
  sample` with underscores, with the same defaults; `n` is `num_samples`.

  Attributes:
    trained: the model, its parameters and vocabulary.
  """

  def __init__(self, trained: Trained, speculate: str = 'off'):
    """Wraps a loaded model; `speculate` is a value of `craft sample`'s flag."""
    self.trained = trained
    self._drafts = speculation.parse(speculate, trained.cfg.model.depth)

  @property
  def cfg(self) -> Config:
    """Settings of the run."""
    return self.trained.cfg

  @property
  def vocabulary(self) -> Vocabulary:
    """Vocabulary of the model."""
    return self.trained.vocabulary

  @property
  def step(self) -> int:
    """Training step of the checkpoint."""
    return self.trained.meta.step

  def generate(
    self, prompt: str | bytes = '', **options: Any
  ) -> str | list[str]:
    """Generates the text that follows a prompt; a list of texts if `n` is set.

    Raises:
      UserError: an option is unknown or out of range, or contains characters
        outside the vocabulary.
    """
    texts = [sample.full_text for sample in self.samples(prompt, **options)]
    several = any(field_name(name) == 'num_samples' for name in options)
    return texts if several else texts[0]

  @jax_settings.pinned()
  def samples(self, prompt: str | bytes = '', **options: Any) -> list[Sample]:
    """Like `generate`, with log-probabilities and finish reasons of texts."""
    answers = self._answers(Request(prompt=prompt).changed(options))
    for _ in answers:
      pass
    return answers.samples()

  @jax_settings.pinned()
  def predict(self, prompts: Iterable[str], **options: Any) -> list[str]:
    """Completes prompts as `craft predict` does, by greedy decoding.

    Args:
      prompts: the prompts.
      **options: flags of `craft predict` that say how tokens are chosen, with
        underscores: `temperature`, `max_chars`, `regex`, `beams`.

    Returns:
      A completion for each prompt, in their order.

    Raises:
      UserError: an option is unknown or out of range, or a prompt leaves no
        room in the context or has a character outside the vocabulary.
    """
    rows = list(prompts)
    predictor = predict.predictor_of(
      self.trained, options, len(rows), self._decoding_params
    )
    prepared = [predictor.prepare(i, prompt) for i, prompt in enumerate(rows)]
    return [best.text for best, *_ in predictor.completions(prepared)]

  def stream(self, prompt: str | bytes = '', **options: Any) -> Iterator[str]:
    """Generates one text and yields it in pieces.

    Raises:
      UserError: an option is invalid or requests several texts; raised by the
        call itself, not by the iterator.
    """
    request = Request(prompt=prompt).changed(options)
    if request.num_drawn > 1:
      raise UserError('only one text can be streamed; remove n and best_of')
    return self._stream(self._answers(request))

  @jax_settings.pinned()
  def _answers(self, request: Request) -> Answers:
    return Answers(
      self.trained,
      [prepare(self.trained, request)],
      self._decoding_params,
      self._drafts,
    )

  @functools.cached_property
  def _decoding_params(self) -> Params:
    return decoding_params(self.trained.model, self.trained.params)

  def _stream(self, answers: Answers) -> Iterator[str]:
    written, turns = 0, iter(answers)
    while True:
      with jax_settings.pinned():  # but not while the caller runs
        if next(turns, None) is None:
          return
      for sample in answers.samples():
        if text := sample.full_text[written:]:
          written += len(text)
          yield text

  @jax_settings.pinned()
  def score(self, text: str | bytes) -> float:
    """Nats per character of a text, which starts like a document.

    Raises:
      UserError: the text is empty or has a character outside the vocabulary.
    """
    data = utf8.to_bytes(text) if isinstance(text, str) else text
    (scored,) = score_texts(self.trained, [('the text', data)])
    return float(scored.figures['nats'] / scored.figures['characters'])


def load(
  workdir: epath.PathLike,
  step: checkpoint.Which = 'latest',
  ema: bool = True,
  weights: str = 'auto',
  kv_cache: str = 'auto',
  speculate: str = 'off',
) -> LanguageModel:
  """Loads the model of a run directory.

  Args:
    workdir: run directory.
    step: a step, 'latest' or 'best'.
    ema: use the EMA of the parameters if the run has one.
    weights: 'auto' or 'int8', which quantizes the matrices.
    kv_cache: data type of the KV cache.
    speculate: method of speculative decoding, as in `craft sample`.

  Raises:
    UserError: the checkpoint does not exist or is damaged, or an argument has
      an unknown value.
  """
  trained = load_model(workdir, step, ema, weights, kv_cache)
  return LanguageModel(trained, speculate)
