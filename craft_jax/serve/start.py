"""Starts a server of a run directory."""

import argparse
import asyncio
import contextlib
import gc
import os
import pathlib
import resource
import sys
from collections.abc import Sequence

from craft_jax.data.sources import cache_folder
from craft_jax.errors import UserError
from craft_jax.inference.load import Trained, load_model
from craft_jax.runs import checkpoint
from craft_jax.runtime import compilation_cache
from craft_jax.serve import app as app_lib
from craft_jax.serve import server
from craft_jax.serve.admission import Limits
from craft_jax.serve.logs import Log
from craft_jax.serve.middleware import LOOPBACK, Guard
from craft_jax.serve.service import Model, Service

_OTHER_FILES = 256  # open besides connections


def start(args: argparse.Namespace, keys: Sequence[str], limits: Limits) -> int:
  """Serves until a signal; returns the exit code.

  Args:
    args: the flags of `craft serve`.
    keys: API keys that are accepted; without any, everybody has access.
    limits: what is refused.

  Raises:
    UserError: no such checkpoint, or the port is taken.
  """
  log = Log()
  passed_over = _once(log, 'checkpoint passed over')
  trained = _load(args, args.step, passed_over)
  compilation_cache.use(cache_folder(trained.cfg.data))
  _allow_files(limits.max_connections)
  name = args.name or pathlib.Path(args.workdir).resolve().name
  service = Service(Model.of(trained), name, args.slots, limits, log)
  app = Guard(
    app_lib.build(service, log, args.chat),
    service,
    keys,
    {*LOOPBACK, args.host, *args.allowed_host},
    args.allowed_origin,
    log,
  )

  def ready(port: int) -> None:
    host = f'[{args.host}]' if ':' in args.host else args.host
    log.note(
      'ready', model=name, step=trained.meta.step, port=port,
      constraint_states=service.capacity.most,
    )  # fmt: skip
    lock = 'with a key' if keys else 'without a key'
    if not keys and args.host not in LOOPBACK:
      log.note('open to all who reach it', host=args.host, port=port)
    print(f'serving {name} {lock} at http://{host}:{port}/', flush=True)

  async def all() -> None:
    await service.start()
    gc.collect()
    gc.freeze()  # collections skip what lives as long as the server
    watcher = asyncio.create_task(_follow(args, service, log, passed_over))
    try:
      await server.serve(app, service, args.host, args.port, ready)
    finally:
      watcher.cancel()
      with contextlib.suppress(asyncio.CancelledError):
        await watcher

  try:
    asyncio.run(all())
  except SystemExit as e:  # uvicorn's, for what it cannot bind
    raise UserError(
      f'cannot listen on {args.host} port {args.port}; another program may, '
      'give another --port'
    ) from e
  log.note('ended')
  if service.lingers:  # the interpreter would wait for it
    sys.stdout.flush()
    os._exit(0)
  return 0


def _allow_files(connections: int) -> None:
  """Raises the soft limit of open files if connections need more."""
  soft, hard = resource.getrlimit(resource.RLIMIT_NOFILE)
  wanted = connections + _OTHER_FILES
  if hard != resource.RLIM_INFINITY:
    wanted = min(wanted, hard)
  if soft != resource.RLIM_INFINITY and soft < wanted:
    resource.setrlimit(resource.RLIMIT_NOFILE, (wanted, hard))


def _load(
  args: argparse.Namespace,
  step: checkpoint.Which,
  warn: checkpoint.Warn | None = None,
) -> Trained:
  return load_model(
    args.workdir, step, not args.no_ema, args.weights, args.kv_cache, warn
  )


def _once(log: Log, event: str) -> checkpoint.Warn:
  """A function that logs an error, but never twice."""
  noted = set[str]()

  def note(error: str) -> None:
    if error not in noted:
      noted.add(error)
      log.note(event, error=error)

  return note


async def _follow(
  args: argparse.Namespace,
  service: Service,
  log: Log,
  passed_over: checkpoint.Warn,
) -> None:
  """Loads newer checkpoints as they appear."""
  if not args.reload:
    return
  not_reloaded = _once(log, 'not reloaded')
  refused = service.model.trained.meta.step
  while True:
    await asyncio.sleep(args.reload)
    try:
      step = await asyncio.to_thread(
        checkpoint.resolve_step, args.workdir, args.step, passed_over
      )
      if step in (refused, service.model.trained.meta.step):
        continue
      refused = step  # do not try it twice
      trained = await asyncio.to_thread(_load, args, step)
      if trained.vocabulary != service.model.trained.vocabulary:
        not_reloaded(f'step {step} has another vocabulary')
      else:
        await service.reload(trained)
    except Exception as e:  # the old one is still served
      not_reloaded(repr(e))
