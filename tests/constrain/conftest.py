"""Makes oracle.py and schemas.py importable, and shares two vocabularies."""

import pathlib
import string
import sys

import pytest

from craft_jax.data.text.vocabulary import Vocabulary

sys.path.insert(0, str(pathlib.Path(__file__).parent))


@pytest.fixture(scope='session')
def chars():
  """ASCII that can be printed, some white space, and some that is not."""
  printable = string.ascii_letters + string.digits + string.punctuation
  return Vocabulary('char', f'{printable} \n\té漢😀')


@pytest.fixture(scope='session')
def byte():
  return Vocabulary.byte()


@pytest.fixture(params=['char', 'byte'])
def vocabulary(request, chars):
  return chars if request.param == 'char' else Vocabulary.byte()
