"""How many checkpoints stay, and how many there are at most."""

from hypothesis import given
from hypothesis import strategies as st

from craft_jax.config.settings import Checkpoint
from craft_jax.runs.checkpoint import retention


@given(
  steps=st.lists(st.integers(1, 60), min_size=1, unique=True).map(sorted),
  keep=st.integers(1, 4),
  every=st.integers(0, 9),
  data=st.data(),
)
def test_there_are_never_more_than_the_most(steps, keep, every, data):
  best = data.draw(st.sampled_from([None, *steps]))
  kept = retention.kept(steps, best, keep, every)
  assert kept <= set(steps) and set(steps[-keep:]) <= kept
  assert best is None or best in kept
  assert len(kept) + 1 <= retention.most(Checkpoint(keep=keep, every=every))


def test_as_many_as_that_can_be():
  kept = retention.kept([1, 5, 6, 7], 1, keep=2, every=5)
  assert kept == {1, 5, 6, 7}
  assert retention.most(Checkpoint(keep=2, every=5)) == len(kept) + 1
