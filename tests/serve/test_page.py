"""The page at `/` in a browser: what is done there, and what goes wrong.

No script of a test runs by its text: the page's own policy forbids that.
"""

import json
import re
import subprocess

import pytest
from playwright.sync_api import expect

_EVIL = '<img src=x onerror=alert(1)>'
_KEY = 'a-key-of-the-page-0123456789'


@pytest.fixture
def visit(browser):
  """`visit(url, **of the page)`; afterwards, that nothing improper happened.

  A refusal or a lost connection is noted by the browser itself; nothing else
  may be.
  """
  pages, notes, asked, dialogs = [], [], [], []

  def go(url, **more):
    page = browser.new_page(
      **{'viewport': {'width': 1280, 'height': 900}} | more
    )
    page.set_default_timeout(15_000)
    page.on('console', lambda message: notes.append(message.text))
    page.on('pageerror', lambda error: notes.append(str(error)))
    page.on('request', lambda request: asked.append((url, request.url)))
    page.on('dialog', lambda d: (dialogs.append(d.message), d.dismiss()))
    pages.append(page)
    page.goto(url)
    return page

  yield go
  for page in pages:
    page.close()
  failed = re.compile(r'Failed to load resource')
  assert [note for note in notes if not failed.match(note)] == []
  assert [to for url, to in asked if not to.startswith((url, 'data:'))] == []
  assert dialogs == []


@pytest.fixture
def page(visit, server):
  """The page, once it knows the model."""
  page = visit(server.url)
  expect(page.get_by_label('Temperature')).to_be_visible()
  return page


def _texts(page):
  return [box.text_content() for box in page.locator('.text').all()]


def _set(page, label, value):
  page.get_by_label(label, exact=True).fill(str(value))


def _run(page, says='done'):
  page.get_by_role('button', name='Continue').click()
  expect(page.get_by_role('status').first).to_contain_text(says)


def _much(page):
  """Begins what is not finished here."""
  _set(page, 'Characters', 4000)
  _set(page, 'Texts', 16)
  page.get_by_label('Never end').check()
  page.get_by_role('button', name='Continue').click()
  expect(page.locator('.text > span').nth(400)).to_be_attached()


def _still(server):
  return server.metric('craft_slots_busy') == 0


def test_it_says_what_is_served(page, server):
  expect(page.locator('#facts')).to_contain_text(server.name)
  expect(page.locator('#facts')).to_contain_text('sees 64 bytes back')
  document = json.loads(server.ask('/openapi.json')[2])
  fields = document['components']['schemas']['CompletionBody']['properties']
  shown = page.locator('[id^="set-"]').evaluate_all('all => all.map(e => e.id)')
  assert len(shown) == 15
  for name in (each.removeprefix('set-') for each in shown):
    assert name in fields
    # Each setting has a name and a help.
    assert page.locator(f'label[for="set-{name}"]').count() == 1
    assert page.locator(f'#help-{name}').text_content()
  expect(page.locator('#help-presence_penalty')).to_contain_text('-2 to 2')
  expect(page.locator('#help-temperature')).to_contain_text('usually 1')


def test_a_text_is_streamed(page, server):
  page.get_by_label('Prompt', exact=True).fill('7 squared is ')
  _set(page, 'Characters', 300)
  _set(page, 'Seed', 5)
  _run(page, '300 characters')
  wanted = server.complete(prompt='7 squared is ', max_tokens=300, seed=5)
  assert _texts(page) == [wanted['choices'][0]['text']]
  # A character is an element, be it of four bytes; and it has its colour.
  letters = page.locator('.text > span')
  assert letters.count() == 300
  assert page.locator('.text > [class^="s"]').count() > 10


def test_it_comes_in_pieces(page):
  _set(page, 'Characters', 4000)
  _set(page, 'Texts', 16)
  page.get_by_role('button', name='Continue').click()
  expect(page.locator('.text > span').nth(20)).to_be_attached()
  assert len(_texts(page)[0]) < 4000
  page.get_by_role('button', name='Stop').click()


