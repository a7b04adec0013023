"""Serve a trained model over HTTP, with OpenAI's completions API.

Requests are batched continuously, and no text depends on the other requests.
The server listens on this machine only, unless --host is given; without keys
anyone who can reach the port can use it. Ctrl-C or SIGTERM finishes running
requests, refuses new ones and exits with 0. The root URL is a playground.

examples:
  craft serve --workdir=runs/first
  craft serve --workdir=runs/first --host=0.0.0.0 --allowed-host=models.lan \\
    --keys-file=keys.txt
"""

import argparse
import dataclasses
import os
import pathlib
import re

from craft_jax.cli import parser as parser_lib
from craft_jax.cli import trained_flags
from craft_jax.errors import UserError
from craft_jax.runtime import extras
from craft_jax.serve.admission import Limits

SUMMARY = "serve a trained model over HTTP with OpenAI's API"
_KEYS = 'CRAFT_API_KEYS'


def add_arguments(parser: argparse.ArgumentParser) -> None:
  """Adds the flags of the command."""
  trained_flags.add_arguments(parser)
  trained_flags.add_weights(parser)
  trained_flags.add_kv_cache(parser)
  flag = parser_lib.group(parser, 'server').add_argument
  flag('--host', default='127.0.0.1', help='address to listen on')
  flag('--port', type=int, default=8000, help='port; 0 is any free one')
  flag('--name', help='model name (default: the name of the run directory)')
  flag('--slots', type=int, default=16, help='texts decoded at once')
  flag(
    '--chat',
    action='store_true',
    help='also serve /v1/chat/completions, as the continuation of a play',
  )
  flag(
    '--reload',
    type=float,
    default=0,
    metavar='SECONDS',
    help='interval between checks for a newer checkpoint; 0 disables them',
  )
  flag = parser_lib.group(parser, 'access').add_argument
  flag(
    '--keys-file',
    metavar='FILE',
    help='API keys, one per line (default: comma-separated '
    f'{_KEYS}, else none)',
  )
  flag(
    '--allowed-host',
    action='append',
    default=[],
    metavar='NAME',
    help='allowed Host header besides those of this machine; * is any; may be '
    'repeated',
  )
  flag(
    '--allowed-origin',
    action='append',
    default=[],
    metavar='URL',
    help='allowed origin for CORS; may be repeated (default: none)',
  )
  sizes = parser_lib.group(parser, 'limits')
  times = parser_lib.group(parser, 'time limits')
  for field in dataclasses.fields(Limits):
    ((unit, says),) = field.metadata.items()
    shown = f'{field.default:g}' if unit == 'SECONDS' else field.default
    kind = times if unit == 'SECONDS' else sizes
    kind.add_argument(
      f'--{field.name.replace("_", "-")}',
      type=type(field.default),
      default=field.default,
      metavar=unit,
      help=f'{says} (default: {shown})',
    )


def run(args: argparse.Namespace) -> int:
  """Runs the server; returns the exit code."""
  keys = _keys(args.keys_file)
  for origin in args.allowed_origin:
    if not re.fullmatch(r'https?://[^\s/*@]+', origin):
      raise UserError(
        f'--allowed-origin={origin} must be an origin without a path, such as '
        'https://example.org'
      )
  if not 0 <= args.port < 1 << 16:
    raise UserError(f'--port={args.port} must be from 0 to 65535')
  if not 1 <= args.slots <= 4096:
    raise UserError(f'--slots={args.slots} must be from 1 to 4096')
  with extras.needed('craft serve', 'serve'):
    from craft_jax.serve import start
  names = [field.name for field in dataclasses.fields(Limits)]
  limits = Limits(**{name: getattr(args, name) for name in names})
  return start.start(args, keys, limits)


def _keys(path: str | None) -> list[str]:
  """Reads API keys from a file or from the environment."""
  if path is not None:
    lines = pathlib.Path(path).read_text('utf-8', 'replace').splitlines()
    keys = [line.strip() for line in lines if line.strip()]
    if not keys:
      raise UserError(f'{path} has no keys; write one per line')
  else:
    keys = [key.strip() for key in os.environ.get(_KEYS, '').split(',')]
    keys = [key for key in keys if key]
    if _KEYS in os.environ and not keys:
      raise UserError(f'{_KEYS} is set but has no keys; unset it to use none')
  for key in keys:
    if not (key.isascii() and key.isprintable() and len(key) >= 16):
      raise UserError(
        'a key must be at least 16 printable ASCII characters; make one with '
        'python -c "import secrets; print(secrets.token_urlsafe())"'
      )
  return keys
