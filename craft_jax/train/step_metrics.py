"""Metrics of training steps, computed on the host from sums of the device."""

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

_CALL_SECONDS = 1.0  # target of train.steps_per_call=0
_SETTLING = 6  # dispatches after which one takes about that long
_NORMS = ('grad_norm', 'update_norm', 'param_norm')


class Pace:
  """Times dispatches and chooses the number of steps of the next one.

  Clocks differ between processes, which have to dispatch the same number of
  steps. Therefore only `agree` changes `steps`.

  Attributes:
    steps: steps of the next dispatch, equal in all processes.
    seconds: time spent in dispatches, without compilation and evaluation.
    done: steps of those dispatches.
  """

  def __init__(self, steps_per_call: int, max_steps: int):
    """Args:
    steps_per_call: steps per dispatch; 0 aims at one second per dispatch.
    max_steps: upper bound on the number that is chosen.
    """
    self.steps = self._ideal = steps_per_call or 1
    self._settling_calls = _SETTLING if distributed.several() else 0
    self.seconds, self.done = 0.0, 0
    self._fixed, self._max = bool(steps_per_call), max_steps
    self._last_end = -np.inf

  @property
  def settling(self) -> bool:
    """Whether several processes still search for the number of steps.

    They then wait for each dispatch before they agree on the next.
    """
    return self._settling_calls > 0 and not self._fixed

  def finished(self, count: int, dispatched: float) -> float:
    """Records that a dispatch of `count` steps ended now; returns its seconds.

    Dispatches are queued: one starts when its predecessor ends.
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
    """Sets `steps` to the number that process 0 has found.

    All processes must call it at the same step, with no dispatch running.
    """
    self.steps = distributed.of_first(self._ideal)


class Clock:
  """Seconds that a run has taken, over all its starts."""

  def __init__(self, seconds: float):
    """Args:
    seconds: seconds at the step from which the run resumes.
    """
    self._began = time.perf_counter() - seconds

  def __call__(self) -> float:
    """Seconds so far, including compilation, evaluation and saving."""
    return time.perf_counter() - self._began


class StepMetrics:
  """Computes the logged metrics of steps from their sums."""

  def __init__(
    self,
    cfg: Config,
    corpus: Corpus,
    schedule: Callable[[Any], Any],
    flops_per_token: float,
    peak: tuple[float | None, str],
  ):
    """Args:
    cfg: run settings.
    corpus: corpus of the run.
    schedule: learning rate by step, counted from 0.
    flops_per_token: FLOPs of the model per token, forward and backward.
    peak: peak FLOP/s of a device in the run's precision, None if unknown, and
      the source of that number.
    """
    train = corpus.train
    self._tokens_per_step = cfg.train.batch_size * cfg.model.context
    self._train_tokens = len(train.tokens)
    self._chars_per_token = train.num_chars / len(train.tokens)
    # Of the targets that count, which are not all tokens of pairs.
    self._chars_per_target = train.num_chars / train.num_learnt
    self._bytes_per_target = train.num_bytes / train.num_learnt
    self._withheld = corpus.withheld
    self._schedule = schedule
    self.flops_per_token = flops_per_token
    device_peak, self.peak_source = peak
    self._peak = device_peak and device_peak * jax.device_count()

  @property
  def units(self) -> dict[str, float]:
    """Conversion factors between steps, tokens, characters and FLOPs."""
    return {
      'tokens_per_step': self._tokens_per_step,
      'train_tokens': self._train_tokens,
      'chars_per_token': self._chars_per_token,
      'flops_per_token': self.flops_per_token,
    }

  def of_steps(self, sums: Mapping[str, Any], step: int) -> dict[str, float]:
    """Metrics from sums over one or more steps that end with `step`.

    `loss` is the training objective and `nll` the negative log-likelihood, both
    in nats per token. Bits per character and byte use the average characters
    and bytes per token of the training split.
    """
    count = float(sums['count'])
    text = {'chars': count * self._chars_per_target}
    if not self._withheld:
      text['bytes'] = count * self._bytes_per_target
    found = metric_table.of_sums({**sums, **text}, metric_table.TRAINING)
    found['learning_rate'] = float(self._schedule(step - 1))
    return {name: value for name, value in found.items() if value is not None}

  def norms(self, values: Mapping[str, Any]) -> dict[str, float]:
    """Global norms of a step, as far as computed, and its batch's checksum."""
    norms = {name: float(values[name]) for name in _NORMS}
    if not norms['param_norm']:
      norms = {'grad_norm': norms['grad_norm']}
    return norms | {'batch': int(values['batch'])}

  def speed(self, steps: int, seconds: float) -> dict[str, float]:
    """Characters per second and, if the peak is known, utilisation (MFU)."""
    tokens = steps * self._tokens_per_step / seconds
    found = {'chars_per_second': tokens * self._chars_per_token}
    if self._peak:
      found['utilisation'] = tokens * self.flops_per_token / self._peak
    return found


def memory_bytes() -> dict[str, int]:
  """Peak memory of the first device or, on a CPU, of this process."""
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
