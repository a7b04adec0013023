"""Object stores: loading their libraries and reporting their failures."""

import contextlib
import errno
import importlib
import logging
import os
from collections.abc import Iterator

from craft_jax.errors import UserError, one_line
from craft_jax.runtime import extras

# Module that epath needs, by URL scheme.
_MODULES = {'gs': 'gcsfs', 's3': 's3fs'}
# Errors of these packages mean that a store fails or denies access.
_LIBRARIES = (
  'aiobotocore', 'aiohttp', 'botocore', 'gcsfs', 'google', 'requests', 's3fs',
)  # fmt: skip
_LOGGERS = ('aiobotocore', 'botocore', 'gcsfs', 'google.auth', 's3fs')
_loaded: set[str] = set()  # schemes


class StoreError(OSError):
  """An operation failed in the object store or on the network."""

  def __init__(self, error: BaseException):
    super().__init__(errno.EIO, one_line(error))


def is_failure(error: BaseException) -> bool:
  """Whether an error is an object store's, and not a bug or a missing file."""
  if isinstance(error, StoreError):
    return True
  if not _loaded:
    return False
  # OSErrors of the system have an errno. Those that the libraries raise have
  # none, or one of the libraries' errors as their cause.
  made = isinstance(error, OSError) and (
    error.errno is None or _is_theirs(error.__cause__)
  )
  return made or _is_theirs(error)


def _is_theirs(error: BaseException | None) -> bool:
  return type(error).__module__.partition('.')[0] in _LIBRARIES


def message(error: BaseException) -> str:
  """Formats a failure as one line that says what to check."""
  said = error.strerror if isinstance(error, StoreError) else one_line(error)
  return (
    f'the object store cannot be used ({said}); check the name of the bucket, '
    'the credentials and the network'
  )


def modified(path: os.PathLike[str] | str) -> float:
  """Modification time of an object, in seconds since 1970."""
  import fsspec

  store, name = fsspec.url_to_fs(os.fspath(path))
  return store.modified(name).timestamp()


@contextlib.contextmanager
def failing_as_os_errors() -> Iterator[None]:
  """Turns failures of the store's libraries into `StoreError`."""
  try:
    yield
  except Exception as e:
    if is_failure(e):
      raise StoreError(e) from e
    raise


def load(path: str, name: str) -> None:
  """Imports and configures the library for a URL.

  Args:
    path: URL with a supported scheme.
    name: flag or setting, for error messages.

  Raises:
    UserError: the library is not installed.
  """
  scheme = path.partition(':')[0]
  with extras.needed(f'{name}={path}', 'remote'):
    import fsspec.config

    importlib.import_module(_MODULES[scheme])
  # Cached listings would hide what other processes write: rows of a sweep's
  # run, or a checkpoint that a server waits for.
  options = {'use_listings_cache': False}
  fsspec.config.conf[scheme] = fsspec.config.conf.get(scheme, {}) | options
  _loaded.add(scheme)
  for logger in _LOGGERS:  # they print tracebacks of errors they also raise
    logging.getLogger(logger).setLevel(logging.CRITICAL)


def _ask_google(bucket: str, prefix: str) -> None:
  import gcsfs

  gcsfs.GCSFileSystem().call(
    'GET', 'b/{}/o', bucket, prefix=prefix, maxResults=1, json_out=True
  )


def _ask_s3(bucket: str, prefix: str) -> None:
  import s3fs

  s3fs.S3FileSystem().call_s3(
    'list_objects_v2', Bucket=bucket, Prefix=prefix, MaxKeys=1
  )


_ASK = {'gs': _ask_google, 's3': _ask_s3}


def check_answers(path: os.PathLike[str] | str, name: str) -> None:
  """Checks access by listing one object below `path`.

  Without it, `exists` and `is_dir` would report every failure as False.

  Raises:
    UserError: the bucket does not exist or may not be read, or the store does
      not respond after some retries.
  """
  scheme, _, rest = os.fspath(path).partition('://')
  bucket, _, prefix = rest.partition('/')
  try:
    _ASK[scheme](bucket, prefix)
  except FileNotFoundError as e:
    raise UserError(
      f'{name}={path}: there is no bucket {bucket}; create it or fix the name'
    ) from e
  except Exception as e:
    if not is_failure(e):
      raise
    raise UserError(f'{name}={path}: {message(e)}') from e
