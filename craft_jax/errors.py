"""The exceptions that end a command without a traceback.

`craft_jax.main` prints their one line; bugs raise anything else and keep
their traceback.
"""


class UserError(Exception):
  """A mistake in the input: what is wrong and what to do. Exit code 2."""


class RunFailed(Exception):
  """A run that cannot go on, through no mistake in the input. Exit code 1."""
