"""Reading pairs from TSV, CSV and JSON Lines, hostile ones included."""

import csv
import io
import json

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from craft_jax.data.pair_files import Fields, LeftOut, Row, rows_in
from craft_jax.errors import UserError

FIELDS = Fields('prompt', 'completion')
# Any Unicode that UTF-8 can encode, often what is special in these files.
TEXT = st.text(
  st.sampled_from('"\t,;\n\r\\\'\0\ufeff\u2028\x85 a1')
  | st.characters(codec='utf-8'),
  min_size=1,
)
ROWS = st.lists(st.tuples(TEXT, TEXT, TEXT), max_size=8)


def read(data, name='my.tsv', fields=FIELDS):
  data = data if isinstance(data, bytes) else data.encode('utf-8')
  return list(rows_in(name, data, fields))


def good(found):
  return [row[:2] for row in found if isinstance(row, Row)]


def left_out(found):
  return [tuple(row) for row in found if isinstance(row, LeftOut)]


@pytest.mark.parametrize('name, delimiter', [('a.tsv', '\t'), ('a.csv', ',')])
@given(rows=ROWS, bom=st.booleans(), quoted=st.booleans())
@settings(max_examples=80, deadline=None)
def test_tables_round_trip(name, delimiter, rows, bom, quoted):
  file = io.StringIO(newline='')
  quoting = csv.QUOTE_ALL if quoted else csv.QUOTE_MINIMAL
  writer = csv.writer(file, delimiter=delimiter, quoting=quoting)
  writer.writerow(['other', 'completion', 'prompt'])
  writer.writerows((x, completion, prompt) for prompt, completion, x in rows)
  data = file.getvalue().encode('utf-8')
  found = read(b'\xef\xbb\xbf' + data if bom else data, name)
  assert good(found) == [row[:2] for row in rows] and not left_out(found)
  assert all(row.file == name and row.line > 1 for row in found)


@pytest.mark.parametrize('ascii_only', [True, False])
@given(rows=ROWS)
@settings(max_examples=80, deadline=None)
def test_json_lines_round_trip(ascii_only, rows):
  lines = [
    json.dumps(
      {'n': i, 'completion': completion, 'prompt': prompt, 'x': [x]},
      ensure_ascii=ascii_only,
    )
    for i, (prompt, completion, x) in enumerate(rows)
  ]
  for end in ('\n', '\r\n'):
    found = read(''.join(line + end for line in lines), 'a.jsonl')
    assert good(found) == [row[:2] for row in rows]
    assert [row.line for row in found] == list(range(1, len(rows) + 1))


def test_lines_of_rows():
  found = read('prompt\tcompletion\na\tb\n"c\nd"\te\nf\tg\n')
  assert [row.place for row in found] == ['my.tsv:2', 'my.tsv:3', 'my.tsv:5']
  assert good(found) == [('a', 'b'), ('c\nd', 'e'), ('f', 'g')]


def test_crlf_and_a_byte_order_mark():
  found = read('\ufeffprompt,completion\r\na,"b ""c"""\r\n'.encode(), 'x.csv')
  assert good(found) == [('a', 'b "c"')]
  found = read(b'\xef\xbb\xbf{"prompt": "a", "completion": "b"}\r\n', 'x.json')
  assert good(found) == [('a', 'b')]


def test_rows_that_cannot_be_used_are_named():
  found = read(
    b'prompt\tcompletion\n\tb\na\t\na\n\na\tb\tc\n\xff\tb\n"a"b\tc\n'
    b'"x\ny"z\tc\nlast\tone\n'
  )
  assert good(found) == [('last', 'one')]
  assert left_out(found) == [
    ('empty prompt', 'my.tsv:2'),
    ('empty completion', 'my.tsv:3'),
    ('not as many fields as columns', 'my.tsv:4'),
    ('empty line', 'my.tsv:5'),
    ('not as many fields as columns', 'my.tsv:6'),
    ('not UTF-8', 'my.tsv:7'),
    ('text after a closing quote', 'my.tsv:8'),
    ('text after a closing quote', 'my.tsv:9-10'),
  ]


def test_json_that_cannot_be_used_is_named():
  lines = [
    '{"prompt": "a", "completion": "b"}', '{"prompt": "a"', '[1]', '7', '',
    '{"prompt": "a"}', '{"prompt": 1, "completion": "b"}',
    '{"prompt": "a", "completion": null}', '{"prompt": "", "completion": "b"}',
    r'{"prompt": "\ud800", "completion": "b"}',
    '{"x": ' + '[' * 100_000, '{"prompt": "last", "completion": "one"}',
  ]  # fmt: skip
  data = '\n'.join(lines).encode() + b'\n{"prompt": "\xff"}'
  found = read(data, 'my.jsonl')
  assert good(found) == [('a', 'b'), ('last', 'one')]
  assert left_out(found) == [
    ('not JSON', 'my.jsonl:2'),
    ('not a JSON object', 'my.jsonl:3'),
    ('not a JSON object', 'my.jsonl:4'),
    ('empty line', 'my.jsonl:5'),
    ("no field 'completion'", 'my.jsonl:6'),
    ("'prompt' is not a string", 'my.jsonl:7'),
    ("'completion' is not a string", 'my.jsonl:8'),
    ('empty prompt', 'my.jsonl:9'),
    ('not UTF-8', 'my.jsonl:10'),
    ('not JSON', 'my.jsonl:11'),
    ('not UTF-8', 'my.jsonl:13'),
  ]


def test_groups():
  fields = Fields('prompt', 'completion', 'id')
  (row,) = read('id\tprompt\tcompletion\n7\ta\tb\n', fields=fields)
  assert (row.group, row.prompt) == ('7', 'a')
  lines = '{"prompt": "a", "completion": "b", "id": 7}\n'
  assert read(lines, 'a.jsonl', fields)[0].group == '7'
  with pytest.raises(UserError, match=r"no column 'id'; it has 'prompt', 'com"):
    read('prompt\tcompletion\na\tb\n', fields=fields)


@pytest.mark.parametrize(
  'name, data, message',
  [
    ('a.tsv', 'word\tphones\na\tb\n', r"no column 'prompt'; it has 'word', 'p"),
    ('a.csv', 'prompt\tcompletion\na\tb\n', r"it has 'prompt\\tcompletion'"),
    ('a.jsonl', '{"q": "a"}\n{"q": "b"}\n', r"no field 'prompt'; it has 'q'"),
    ('a.tsv', 'prompt\tprompt\tcompletion\n', "two columns 'prompt'"),
    ('a.tsv', '\ufeff', 'no first line'),
    ('a.tsv', 'prompt\tcompletion\na\tb\n"c\td\ne\tf\n', r'^a\.tsv:3: a quote'),
    ('a.csv', '"prompt,completion\na,b\n', r'^a\.csv:1: a quote'),
    ('a.csv', '"prompt"x,completion\na,b\n', r'^a\.csv:1: .* mend the names'),
    ('a.json', ' [{"prompt": "a"}]', "jq -c '.\\[\\]' a.json"),
  ],
)  # fmt: skip
def test_files_that_are_refused(name, data, message):
  with pytest.raises(UserError, match=message) as caught:
    read(data, name)
  assert '\n' not in str(caught.value)


def test_a_quote_that_never_closes_in_a_large_file():
  rows = 'a\tb\n' * 100_000  # past the csv module's own limit of a field
  with pytest.raises(UserError, match=r'^my\.tsv:3: a quote .* never closes'):
    read(f'prompt\tcompletion\na\tb\nsaid\t"hello\n{rows}')
