"""The report is one file that loads nothing; its curves can be read out."""

import html.parser
import json
import shutil
import subprocess

import pytest

from craft_jax.runs import compare, listing, report

EVIL = '</script><b>&"\'\u2028'


@pytest.fixture
def page(make_run):
  paths = [
    make_run('a', [3.0, 2.0]),
    make_run('b', [2.8, 1.8], {'model.width': 64, 'data.path': EVIL}),
  ]
  for path in paths:
    make_run.append(path, {'step': 20, 'text': f'{EVIL} \udcff'})
  found = [listing.load(path) for path in paths]
  return report.page(found, compare.compare(found), 'b is better')


class Reader(html.parser.HTMLParser):
  """Notes tags, what they refer to, and the text."""

  def __init__(self, text):
    super().__init__()
    self.tags, self.links, self.text = [], [], ''
    self.scripts, self._inside = [], False
    self.feed(text)

  def handle_starttag(self, tag, attrs):
    self.tags.append(tag)
    self.links += [v for k, v in attrs if k in ('src', 'href', 'action')]
    self._inside = tag == 'script'

  def handle_endtag(self, tag):
    self._inside = False

  def handle_data(self, data):
    if self._inside:
      self.scripts.append(data)
    else:
      self.text += data


def test_one_file_that_loads_nothing(page):
  read = Reader(page)
  assert not read.links
  assert "default-src 'none'" in page and 'url(' not in page
  assert read.tags.count('script') == 2 and 'b' not in read.tags
  assert 'b is better' in read.text and 'model.width' in read.text
  assert read.text.count(EVIL) == 3  # a setting and two samples
  data = json.loads(read.scripts[0])
  assert [run['label'] for run in data['runs']] == ['a', 'b']
  titles = [chart['title'] for chart in data['charts']]
  assert titles[0].startswith('Loss') and 'Learning rate' in titles
  loss = data['charts'][0]['series']
  assert [(s['run'], s['dots']) for s in loss] == [
    (0, False), (0, True), (1, False), (1, True),
  ]  # fmt: skip
  assert loss[1]['y'] == [3.0, 2.0] and loss[1]['seconds'] == [20.0, 40.0]
  assert data['runs'][0]['flops'] == 1000


def test_a_long_run_is_thinned(make_run):
  path = make_run('a', [2.0] * 300)
  found = [listing.load(path)]
  page = report.page(found, compare.compare(found), '')
  data = json.loads(Reader(page).scripts[0])
  assert len(data['charts'][0]['series'][0]['y']) == 400


_ASK = """
console.log(JSON.stringify({
  nearest: [nearest([1, 2, 4], 2.9), nearest([1, 2, 4], 3.1), nearest([5], 9)],
  within: [within([1, 3, 5], 5.9), within([1, 3, 5], 6.1), within([5], 6)],
  ticks: [ticks(0, 1, false, 5), ticks(1, 100, true, 5), ticks(-3, 2, false, 5),
          ticks(1, 1e9, true, 5)],
  short: [0, 1234567, 0.00012, 0.000012, NaN, 1.5].map(short),
  none: scale([0, -1], 0, 1, true), flat: scale([2, 2], 0, 10, false).low,
}));
"""


@pytest.mark.skipif(not shutil.which('node'), reason='no JavaScript here')
def test_places_and_ticks():
  done = subprocess.run(
    ['node', '-e', report.file('report.js') + _ASK],
    capture_output=True,
    text=True,
    timeout=60,
  )
  assert done.returncode == 0, done.stderr
  found = json.loads(done.stdout)
  assert found['nearest'] == [1, 2, 0]
  assert found['within'] == [2, -1, -1]
  zero_to_one = [0, 0.2, 0.4, 0.6, 0.8, 1]
  assert found['ticks'][0] == pytest.approx(zero_to_one)
  assert found['ticks'][1] == [1, 2, 5, 10, 20, 50, 100]
  assert found['ticks'][2] == [-3, -2, -1, 0, 1, 2]
  assert found['ticks'][3] == [1, 1e2, 1e4, 1e6, 1e8]
  assert found['short'] == ['0', '1.235M', '0.00012', '1.20e-5', '-', '1.5']
  assert found['none'] is None and found['flat'] < 2
