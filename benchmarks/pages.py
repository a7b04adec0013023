"""Tables that scripts write into Markdown pages, each between two comments."""

from collections.abc import Iterable, Mapping


def table(
  head: Iterable[str], rows: Iterable[Iterable[str]], left: int = 1
) -> str:
  """A Markdown table; all but the first `left` columns to the right."""
  head = list(head)
  rules = ['---'] * left + ['---:'] * (len(head) - left)
  lines = [head, rules, *map(list, rows)]
  return '\n'.join('| ' + ' | '.join(line) + ' |' for line in lines)


def refreshed(page: str, tables: Mapping[str, str]) -> str:
  """The page with every table between its markers.

  Args:
    page: its text.
    tables: what belongs between `<!-- NAME: begin -->` and
      `<!-- NAME: end -->`, by name.

  Raises:
    ValueError: a table has no place.
  """
  for name, text in tables.items():
    begin, end = f'<!-- {name}: begin -->', f'<!-- {name}: end -->'
    head, found, rest = page.partition(begin)
    _, closed, tail = rest.partition(end)
    if not found or not closed:
      raise ValueError(f'the page has no {begin} and {end}')
    page = f'{head}{begin}\n\n{text}\n\n{end}{tail}'
  return page
