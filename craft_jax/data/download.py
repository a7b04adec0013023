"""Downloads a file and verifies it before it is put in place."""

import hashlib
import http.client
import os
import pathlib
import secrets
import urllib.error
import urllib.request
from typing import BinaryIO

from craft_jax.errors import UserError

TIMEOUT = 20.0  # seconds without receiving a byte
_CHUNK = 1 << 20


def fetch(
  url: str,
  path: pathlib.Path,
  sha256: str,
  *,
  remedy: str = '',
  timeout: float = TIMEOUT,
) -> None:
  """Downloads `url` to `path`, unless `path` already is the expected file.

  Args:
    url: http, https or file URL.
    path: target file; its folder is created.
    sha256: expected digest of the file, in hexadecimal.
    remedy: alternative for the user, appended to error messages.
    timeout: seconds without receiving a byte.

  Raises:
    UserError: the download fails, its digest differs, or the target cannot be
      written. `path` is then unchanged.
  """
  if path.is_file() and _digest(path) == sha256:
    return
  remedy = f', {remedy}' if remedy else ''
  # Not `tempfile`: only the owner can read its files.
  partial = path.parent / f'.partial-{secrets.token_hex(8)}'
  try:
    path.parent.mkdir(parents=True, exist_ok=True)
    partial.touch(exist_ok=False)
  except OSError as e:
    raise UserError(
      f'cannot write {path.parent}: {e.strerror}; set '
      f'--config.data.cache_dir=DIR{remedy}'
    ) from e
  try:
    with open(partial, 'wb') as file:
      found = _copy(url, file, timeout)
      file.flush()
      os.fsync(file.fileno())
    if found != sha256:
      raise UserError(
        f'{url} is not the expected file (sha256 {found[:12]}, not '
        f'{sha256[:12]}); try again{remedy}'
      )
    os.replace(partial, path)
  except (OSError, http.client.HTTPException) as e:
    if isinstance(e, urllib.error.HTTPError):
      e.close()
    reason = getattr(e, 'reason', None) or e
    raise UserError(
      f'cannot download {url} ({" ".join(str(reason).split())}); check the '
      f'network{remedy}'
    ) from e
  finally:
    partial.unlink(missing_ok=True)


def _copy(url: str, file: BinaryIO, timeout: float) -> str:
  """Writes the response to `file` and returns its sha256."""
  digest = hashlib.sha256()
  with urllib.request.urlopen(url, timeout=timeout) as answer:
    while chunk := answer.read(_CHUNK):
      digest.update(chunk)
      file.write(chunk)
  return digest.hexdigest()


def _digest(path: pathlib.Path) -> str:
  with open(path, 'rb') as file:
    return hashlib.file_digest(file, 'sha256').hexdigest()
