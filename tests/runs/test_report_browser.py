"""The report in a browser: drawn, read out, and nothing loaded."""

import json
import pathlib
import re
import subprocess
import sys

import pytest

_ROOT = pathlib.Path(__file__).parents[2]
EVIL = '<script>document.title = "run"</script>'
LOSSES = (3.0, 2.5, 2.25, 2.125)


@pytest.fixture(scope='module')
def report(run_maker, tmp_path_factory):
  """The file, and the directories of its two runs."""
  folder = tmp_path_factory.mktemp('report')
  make_run = run_maker(folder)
  paths = [
    make_run('a', LOSSES),
    make_run('b', [loss - 0.5 for loss in LOSSES[:2]], {'model.width': 64}),
  ]
  make_run.append(paths[0], {'step': 40, 'text': f'once {EVIL} upon'})
  output = folder / 'runs.html'
  subprocess.run(
    [sys.executable, '-m', 'craft_jax.main', 'runs', 'report',
     *map(str, paths), f'--output={output}'],
    check=True,
    capture_output=True,
  )  # fmt: skip
  return output, paths


@pytest.fixture
def page(browser, report):
  """The page on a desktop; afterwards, that it asked for no other file."""
  asked, complaints = [], []
  page = browser.new_page(viewport={'width': 1200, 'height': 800})
  page.on('request', lambda request: asked.append(request.url))
  page.on('console', lambda message: complaints.append(message.text))
  page.on('pageerror', lambda error: complaints.append(str(error)))
  page.goto(report[0].as_uri())
  yield page
  page.close()
  assert asked == [report[0].as_uri()] and not complaints


def _rows(path, key):
  """Step -> figure, from the rows of a run."""
  lines = (path / 'metrics.jsonl').read_text().splitlines()
  rows = [json.loads(line) for line in lines]
  return {row['step']: row[key] for row in rows if key in row}


def _read(page, chart=0):
  """The read-out: its head, then `{run: [cell, ...]}`."""
  rows = [
    [cell.strip() for cell in row.locator('th, td').all_inner_texts()]
    for row in page.locator('figure').nth(chart).locator('tr').all()
  ]
  return rows[0], {row[0]: row[1:] for row in rows[1:]}


def _hover(page, share, height=0.5):
  """Moves the pointer to a share of the width of the loss curves."""
  grid = page.locator('figure').first.locator('line.grid')
  box = grid.first.bounding_box()
  svg = page.locator('svg').first.bounding_box()
  page.mouse.move(
    box['x'] + share * box['width'], svg['y'] + height * svg['height']
  )


def test_a_value_is_read_under_the_pointer(page, report):
  a, b = report[1]
  head, figures = _read(page)
  assert head == ['at the end', 'training', 'validation']
  assert figures == {'a': ['2.0250', '2.1250'], 'b': ['1.9000', '2.0000']}
  _hover(page, 19 / 39)  # the curves go from step 1 to 40
  head, figures = _read(page)
  assert head[0] == 'steps 20'
  assert figures['a'] == [
    f'{_rows(a, "nll")[20]:.4f}', f'{_rows(a, "val_loss")[20]:.4f}'
  ]  # fmt: skip
  assert float(figures['b'][1]) == _rows(b, 'val_loss')[20]
  _hover(page, 22 / 39, 0.2)  # anywhere above or below the curve
  head, figures = _read(page)
  # The nearest evaluation is told apart; b ended at step 20.
  assert head[0] == 'steps 23' and figures['b'][0] == '-'
  assert figures['a'] == [f'{_rows(a, "nll")[23]:.4f}', '2.5000 at 20']


def test_axes_are_chosen(page, report):
  before = page.locator('svg path').first.get_attribute('d')
  page.get_by_label('horizontal axis').select_option('flops')
  labels = page.locator('svg').first.locator('text').all_text_contents()
  assert labels[-1] == 'FLOPs' and '40k' in labels
  _hover(page, 0.999)
  head, figures = _read(page)
  # A step is 100 tokens of 10 FLOPs.
  assert head[0] == 'FLOPs 40k' and figures['a'][1] == '2.1250'
  page.get_by_label('logarithmic', exact=True).check()
  page.get_by_label('vertical axis logarithmic').check()
  _hover(page, 0.001)
  assert _read(page)[0][0] == 'FLOPs 1k'
  _hover(page, 0.5)  # half of the way in the logarithm: sqrt(1 * 40) steps
  assert _read(page)[0][0] == 'FLOPs 6k'
  after = page.locator('svg path').first.get_attribute('d')
  assert after != before
  assert 'NaN' not in page.locator('#charts').inner_html()


def test_keys_read_too(page):
  chart = page.get_by_role('slider', name='Loss')
  chart.focus()
  page.keyboard.press('Home')
  page.keyboard.press('ArrowRight')
  assert _read(page)[0][0] == 'steps 2'
  assert chart.get_attribute('aria-valuenow') == '2'
  assert chart.get_attribute('aria-valuetext').startswith(
    'steps 2, a training 2.9000'
  )
  page.keyboard.press('End')
  assert _read(page)[0][0] == 'steps 40'
  page.keyboard.press('Escape')
  assert _read(page)[0][0] == 'at the end'


def test_model_output_is_text(page):
  assert page.locator('pre').inner_text() == f'once {EVIL} upon'
  assert page.title() == '2 runs: a, b'
  assert page.locator('script').count() == 2


def test_it_fits_a_phone(page):
  page.set_viewport_size({'width': 360, 'height': 740})
  svg = page.locator('svg').first
  svg.wait_for()
  page.wait_for_function("document.querySelector('svg').clientWidth < 360")
  assert page.evaluate('document.documentElement.scrollWidth') == 360
  # The read-out stands below, where a finger does not hide it.
  box, read = svg.bounding_box(), page.locator('.read').first.bounding_box()
  assert read['y'] >= box['y'] + box['height']


def test_dark_as_the_system_is(page):
  ask = 'getComputedStyle(document.body).backgroundColor'

  def brightness():
    return sum(map(int, re.findall(r'\d+', page.evaluate(ask))[:3]))

  assert brightness() > 700
  page.emulate_media(color_scheme='dark')
  assert brightness() < 150
