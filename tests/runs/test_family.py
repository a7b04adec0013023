"""Runs and those whose weights they started from."""

import shutil

import pytest

from craft_jax.runs import compare, family, listing, report


def _from(path, step):
  return {'parent': {'run': str(path), 'step': step}}


@pytest.fixture
def runs(make_run, tmp_path):
  """Two children of a run, and a child of one of them."""
  make_run('base')
  make_run('old<b>', metadata=_from(tmp_path / 'base', 20))
  make_run('mine', metadata=_from(tmp_path / 'old<b>', 10))
  # Resumed since: the last start took no weights, an earlier one did.
  earlier = [_from(tmp_path / 'base', 30)]
  make_run('other', metadata={'earlier': earlier})
  names = ('mine', 'other', 'base')
  return [listing.load(tmp_path / name) for name in names]


def test_ancestors_are_followed(runs, tmp_path):
  def member(name, step, *children):
    return family.Member(str(tmp_path / name), step, list(children))

  grandchild = member('old<b>', 20, member('mine', 10))
  (found,) = family.families(runs)
  assert found == member('base', None, grandchild, member('other', 30))


def test_a_parent_that_is_gone_is_named(runs, tmp_path):
  shutil.rmtree(tmp_path / 'old<b>')
  found = family.families(runs)
  assert [root.run for root in found] == [
    str(tmp_path / 'base'), str(tmp_path / 'old<b>'),
  ]  # fmt: skip


def test_a_run_of_its_own_weights_is_no_loop(make_run, tmp_path):
  path = make_run('a', metadata=_from(tmp_path / 'a', 3))
  assert family.families([listing.load(path)]) == []


def test_the_report_and_the_comparison_tell(runs, tmp_path):
  found = compare.compare(runs)
  wanted = [f'{tmp_path}/old<b>@10', f'{tmp_path}/base@30', None]
  assert found.circumstances['parent'] == wanted
  page = report.page(runs, found, '')
  assert 'old&lt;b&gt;</span>, from step 20' in page
  assert 'mine</strong>, from step 10' in page
  assert 'Family' not in report.page(runs[2:], compare.compare(runs[2:]), '')