def test_stop_frees_the_slot(page, server):
  _set(page, 'Characters', 4000)
  _set(page, 'Texts', 16)
  page.get_by_label('Never end').check()
  for stop in (
    lambda: page.get_by_role('button', name='Stop').click(),
    lambda: page.keyboard.press('Escape'),
  ):
    before = server.metric(
      'craft_cancellations_total{reason="disconnected"}'
    )  # fmt: skip
    page.get_by_role('button', name='Continue').click()
    # Not the text before it, which stands there until then.
    expect(page.get_by_role('status').first).to_contain_text('writing')
    first = page.locator('.text').first
    expect(first.locator('span').nth(5)).to_be_attached()
    assert server.metric('craft_slots_busy') == 16
    stop()
    expect(page.get_by_role('status').first).to_contain_text('stopped')
    server.until(lambda: _still(server))
    name = 'craft_cancellations_total{reason="disconnected"}'
    assert server.metric(name) == before + 1
    assert 5 < len(_texts(page)[0]) < 4000
    expect(page.get_by_role('alert')).to_be_hidden()


def test_a_setting_is_kept_to(page):
  _set(page, 'Characters', 60)
  for temperature, same in ((0, True), (1.5, False)):
    _set(page, 'Temperature', temperature)
    _run(page)
    first = _texts(page)
    page.get_by_label('Prompt', exact=True).focus()
    _run(page)
    assert (_texts(page) == first) == same
  _set(page, 'Texts', 3)
  _run(page)
  assert len(_texts(page)) == 3
  page.get_by_role('button', name='Reset').click()
  expect(page.get_by_label('Temperature')).to_have_value('1')
  assert page.locator('.changed').count() == 0


def test_a_number_out_of_range_is_told(page):
  _set(page, 'Temperature', -1)
  page.get_by_role('button', name='Continue').click()
  expect(page.get_by_role('alert')).to_contain_text('Temperature')
  # What only the server knows, it says.
  _set(page, 'Temperature', 1)
  _set(page, 'Characters', 99999)
  page.get_by_role('button', name='Continue').click()
  expect(page.get_by_role('alert')).to_contain_text('more than the 4096')


def _force(page, pattern):
  page.get_by_label('Write only').select_option('regex')
  page.get_by_label('Pattern').fill(pattern)
  expect(page.locator('#verdict')).to_have_class('good')


def test_hostile_output_is_text(page):
  pattern = r'<img src=x onerror=[a-z()]{5,9}>'
  _force(page, pattern)
  _run(page, 'ended by itself')
  (text,) = _texts(page)
  assert re.fullmatch(pattern, text)
  # As an element of its own, by itself and as a part of a prompt.
  _force(page, re.escape(_EVIL).replace(r'\ ', ' '))
  _run(page, 'ended by itself')
  assert _texts(page) == [_EVIL]
  page.locator('.text > span').first.hover()
  page.get_by_role('button', name='Add to the prompt').click()
  assert page.get_by_label('Prompt', exact=True).input_value() == _EVIL
  page.get_by_role('button', name='Copy as curl').click()
  expect(page.locator('#codeText')).to_have_value(re.compile('onerror'))
  assert page.locator('img, #output script, #card script').count() == 0


def test_hostile_prompts_are_text(page):
  evil = _EVIL + '</textarea><script>alert(2)</script>\'"`$(reboot)\n😀'
  page.get_by_label('Prompt', exact=True).fill(evil)
  page.get_by_role('button', name='Score the prompt').click()
  expect(page.get_by_role('status').first).to_contain_text('done')
  assert _texts(page) == [evil]
  assert page.locator('img').count() == 0
  assert page.locator('script').count() == 1


