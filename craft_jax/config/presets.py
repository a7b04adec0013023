"""Named model sizes, which set width, depth, heads and learning rate."""

from typing import TYPE_CHECKING

from craft_jax.errors import UserError, hint

if TYPE_CHECKING:
  import ml_collections

# Name: (width, depth). The blocks have about 12 x depth x width^2 parameters.
SIZES: dict[str, tuple[int, int]] = {
  'nano': (128, 4),  # 0.8 M
  'micro': (256, 6),  # 4.7 M
  'small': (384, 6),  # 10.6 M
  'medium': (768, 12),  # 85 M
  'large': (1024, 24),  # 302 M
}
_BASE_WIDTH, _BASE_RATE = 128, 3e-3


def set_size(config: 'ml_collections.ConfigDict', name: str) -> None:
  """Sets `model.width`, `depth`, `num_heads` and `optim.learning_rate`.

  The head dim is 64, or 32 in `nano`, which would have only two heads
  otherwise. The learning rate of AdamW falls with the square root of the
  width; that of Muon is independent of it, since its updates are orthogonal.

  Args:
    config: changed in place.
    name: a key of `SIZES`; '' changes nothing.

  Raises:
    UserError: the size does not exist.
  """
  if not name:
    return
  if name not in SIZES:
    raise UserError(
      f'unknown variant {name!r}{hint(name, SIZES)}; the sizes are '
      + ', '.join(SIZES)
    )
  width, depth = SIZES[name]
  config.model.width, config.model.depth = width, depth
  config.model.num_heads = width // (32 if width < 192 else 64)
  config.optim.learning_rate = _BASE_RATE * (_BASE_WIDTH / width) ** 0.5
