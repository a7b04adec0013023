"""A process that trains a few steps whenever it is told to, and times them.

A peer runs in a process of its own, so that its threads and its memory are its
own; the benchmark asks one after the other.
"""

import json
import resource
import sys
import time
from collections.abc import Callable
from typing import Any


def serve(run: Callable[[], Any], **facts: Any) -> None:
  """Warms up, prints what is known, then runs once per line read.

  Each answer is a JSON line. The first holds `facts` and `warm_up_seconds`, the
  further ones `seconds` and `peak_bytes`, the most memory held so far.

  Args:
    run: does the work, and returns when it is done.
    **facts: about the peer, in JSON values.
  """
  begin = time.perf_counter()
  run()
  _say(facts | {'warm_up_seconds': time.perf_counter() - begin})
  for _ in sys.stdin:
    begin = time.perf_counter()
    run()
    seconds = time.perf_counter() - begin
    _say({'seconds': seconds, 'peak_bytes': _peak_bytes()})


def _peak_bytes() -> int:
  """Of the accelerator where a library in use has one, else of the process."""
  if (torch := sys.modules.get('torch')) and torch.cuda.is_available():
    return torch.cuda.max_memory_allocated()
  if jax := sys.modules.get('jax'):
    stats = jax.local_devices()[0].memory_stats()
    if stats and 'peak_bytes_in_use' in stats:
      return stats['peak_bytes_in_use']
  return 1024 * resource.getrusage(resource.RUSAGE_SELF).ru_maxrss


def _say(answer: dict[str, Any]) -> None:
  print(json.dumps(answer), flush=True)
