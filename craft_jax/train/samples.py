"""The text that a run writes now and then, to see what it has learnt."""

from craft_jax.inference.sampling.generate import sample_text
from craft_jax.inference.sampling.settings import SampleSettings
from craft_jax.model.sharding import mesh as mesh_lib
from craft_jax.train.setup import Setup
from craft_jax.train.state import State


def draw(setup: Setup, state: State) -> str | None:
  """Prompt and continuation by `log.sample_...`. All processes.

  None where no sample is asked for, or this is not the first process. The
  same for a state whenever it is drawn.
  """
  log = setup.cfg.log
  if not log.sample_chars:
    return None
  params = mesh_lib.whole_on_first(state.eval_params)
  if params is None:
    return None
  return log.sample_prompt + sample_text(
    setup.model,
    params,
    setup.corpus.vocabulary,
    log.sample_prompt,
    log.sample_chars,
    setup.cfg.seed,
    SampleSettings(log.sample_temperature, end=False),
    setup.corpus.documents > 1,
  )
