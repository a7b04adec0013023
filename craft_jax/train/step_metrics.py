"""What a run reports of its steps: from sums on the device to metrics."""

import sys
import time
from collections.abc import Callable, Mapping
from typing import Any

import jax
import numpy as np

from craft_jax.config.settings import Config
from craft_jax.data.corpus import Corpus
from craft_jax.runs import metric_table
from craft_jax.runtime import distributed

_CALL_SECONDS = 1.0  # what steps_per_call=0 aims at
_SETTLING = 6  # calls after which one takes about that long
_NORMS = ('grad_norm', 'update_norm', 'param_norm')


class Pace:
  """Times dispatches and chooses how many steps the next one takes.

  Every process dispatches the same number of steps, so `steps` changes in
  `agree` alone: each has a clock of its own.

  Attributes:
    steps: of the next dispatch, the same in all processes.
    settling: whether several processes still look for the number.
    seconds: spent in dispatches so far, compilation and evaluation excluded.
    done: steps of those dispatches.
  """

  def __init__(self, steps_per_call: int, max_steps: int):
    """Args:
    steps_per_call: fixed, or 0 to aim at one second.
    max_steps: upper bound of what is chosen.
    """
    self.steps = self._ideal = steps_per_call or 1
    self._settling_calls = _SETTLING if distributed.several() else 0
    self.seconds, self.done = 0.0, 0
    self._fixed, self._max = bool(steps_per_call), max_steps
    self._last_end = -np.inf

  @property
  def settling(self) -> bool:
    """Whether to wait for each call and agree on the next one's steps."""
    return self._settling_calls > 0 and not self._fixed

  def finished(self, count: int, dispatched: float) -> float:
    """Notes that a call of `count` steps ended now; seconds it took.

    Calls overlap: one starts when the call before it ends.
    """
    end = time.perf_counter()
    seconds = max(end - max(dispatched, self._last_end), 1e-9)
    self._last_end = end
    self.seconds += seconds
    self.done += count
    self._settling_calls -= 1
    if not self._fixed:
      ideal = count * _CALL_SECONDS / seconds
      self._ideal = int(np.clip(ideal, 1, min(self._max, 8 * self.steps)))
    return seconds

  def agree(self) -> None:
    """Takes the number that process 0 found. All processes, at the same step.

    In a run of several processes it waits for all of them, so no call may be
    under way.
    """
    self.steps = distributed.of_first(self._ideal)


class Clock:
  """Seconds that a run has been going, over all its starts."""

  def __init__(self, seconds: float):
    """Args:
    seconds: at the step that this start of the program goes on from.
    """
    self._began = time.perf_counter() - seconds

  def __call__(self) -> float:
    """Seconds so far: steps, compilation, evaluation, saving."""
    return time.perf_counter() - self._began


class StepMetrics:
  """Turns the sums of steps into the metrics that are logged."""

  def __init__(
    self,
    cfg: Config,
    corpus: Corpus,
    schedule: Callable[[Any], Any],
    flops_per_token: float,
    peak: tuple[float | None, str],
  ):
    """Args:
    cfg: the run.
    corpus: what it reads.
    schedule: the learning rate of a step, from 0.
    flops_per_token: of the model, forward and backward.
    peak: FLOP/s of a device in the precision of the run and where that figure
      is from; None where it is not known.
    """
    train = corpus.train
    self._tokens_per_step = cfg.train.batch_size * cfg.model.context
    self._train_tokens = len(train.tokens)
    self._chars_per_token = train.num_chars / len(train.tokens)
    self._bytes_per_token = train.num_bytes / len(train.tokens)
    self._withheld = corpus.withheld
    self._schedule = schedule
    self.flops_per_token = flops_per_token
    device_peak, self.peak_source = peak
    self._peak = device_peak and device_peak * jax.device_count()

  @property
  def units(self) -> dict[str, float]:
    """What relates steps, tokens, characters and FLOPs of this run."""
    return {
      'tokens_per_step': self._tokens_per_step,
      'train_tokens': self._train_tokens,
      'chars_per_token': self._chars_per_token,
      'flops_per_token': self.flops_per_token,
    }

  def of_steps(self, sums: Mapping[str, Any], step: int) -> dict[str, float]:
    """The metrics of sums over one or more steps, the last of which is `step`.

    `loss` is the training objective and `nll` the plain negative
    log-likelihood, in nats per token; bits per character and byte use the
    training split's own ratio of characters and bytes to tokens.
    """
    count = float(sums['count'])
    text = {'chars': count * self._chars_per_token}
    if not self._withheld:
      text['bytes'] = count * self._bytes_per_token
    found = metric_table.of_sums({**sums, **text}, metric_table.TRAINING)
    found['learning_rate'] = float(self._schedule(step - 1))
    return {name: value for name, value in found.items() if value is not None}

  def norms(self, values: Mapping[str, Any]) -> dict[str, float]:
    """Global norms of one step where measured, and its batch's checksum."""
    norms = {name: float(values[name]) for name in _NORMS}
    if not norms['param_norm']:
      norms = {'grad_norm': norms['grad_norm']}
    return norms | {'batch': int(values['batch'])}

  def speed(self, steps: int, seconds: float) -> dict[str, float]:
    """Characters per second and, where the peak is known, utilisation."""
    tokens = steps * self._tokens_per_step / seconds
    found = {'chars_per_second': tokens * self._chars_per_token}
    if self._peak:
      found['utilisation'] = tokens * self.flops_per_token / self._peak
    return found


def memory_bytes() -> dict[str, int]:
  """Peak memory: of each process where it is the CPU's, of the device else."""
  stats = jax.local_devices()[0].memory_stats()
  if stats and 'peak_bytes_in_use' in stats:
    return {'peak_device_bytes': stats['peak_bytes_in_use']}
  try:
    import resource
  except ImportError:  # on Windows
    return {}
  peak = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
  return {
    'peak_process_bytes': peak * (1 if sys.platform == 'darwin' else 1024)
  }
