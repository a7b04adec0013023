"""Cleaning steps: what they do, what they report, what they refuse."""

import unicodedata

import pytest
from hypothesis import given
from hypothesis import strategies as st

from craft_jax.data.text.cleaning import (
  STEP_NAMES,
  StepReport,
  _renormalized,
  check_steps,
  clean,
  combine,
)
from craft_jax.errors import UserError


@pytest.mark.parametrize(
  ('step', 'before', 'after', 'changed'),
  [
    ('nfc', 'cafe\u0301 a', 'caf\xe9 a', 2),
    ('nfc', '\u1100\u1161\u11a8!', '\uac01!', 3),
    ('nfc', 'a\u0315\u0301', '\xe1\u0315', 3),
    ('nfc', 'q\u0301 \ufb01', 'q\u0301 \ufb01', 0),
    ('nfkc', '\ufb01\uff21b²', 'fiAb2', 3),
    ('nfkc', '\uff76\uff9e', '\u30ac', 2),
    ('newlines', 'a\r\nb\rc\n\rd', 'a\nb\nc\n\nd', 3),
    ('newlines', 'a\x85b\u2028c\u2029d\x0be', 'a\nb\nc\nd\x0be', 3),
    ('drop-controls', '\ufeffa\x00b\tc\r\n\x1b[0m\x9f', 'ab\tc\r\n[0m', 4),
    ('drop-controls', 'z\u200dw é', 'z\u200dw é', 0),
    ('spaces', 'a  b\tc\xa0 d', 'a b c d', 3),
    ('spaces', 'a \n  b\t\n\n \n\nc', 'a\nb\n\nc', 7),
    ('spaces', ' a b\n\nc ', ' a b\n\nc ', 0),
    ('lower', 'AbÉ Д', 'abé д', 3),
    ('lower', 'İ', 'i\u0307', 1),
    ('text8', 'In 1999, A-Z', 'in one nine nine nine a z', 9),
    ('text8', 'a 1 b', 'a one b', 1),
    ('text8', 'a  b', 'a b', 1),
    ('text8', 'a - b', 'a b', 2),
    ('text8', 'é\n', ' ', 2),
    ('text8', '7', ' seven ', 1),
    ('text8', '\u212a', ' ', 1),
    ('text8', ' plain text ', ' plain text ', 0),
  ],
)
def test_step(step, before, after, changed):
  text, (report,) = clean(before.encode(), (step,))
  assert text == after
  assert report.name == step
  assert report.changed == changed
  assert report.lossy == (changed > 0)
  assert bool(report.example) == (changed > 0)


@pytest.mark.parametrize(
  ('step', 'after'),
  [('utf8-replace', 'é\ufffdb\ufffd'), ('utf8-drop', 'éb')],
)
def test_invalid_utf8(step, after):
  text, (report,) = clean('é'.encode() + b'\xe2\x82b\xff', (step,))
  assert text == after
  assert (report.changed, report.lossy) == (3, True)
  assert "b'" in report.example


@pytest.mark.parametrize('steps', [('utf8-strict',), ('nfc',), ('newlines',)])
def test_strict_names_text_and_offset(steps):
  with pytest.raises(UserError, match=r'my\.txt .*0x80 at offset 2.*utf8-drop'):
    clean(b'ab\x80', steps, 'my.txt')


def test_valid_utf8_is_no_loss():
  data = 'é\ufffd'.encode()
  for step in ('utf8-strict', 'utf8-replace', 'utf8-drop'):
    assert clean(data, (step,)) == (
      'é\ufffd',
      [StepReport(step, 0, False, '')],
    )


@given(st.binary())
def test_no_steps_leave_the_bytes(data):
  assert clean(data) == (data, [])


def test_steps_run_in_order():
  data = 'A\r\n\r\n\r\n\r\nﬁ'.encode()
  text, reports = clean(data, ('newlines', 'spaces', 'nfkc', 'lower'))
  assert text == 'a\n\nfi'
  assert [(r.name, r.changed) for r in reports] == [
    ('newlines', 4),
    ('spaces', 2),
    ('nfkc', 1),
    ('lower', 1),
  ]
  # The other way round, the carriage returns count as blanks.
  assert clean(b'a\rb', ('spaces', 'newlines'))[0] == 'a b'
  assert clean(b'a\rb', ('newlines', 'spaces'))[0] == 'a\nb'


def test_example_shows_the_first_change():
  text = 'x' * 1000 + 'Y' + 'x' * 1000 + 'Z'
  _, (report,) = clean(text.encode(), ('lower',))
  before, after = report.example.split(' -> ')
  assert 'Y' in before and 'y' in after and len(before) < 40


@pytest.mark.parametrize('step', STEP_NAMES)
@given(text=st.text())
def test_a_second_time_changes_nothing(step, text):
  once, (first,) = clean(text.encode(), (step,))
  assert first.lossy == (first.changed > 0) == (once != text)
  twice, (report,) = clean(once.encode(), (step,))
  assert (twice, report.changed) == (once, 0)


@given(st.text('a \t\n\r\x85\xa0'))
def test_spaces_is_idempotent(text):
  once, _ = clean(text.encode(), ('spaces',))
  assert clean(once.encode(), ('spaces',))[0] == once


@given(st.text())
def test_text8_alphabet(text):
  result, _ = clean(text.encode(), ('text8',))
  assert set(result) <= set('abcdefghijklmnopqrstuvwxyz ')
  assert '  ' not in result


@given(st.text('ae\u0301\u0315\u0323\u1100\u1161\u11a8ﬁｶﾞ é\n'))
def test_normal_forms_and_their_counts(text):
  for step, form in (('nfc', 'NFC'), ('nfkc', 'NFKC')):
    result, (report,) = clean(text.encode(), (step,))
    assert result == unicodedata.normalize(form, text)
    assert report.changed == _renormalized(text, form)
    assert report.changed <= len(text)


@pytest.mark.parametrize(
  ('steps', 'words'),
  [
    (('nfd',), ["'nfd'", "'nfc'"]),
    (('Lower',), ["did you mean 'lower'"]),
    (('xyzzy',), ['text8', 'nfkc']),
    (('nfc', 'utf8-drop'), ['utf8-drop', 'first', 'nfc']),
    (('utf8-drop', 'utf8-drop'), ['first', 'once']),
  ],
)
def test_impossible_steps(steps, words):
  for act in (check_steps, lambda steps: clean(b'', steps)):
    with pytest.raises(UserError) as caught:
      act(steps)
    message = str(caught.value)
    assert '\n' not in message and message.startswith('text.clean: ')
    for word in words:
      assert word in message


def test_reports_of_documents_combine():
  steps = ('newlines', 'lower')
  texts = [b'a', b'A\r\n', b'B\r\n']
  total = combine(clean(data, steps)[1] for data in texts)
  assert total == [
    StepReport('newlines', 2, True, "'A\\r\\n' -> 'A\\n'"),
    StepReport('lower', 2, True, "'A\\n' -> 'a\\n'"),
  ]
  assert combine([]) == []


@pytest.mark.parametrize('step', STEP_NAMES)
def test_empty(step):
  assert clean(b'', (step,)) == ('', [StepReport(step, 0, False, '')])
