"""A text, and a run that nothing disturbs."""

import pathlib
import sys

import pytest

sys.path.insert(0, str(pathlib.Path(__file__).parent))

import runs


@pytest.fixture(scope='session')
def text(tmp_path_factory):
  path = tmp_path_factory.mktemp('text') / 'squares.txt'
  path.write_text(runs.TEXT)
  return path


@pytest.fixture(scope='session')
def straight(tmp_path_factory, text):
  """The run directory of the undisturbed run."""
  return runs.whole(tmp_path_factory.mktemp('straight'), text)