def test_the_code_does_the_same(page, server, tmp_path):
  prompt = 'It\'s "7" \\ $HOME squared is é'
  page.get_by_label('Prompt', exact=True).fill(prompt)
  _set(page, 'Characters', 30)
  _set(page, 'Seed', 3)
  _set(page, 'Top k', 9)
  _set(page, 'Stop at', '\\n')
  _run(page, re.compile('done|ended'))
  (shown,) = _texts(page)
  page.get_by_role('button', name='Copy as curl').click()
  command = page.locator('#codeText').input_value()
  page.get_by_role('button', name='Close').click()
  done = subprocess.run(['sh', '-c', command], capture_output=True, check=True)
  assert json.loads(done.stdout)['choices'][0]['text'] == shown
  page.get_by_role('button', name='Copy as Python').click()
  code = page.locator('#codeText').input_value()
  assert '"top_k": 9' in code and 'extra_body' in code
  compile(code, 'code', 'exec')
  sent = {}

  class Client:  # of openai, but for what it sends
    def __init__(self, base_url, api_key):
      assert base_url == f'{server.url}/v1'
      self.completions = self

    def create(self, extra_body, **fields):
      sent.update(fields | extra_body)
      raise StopIteration

  body = code.replace('import openai\n', '').replace('openai.OpenAI', 'Client')
  with pytest.raises(StopIteration):
    exec(body, {'Client': Client})
  assert server.complete(**sent)['choices'][0]['text'] == shown


def test_alternatives_are_shown(page, server):
  page.get_by_label('Prompt', exact=True).fill('12 squared is ')
  _set(page, 'Characters', 20)
  _set(page, 'Temperature', 0)
  _run(page)
  expected = server.complete(
    prompt='12 squared is ', max_tokens=20, temperature=0, logprobs=5
  )['choices'][0]
  letter = page.locator('.text > span').nth(3)
  letter.hover()
  card = page.locator('#card')
  expect(card).to_be_visible()
  # The token by which the fourth character begins, which may be of several.
  figures = expected['logprobs']
  first = figures['text_offset'].index(figures['text_offset'][0] + 3)
  top = figures['top_logprobs'][first]
  names = [name for name, _ in sorted(top.items(), key=lambda x: -x[1])]
  marks = {' ': '␣', '\n': '↵'}
  shown = card.locator('ol').first.locator('code').all_text_contents()
  assert shown == [
    marks.get(name, name.removeprefix('bytes:')) for name in names
  ]
  # Another is taken, and the text goes on from there.
  other = card.get_by_role('button').last
  taken = other.locator('code').text_content()
  taken = {mark: name for name, mark in marks.items()}.get(taken, taken)
  other.hover()
  expect(card).to_be_visible()
  other.click()
  expect(page.get_by_role('status').first).to_contain_text('done')
  prompt = '12 squared is ' + expected['text'][:3] + taken
  assert page.get_by_label('Prompt', exact=True).input_value() == prompt
  page.get_by_label('Temperature').hover()
  expect(card).to_be_hidden()


def test_keys_are_enough(page, server):
  page.get_by_label('Prompt', exact=True).focus()
  page.keyboard.type('3 squared ')
  page.keyboard.press('Control+Enter')
  expect(page.get_by_role('status').first).to_contain_text('done')
  box = page.locator('.text')
  # From the prompt to the text there are only buttons between.
  for _ in range(12):
    page.keyboard.press('Tab')
    if box.evaluate('e => e === document.activeElement'):
      break
  page.keyboard.press('ArrowRight')
  page.keyboard.press('ArrowRight')
  card = page.locator('#card')
  expect(card).to_be_visible()
  expect(page.locator('.here')).to_have_count(1)
  assert page.locator('.here').evaluate('e => e.number') == 1
  expect(page.get_by_role('status').first).to_contain_text('bits; likely:')
  page.keyboard.press('Enter')
  expect(card.get_by_role('button').first).to_be_focused()
  page.keyboard.press('Escape')
  expect(card).to_be_hidden()
  expect(box).to_be_focused()
  outline = box.evaluate('e => getComputedStyle(e).outlineStyle')
  assert outline == 'solid'


