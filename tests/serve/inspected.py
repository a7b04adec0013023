"""`craft serve` that writes what it holds to a file, at SIGUSR1."""

import asyncio
import collections
import gc
import json
import os
import pathlib
import signal
import sys

from craft_jax import main
from craft_jax.serve.service import Service

_OURS = ('craft_jax', 'uvicorn', 'starlette', 'fastapi', 'asyncio', '_asyncio')


def _held(service):
  """Everything that a request occupies, and must give back."""
  worker, admission = service.running, service.admission
  store = worker._engine._device.store
  return {
    'jobs': len(worker._jobs),
    'engine': len(worker._engine._jobs),
    'old engines': len(worker._old),
    'claimed texts': admission.texts,
    'claimed tokens': admission.left,
    'waiting to be compiled': service.compiler._number,
    'waiting on the side': service._side._number,
    'constraints in use': store.num_users,
  }


def _tell(*_):
  gc.collect()
  gc.unfreeze()  # what the server has at its start is looked at too
  objects = gc.get_objects()
  (service,) = (one for one in objects if type(one) is Service)
  kinds = collections.Counter(
    f'{type(one).__module__}.{type(one).__qualname__}'
    for one in objects
    if str(type(one).__module__).partition('.')[0] in _OURS
    # Those that were cancelled are forgotten a hundred at a time.
    and type(one) is not asyncio.TimerHandle
  )
  found = {
    'held': _held(service),
    'objects': kinds,
    'blocks': sys.getallocatedblocks(),
  }
  path = pathlib.Path(os.environ['HELD'])
  path.with_suffix('.new').write_text(json.dumps(found))
  path.with_suffix('.new').rename(path)


if __name__ == '__main__':
  signal.signal(signal.SIGUSR1, _tell)
  main.console()
