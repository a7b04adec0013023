"""`craft serve` that notes which callbacks of its event loop take long.

In processor time of the loop's thread: that of others does not count, however
busy the machine is. One line of JSON in the file `TIMED` for each.
"""

import asyncio
import json
import os
import time

from craft_jax import main

LONG = 0.03  # seconds


def _watch():
  run = asyncio.Handle._run

  def timed(handle):
    begin = time.thread_time()
    try:
      run(handle)
    finally:
      spent = time.thread_time() - begin
      if spent > LONG:
        with open(os.environ['TIMED'], 'a') as file:
          print(json.dumps([spent, repr(handle)[:300]]), file=file)

  asyncio.Handle._run = timed


if __name__ == '__main__':
  _watch()
  main.console()