@pytest.mark.parametrize('scheme', ['light', 'dark'])
def test_it_fits_a_phone(visit, server, scheme):
  page = visit(
    server.url, viewport={'width': 360, 'height': 740}, has_touch=True,
    color_scheme=scheme,
  )  # fmt: skip
  expect(page.get_by_label('Temperature')).to_be_visible()
  page.get_by_label('Prompt', exact=True).fill('x' * 200)
  page.get_by_label('Write only').select_option('schema')
  page.get_by_role('button', name='a person').click()
  page.get_by_text('More', exact=True).click()
  _run(page, 'ended by itself')
  page.locator('.text > span').nth(5).tap()
  expect(page.locator('#card')).to_be_visible()
  width = 'document.documentElement.scrollWidth'
  assert page.evaluate(width) == 360
  card = page.locator('#card').bounding_box()
  assert card['x'] >= 0 and card['x'] + card['width'] <= 360
  page.locator('summary', has_text='API key').click()
  sheet = page.locator('.sheet').bounding_box()
  assert sheet['x'] >= 0 and sheet['x'] + sheet['width'] <= 360
  assert page.evaluate(width) == 360


def _luminance(colour):
  parts = [int(part) / 255 for part in re.findall(r'\d+', colour)[:3]]
  parts = [
    p / 12.92 if p < 0.04 else ((p + 0.055) / 1.055) ** 2.4 for p in parts
  ]
  return sum(
    w * p for w, p in zip((0.2126, 0.7152, 0.0722), parts, strict=True)
  )


@pytest.mark.parametrize('scheme', ['light', 'dark'])
def test_colours_are_readable(visit, server, scheme):
  page = visit(server.url, color_scheme=scheme)
  cells = page.locator('#legend i')
  expect(cells).to_have_count(7)
  found = set()
  for cell in cells.all()[1:]:
    style = (
      'e => [getComputedStyle(e).color, getComputedStyle(e).backgroundColor]'
    )
    colours = cell.evaluate(style)
    low, high = sorted(map(_luminance, colours))
    assert (high + 0.05) / (low + 0.05) > 6.5, colours
    found.add(colours[1])
  assert len(found) == 6
  body = page.locator('body').evaluate(
    'e => getComputedStyle(e).backgroundColor'
  )
  assert (_luminance(body) < 0.05) == (scheme == 'dark')


def test_a_form_is_checked_while_it_is_typed(page):
  verdict = page.locator('#verdict')
  page.get_by_label('Write only').select_option('regex')
  page.get_by_label('Pattern').press_sequentially('[0-9')
  expect(verdict).to_contain_text('never closed')
  expect(page.get_by_label('Pattern')).to_have_attribute('aria-invalid', 'true')
  page.get_by_label('Pattern').press_sequentially(']{50}')
  expect(verdict).to_have_class('good')
  _set(page, 'Characters', 20)
  expect(verdict).to_contain_text('too short')
  page.get_by_label('Write only').select_option('schema')
  page.get_by_label('JSON schema').fill('{"type": ')
  expect(verdict).to_contain_text('no JSON')
  page.get_by_label('JSON schema').fill('{"type": "strange"}')
  expect(verdict).to_contain_text('strange')
  page.get_by_label('JSON schema').fill('{"enum": [12, 345]}')
  expect(verdict).to_have_class('good')
  _run(page, 'ended by itself')
  assert _texts(page)[0] in ('12', '345')


def test_validate_says_what_a_completion_would(server):
  for body, param in (
    ({'regex': '(a'}, 'regex'),
    ({'regex': 'a{9}', 'max_tokens': 3}, 'max_tokens'),
    ({'regex': '(a|b|c){1,4000}' * 40}, 'regex'),
    ({'response_format': {'type': 'json_schema'}}, 'response_format'),
    ({'regex': 'a', 'allowed_chars': 'b'}, None),
  ):
    status, _, answer = server.ask('/validate', body)
    found = json.loads(answer)
    assert status == 200 and not found['valid'], body
    wanted = {'max_tokens': 4096, 'prompt': 'a'} | body
    status, _, answer = server.ask('/v1/completions', wanted)
    assert status == 400
    assert json.loads(answer)['error']['message'] == found['message']
    assert found['param'] == json.loads(answer)['error']['param'] == param
  for body in ({}, {'regex': 'a+'}, {'allowed_chars': 'ab'}):
    assert json.loads(server.ask('/validate', body)[2])['valid'] is True
  assert server.ask('/validate', {'regexp': 'a'})[0] == 400
  assert server.ask('/validate', {'model': 'other'})[0] == 404


