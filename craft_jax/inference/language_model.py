"""A trained model as one object: `craft_jax.load`."""

import functools
from collections.abc import Iterator
from typing import Any

from etils import epath

from craft_jax.config.settings import Config
from craft_jax.data.text import utf8
from craft_jax.data.text.vocabulary import Vocabulary
from craft_jax.errors import UserError
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
  """Writes and scores text.

  Every option of `generate`, `stream` and `samples` has the name and the
  default of the flag of `craft sample`, with underscores; `n` is num_samples.

  Attributes:
    trained: the model and its parameters.
  """

  def __init__(self, trained: Trained, speculate: str = 'off'):
    """Of what `trained.load_model` gives; how to draft, see `drafts.parse`."""
    self.trained = trained
    self._drafts = speculation.parse(speculate, trained.cfg.model.depth)

  @property
  def cfg(self) -> Config:
    """The settings of the run."""
    return self.trained.cfg

  @property
  def vocabulary(self) -> Vocabulary:
    """The tokens of the model."""
    return self.trained.vocabulary

  @property
  def step(self) -> int:
    """Steps that it was trained."""
    return self.trained.meta.step

  def generate(
    self, prompt: str | bytes = '', **options: Any
  ) -> str | list[str]:
    """The text that follows a prompt; a list of them if `n` is given.

    Raises:
      UserError: an unknown option, or a value that is out of range or that
        the vocabulary cannot write.
    """
    texts = [sample.full_text for sample in self.samples(prompt, **options)]
    several = any(field_name(name) == 'num_samples' for name in options)
    return texts if several else texts[0]

  @jax_settings.pinned()
  def samples(self, prompt: str | bytes = '', **options: Any) -> list[Sample]:
    """The same with all that is known of each text; raises as `generate`."""
    answers = self._answers(Request(prompt=prompt).changed(options))
    for _ in answers:
      pass
    return answers.samples()

  def stream(self, prompt: str | bytes = '', **options: Any) -> Iterator[str]:
    """The text of `generate` in pieces, as it is written.

    Raises:
      UserError: as `generate`, at once; or more than one text is asked for.
    """
    request = Request(prompt=prompt).changed(options)
    if request.num_drawn > 1:
      raise UserError('a stream is of one text; leave n and best_of out')
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
      with jax_settings.pinned():  # not while the caller has the piece
        if next(turns, None) is None:
          return
      for sample in answers.samples():
        if text := sample.full_text[written:]:
          written += len(text)
          yield text

  @jax_settings.pinned()
  def score(self, text: str | bytes) -> float:
    """Nats per character of a text that starts like a document.

    Raises:
      UserError: it is empty, or has a character outside the vocabulary.
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
  """The model of a run directory.

  Arguments and errors of `load_model`; `speculate` is that of `craft sample`.
  """
  trained = load_model(workdir, step, ema, weights, kv_cache)
  return LanguageModel(trained, speculate)
