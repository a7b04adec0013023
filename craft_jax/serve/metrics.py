"""The metrics at /metrics, for Prometheus."""

import jax
import prometheus_client as prometheus

_COMPILED = '/jax/core/compile/backend_compile_duration'
_FIRST = (0.01, 0.025, 0.05, 0.1, 0.25, 0.5, 1, 2.5, 5, 10, 30)  # seconds
_EACH = (0.0005, 0.001, 0.0025, 0.005, 0.01, 0.025, 0.05, 0.1, 0.25, 0.5, 1)


class Metrics:
  """All metrics, each with its description.

  Everything is counted in the event loop except compilations, which happen in
  any thread.

  Attributes:
    num_compiled: programs compiled since `watch_compilations`.
  """

  def __init__(self) -> None:
    self.num_compiled = 0
    self.registry = registry = prometheus.CollectorRegistry()

    def gauge(name: str, says: str) -> prometheus.Gauge:
      return prometheus.Gauge(f'craft_{name}', says, registry=registry)

    def counter(name: str, says: str, *by: str) -> prometheus.Counter:
      return prometheus.Counter(f'craft_{name}', says, by, registry=registry)

    def histogram(
      name: str, says: str, buckets: tuple[float, ...]
    ) -> prometheus.Histogram:
      return prometheus.Histogram(
        f'craft_{name}', says, buckets=buckets, registry=registry
      )

    self.slots = gauge('slots', 'texts that can be written at once')
    self.states = gauge(
      'constraint_states', 'states of constraints that there is room for'
    )
    self.busy = gauge('slots_busy', 'texts that are being written')
    self.waiting = gauge('queue_requests', 'requests that wait for a slot')
    self.rate = gauge(
      'full_rate', 'tokens a second with all slots in use, as last measured'
    )
    self.promised = gauge(
      'promised_wait_seconds', 'what is refused would wait longer than this'
    )
    self.step = gauge('checkpoint_step', 'step of the model that is served')
    self.tokens = counter('tokens', 'tokens written')
    self.characters = counter('characters', 'characters written')
    self.prompt_tokens = counter('prompt_tokens', 'tokens of prompts taken')
    self.requests = counter('requests', 'answers', 'path', 'status')
    self.rejections = counter('rejections', 'requests refused', 'reason')
    self.cancellations = counter(
      'cancellations', 'requests ended before they were finished', 'reason'
    )
    self.dispatches = counter('dispatches', 'calls of the device that write')
    self.failures = counter('failures', 'dispatches that failed')
    self.reloads = counter('reloads', 'newer checkpoints that were taken')
    self.compilations = counter('compilations', 'programs compiled')
    self.first = histogram(
      'first_character_seconds', 'from a request to its first text', _FIRST
    )
    self.each = histogram(
      'character_seconds', 'from one character of a text to the next', _EACH
    )

  def watch_compilations(self) -> None:
    """Counts what JAX compiles from now on, as long as the process lives."""

    def listen(event: str, duration_secs: float, **_: str | int) -> None:
      if event == _COMPILED:
        self.num_compiled += 1
        self.compilations.inc()

    jax.monitoring.register_event_duration_secs_listener(listen)

  def text(self) -> bytes:
    """The metrics in the format of Prometheus."""
    return prometheus.generate_latest(self.registry)


CONTENT_TYPE = prometheus.CONTENT_TYPE_LATEST