def test_a_key_is_asked_for(visit, start_server):
  server = start_server(CRAFT_API_KEYS=_KEY)
  page = visit(server.url)
  alert = page.get_by_role('alert')
  expect(alert).to_contain_text('wants an API key')
  expect(page.locator('#key')).to_be_focused()
  page.locator('#key').fill('wrong-key-0123456789')
  page.locator('#key').press('Enter')
  expect(alert).to_contain_text('does not know')
  page.locator('#key').fill(_KEY)
  page.locator('#key').press('Enter')
  expect(page.get_by_label('Temperature')).to_be_visible()
  expect(alert).to_be_hidden()
  _run(page)
  page.get_by_role('button', name='Copy as curl').click()
  # Copied text is pasted anywhere; the key is not in it.
  code = page.locator('#codeText').input_value()
  assert 'Bearer $CRAFT_API_KEY' in code and _KEY not in code
  page.get_by_role('button', name='Close').click()
  store = 'JSON.stringify(sessionStorage) + JSON.stringify(localStorage)'
  assert _KEY not in page.evaluate(store)
  page.get_by_label('remember it').check()
  page.reload()
  expect(page.get_by_label('Temperature')).to_be_visible()


def test_too_many_requests_are_told(visit, start_server):
  server = start_server('--requests-per-minute=4')
  page = visit(server.url)
  expect(page.get_by_label('Temperature')).to_be_visible()
  _run(page)
  page.get_by_role('button', name='Continue').click()
  alert = page.get_by_role('alert')
  expect(alert).to_contain_text(re.compile(r'Try again in \d+ s'))


@pytest.mark.slow
def test_the_server_restarts_under_it(visit, start_server):
  server = start_server('--grace=1')
  page = visit(server.url)
  expect(page.get_by_label('Temperature')).to_be_visible()
  page.get_by_label('Prompt', exact=True).fill('5 squared')
  _much(page)
  server.process.kill()
  server.process.wait()
  alert = page.get_by_role('alert')
  expect(alert).to_contain_text('cannot be reached')
  assert len(_texts(page)[0]) > 20  # what was there stays
  again = start_server(f'--port={server.port}')
  assert again.port == server.port
  expect(page.get_by_role('status').first).to_contain_text(
    'The server is back', timeout=15_000
  )
  expect(alert).to_be_hidden()
  assert page.get_by_label('Prompt', exact=True).input_value() == '5 squared'
  _set(page, 'Characters', 40)
  _set(page, 'Texts', 1)
  _run(page, '40 characters')


@pytest.mark.slow
def test_an_end_is_told(visit, start_server):
  server = start_server('--grace=2', '--slots=4')
  page = visit(server.url)
  expect(page.get_by_label('Temperature')).to_be_visible()
  _much(page)
  server.process.terminate()
  expect(page.get_by_role('alert')).to_contain_text('closing down')
  expect(page.get_by_role('status').first).to_contain_text('Looking for')
  assert len(_texts(page)[0]) > 20


def test_what_would_be_obeyed_is_visible(page):
  given = 'a\u202eb\x9bc\ufffdd'
  page.get_by_label('Prompt', exact=True).fill(given)
  page.get_by_role('button', name='Copy as curl').click()
  expect(page.locator('#codeText')).to_have_value(
    re.compile(r'a\\u202eb\\u009bc\\ufffdd')
  )
  page.keyboard.press('Escape')
  page.get_by_role('button', name='Score the prompt').click()
  letters = page.locator('.text [data-shown]')
  expect(letters).to_have_count(3)
  shown = letters.evaluate_all(
    'all => all.map(e => [e.dataset.shown, getComputedStyle(e).unicodeBidi])'
  )
  assert shown == [
    [code, 'isolate'] for code in (r'\u202e', r'\u009b', r'\ufffd')
  ]
  assert _texts(page) == [given]
