"""Optional packages: what is missing, and the command that installs it."""

import contextlib
from collections.abc import Iterator

from craft_jax.errors import UserError


@contextlib.contextmanager
def needed(what: str, extra: str) -> Iterator[None]:
  """Around the imports of what an extra of `pyproject.toml` installs.

  Args:
    what: what the user asked for, such as `--search=bayes`.
    extra: the extra that has it.

  Raises:
    UserError: one of the packages, or one that it needs, is not installed.
  """
  try:
    yield
  except ImportError as e:
    missing = (e.name or str(e)).partition('.')[0]
    if missing == 'craft_jax':
      raise
    raise UserError(
      f'{what} needs {missing}, which is not installed: pip install '
      f"'craft-jax[{extra}]'"
    ) from e
