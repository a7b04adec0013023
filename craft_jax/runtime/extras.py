"""Optional dependencies, with an error that tells how to install them."""

import contextlib
from collections.abc import Iterator

from craft_jax.errors import UserError


@contextlib.contextmanager
def needed(what: str, extra: str) -> Iterator[None]:
  """Context for imports of packages that an extra installs.

  Args:
    what: what the user asked for, such as `--search=bayes`.
    extra: name of the extra in `pyproject.toml`.

  Raises:
    UserError: a package or one of its dependencies is not installed.
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
