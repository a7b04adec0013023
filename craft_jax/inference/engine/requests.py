"""A request, and what is remembered of it while it is under way."""

import dataclasses

import numpy as np

from craft_jax.constrain import Automaton
from craft_jax.errors import UserError
from craft_jax.inference.sampling.output import Row
from craft_jax.inference.sampling.prefill import Prefix
from craft_jax.inference.sampling.settings import SampleSettings


@dataclasses.dataclass(frozen=True, eq=False)
class Request:
  """A prompt to continue.

  Attributes:
    prompt: ids, at least one; see `inference.sampling.generate.encode_prompt`.
    max_chars: characters (code points) per sample, prompt excluded.
    settings: how tokens are chosen.
    seed: from 0 to 2^32 - 1; the key of a sample is `fold_in(key(seed), i)`.
    samples: how many; they share one reading of the prompt.
    first_sample: number of the first.
    num_top: most likely tokens to report beside each.
    slide: where the context is full, read its newer half afresh and go on;
      without it the text ends there.
  """

  prompt: np.ndarray
  max_chars: int
  settings: SampleSettings = dataclasses.field(default_factory=SampleSettings)
  seed: int = 0
  samples: int = 1
  first_sample: int = 0
  num_top: int = 0
  slide: bool = False


@dataclasses.dataclass(eq=False)
class Job:
  """A request under way.

  Attributes:
    request: as it was sent.
    window: the tokens of the prompt that the model sees.
    automaton: of its constraint.
    begin: the state of it where a text begins.
    first: its first state in the tables; None until it has a place there.
    left: tokens that a sample may write.
    prefix: what is read of the window so far.
    unfinished: samples.
    begun: those that have had a slot.
  """

  request: Request
  window: np.ndarray
  automaton: Automaton | None
  begin: int
  first: int | None
  left: int
  prefix: Prefix | None
  unfinished: int
  begun: list['Sample'] = dataclasses.field(default_factory=list)


@dataclasses.dataclass(eq=False)
class Sample:
  """A text in a slot.

  Attributes:
    handle: of its request.
    job: the request.
    number: counted from 0.
    row: the text.
    prefix: of a window that slides.
    ids: written since the window was last inserted.
    written: tokens before those.
    chars: characters before those, as the device counts them.
    state: of the constraint before those, its own first state being 0.
  """

  handle: int
  job: Job
  number: int
  row: Row
  state: int
  prefix: Prefix | None = None
  ids: list[int] = dataclasses.field(default_factory=list)
  written: int = 0
  chars: int = 0


def check(request: Request, context: int, num_top: int) -> None:
  """Raises a UserError for what can never be done."""
  if not 0 <= request.num_top <= num_top:
    raise UserError(
      f'num_top={request.num_top} must be from 0 to the {num_top} of the engine'
    )
  if not 0 <= request.seed < 2**32:
    raise UserError(f'seed={request.seed} must be from 0 to {2**32 - 1}')
  for name in ('max_chars', 'samples'):
    if getattr(request, name) < 1:
      raise UserError(f'{name}={getattr(request, name)} must be at least 1')
  if not len(request.prompt):
    raise ValueError('every prompt needs at least one token')
  if not request.slide and len(request.prompt) > context:
    raise UserError(
      f'the prompt has {len(request.prompt)} tokens, the context {context}; '
      'shorten it, or let the window slide'
    )
