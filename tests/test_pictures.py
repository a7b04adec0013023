"""The pictures of the pages: all are shown, and made by docs/pictures.py."""

import os
import pathlib
import re
import runpy
import subprocess
import sys
import xml.etree.ElementTree

import pytest

_ROOT = pathlib.Path(__file__).parents[1]
_SCRIPT = _ROOT / 'docs' / 'pictures.py'
_IMAGES = _ROOT / 'docs' / 'images'
_PAGES = [_ROOT / 'README.md', *sorted((_ROOT / 'docs').glob('*.md'))]
_SHOWN = re.compile(r'!\[([^\]]*)\]\(([^)\s]+)\)')


@pytest.fixture(scope='module')
def script():
  """The names of docs/pictures.py."""
  return runpy.run_path(str(_SCRIPT))


def _draw(*args, **env):
  return subprocess.run(
    [sys.executable, str(_SCRIPT), *args],
    env=os.environ | env,
    capture_output=True,
    text=True,
    timeout=300,
  )


def _text(path):
  """What a picture of a terminal says, without its spaces."""
  root = xml.etree.ElementTree.parse(path).getroot()
  return re.sub(r'\s+', '', ''.join(root.itertext()))


def test_what_is_shown_is_what_the_script_makes(script):
  shown = {
    (page.parent / target).resolve()
    for page in _PAGES
    for _, target in _SHOWN.findall(page.read_text(encoding='utf-8'))
  }
  assert shown == {_IMAGES / name for name in script['PICTURES']}
  assert shown == set(_IMAGES.iterdir())


def test_pictures_are_described():
  for page in _PAGES:
    for words, target in _SHOWN.findall(page.read_text(encoding='utf-8')):
      assert len(words.split()) >= 3, f'{page.name}: {target}'


def test_they_are_small_and_load_nothing():
  assert sum(path.stat().st_size for path in _IMAGES.iterdir()) < 1.5e6
  for path in _IMAGES.glob('*.svg'):
    text = path.read_text(encoding='utf-8')
    assert re.findall(r'https?://[^"\s]*', text) == [
      'http://www.w3.org/2000/svg'
    ]
    assert 'url(' not in text.replace('url(#', '')


def test_the_screen_at_a_share_of_the_steps(script):
  bar = '━━──  {}/4  0:01 left  loss 1.0'
  ran = '\x1b[?25l' + '\r\x1b[2K'.join([
    '────  0/4', 'compiled\n────  0/4', bar.format(1), 'a sample\nof two\n'
    + bar.format(2), bar.format(3), bar.format(4) + '\n\x1b[?25hdone\n',
  ])  # fmt: skip
  assert script['at_share'](ran, 0.5) == (
    'compiled\na sample\nof two\n' + bar.format(2)
  )


def test_a_name_that_is_none():
  done = _draw('trian.svg')
  assert done.returncode == 2 and 'no picture trian.svg' in done.stderr


def test_without_a_browser_one_line_says_so(tmp_path):
  done = _draw(
    'report.png',
    f'--output={tmp_path}',
    PATH='',
    PLAYWRIGHT_BROWSERS_PATH=str(tmp_path),
  )
  assert done.returncode == 0, done.stderr
  (line,) = done.stdout.splitlines()
  assert line.startswith('report.png: left out, it needs Chromium')
  assert not list(tmp_path.iterdir())


@pytest.mark.slow
def test_the_script_draws(tmp_path):
  names = ['train.svg', 'score.svg']
  done = _draw(*names, '--steps=60', f'--output={tmp_path}')
  assert done.returncode == 0, done.stderr
  # The bar in the middle of the run, as a person sees it.
  bar = _text(tmp_path / 'train.svg')
  assert (
    re.search(r'━+─+\d+/60\d:\d\dleftloss\d\.\d+', bar)
    and bar.count('/60') == 1
  )
  said = _text(tmp_path / 'score.svg')
  assert '47characters,47bytes' in said and 'bits:below0.5' in said
  # Colours, which a pipe would not have.
  assert '#e31a1c' in (tmp_path / 'score.svg').read_text()
