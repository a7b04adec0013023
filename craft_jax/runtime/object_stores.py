"""Object stores: whether one can be used, and what its failures say."""

import contextlib
import errno
import importlib
import logging
import os
from collections.abc import Iterator

from craft_jax.errors import UserError, one_line
from craft_jax.runtime import extras

# By the scheme of a URL: the module that epath needs for it.
_MODULES = {'gs': 'gcsfs', 's3': 's3fs'}
# Whose errors tell that a store does not answer, or refuses.
_LIBRARIES = (
  'aiobotocore', 'aiohttp', 'botocore', 'gcsfs', 'google', 'requests', 's3fs',
)  # fmt: skip
_LOGGERS = ('aiobotocore', 'botocore', 'gcsfs', 'google.auth', 's3fs')
_loaded: set[str] = set()  # schemes


class StoreError(OSError):
  """A store, or the way there, did not do what was asked."""

  def __init__(self, error: BaseException):
    super().__init__(errno.EIO, one_line(error))


def is_failure(error: BaseException) -> bool:
  """Whether it is a store's: no bug, and no file that is only missing."""
  if isinstance(error, StoreError):
    return True
  if not _loaded:
    return False
  # What the system raises has a number, what they make of an answer has none;
  # or it has a cause, which is theirs.
  made = isinstance(error, OSError) and (
    error.errno is None or _is_theirs(error.__cause__)
  )
  return made or _is_theirs(error)


def _is_theirs(error: BaseException | None) -> bool:
  return type(error).__module__.partition('.')[0] in _LIBRARIES


def message(error: BaseException) -> str:
  """A failure in one line, with what to look at."""
  said = error.strerror if isinstance(error, StoreError) else one_line(error)
  return (
    f'the object store cannot be used ({said}); look at the name of the '
    'bucket, the credentials and the network'
  )


def modified(path: os.PathLike[str] | str) -> float:
  """When an object was written, in seconds since 1970."""
  import fsspec

  store, name = fsspec.url_to_fs(os.fspath(path))
  return store.modified(name).timestamp()


@contextlib.contextmanager
def failing_as_os_errors() -> Iterator[None]:
  """Raises `StoreError` in place of what the libraries raise."""
  try:
    yield
  except Exception as e:
    if is_failure(e):
      raise StoreError(e) from e
    raise


def load(path: str, name: str) -> None:
  """Imports what reads and writes there.

  Args:
    path: a URL of a scheme that can be used.
    name: of the flag or setting that it was given as.

  Raises:
    UserError: it is not installed.
  """
  scheme = path.partition(':')[0]
  with extras.needed(f'{name}={path}', 'remote'):
    import fsspec.config

    importlib.import_module(_MODULES[scheme])
  # What another process has written since would not be there: rows of a run of
  # a sweep, a checkpoint that a server waits for.
  options = {'use_listings_cache': False}
  fsspec.config.conf[scheme] = fsspec.config.conf.get(scheme, {}) | options
  _loaded.add(scheme)
  for logger in _LOGGERS:  # they print the traceback of what they raise
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
  """Asks the store for one name below `path`.

  Later `exists` and `is_dir` would take every failure for a no.

  Raises:
    UserError: there is no such bucket, or it may not be read, or nobody
      answers, after some retries.
  """
  scheme, _, rest = os.fspath(path).partition('://')
  bucket, _, prefix = rest.partition('/')
  try:
    _ASK[scheme](bucket, prefix)
  except FileNotFoundError as e:
    raise UserError(
      f'{name}={path}: there is no bucket {bucket}; make it, or mend the name'
    ) from e
  except Exception as e:
    if not is_failure(e):
      raise
    raise UserError(f'{name}={path}: {message(e)}') from e
