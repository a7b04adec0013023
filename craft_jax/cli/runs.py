"""List, compare, plot, report and delete runs.

list     one line per run, sorted and filtered
show     settings, environment and state of a run
compare  differences, metrics at equal steps, FLOPs and time, which is better
plot     curves as an image
report   one HTML file: interactive curves, differences, samples
rm, gc   delete runs, or ended ones without a checkpoint and leftovers; without
         --yes only list what would be deleted

A DIR is a run or a folder that contains runs at any depth (default: runs).

examples:
  craft runs list --where 'model.width>=256 and status==finished' --sort loss
  craft runs compare runs/first runs/second
  craft runs plot runs --x=seconds --output=loss.png
"""

import argparse
import os
import pathlib
from collections.abc import Callable, Sequence
from typing import Any

from craft_jax.cli import parser as parser_lib
from craft_jax.errors import UserError, hint
from craft_jax.runs import layout
from craft_jax.runtime import files, strict_json

SUMMARY = 'list, compare, plot and delete runs'
_COLUMNS = ('name', 'status', 'step', 'loss', 'speed', 'params', 'age')
_AXES = ('steps', 'chars', 'flops', 'seconds')
_EXAMPLES = {
  'list': """examples:
craft runs list --sort loss --limit 5
craft runs list runs --where 'model.width>=256 and status==finished'
""",
  'show': """examples:
craft runs show runs/first
craft runs show runs/first --json
""",
  'compare': """examples:
craft runs compare runs/first runs/second
craft runs compare runs --where 'status==finished' --metric=val_loss
""",
  'plot': """examples:
craft runs plot runs/first
craft runs plot runs --x=seconds --metric=loss --log=y --output=loss.svg
""",
  'report': """examples:
craft runs report runs
craft runs report runs/first runs/second --output=two.html
""",
  'rm': """examples:
craft runs rm runs/second
craft runs rm runs/second --yes
""",
  'gc': """examples:
craft runs gc
craft runs gc runs --yes
""",
}


def add_arguments(parser: argparse.ArgumentParser) -> None:
  """Adds the subcommands and their flags."""
  actions = parser.add_subparsers(dest='action', required=True)

  def action(name: str, text: str, nargs: str, **more: Any):
    sub = actions.add_parser(
      name,
      help=text,
      description=f'{text[0].upper()}{text[1:]}.\n\n{_EXAMPLES[name]}',
    )
    default = ' (default: runs)' if nargs == '*' else ''
    help = f'run, or folder that contains runs{default}'
    sub.add_argument(
      'dirs', nargs=nargs, metavar='DIR', **{'help': help} | more
    )
    sub.add_argument(
      '--json',
      action='store_true',
      help='print one JSON object, last on standard output',
    )
    return sub

  _add_list(action('list', 'list runs, one line each', '*'))
  action('show', 'settings, environment and state of a run', '?', help='a run')
  sub = action('compare', 'compare runs: differences, and which is better', '*')
  _add_filter(sub)
  sub.add_argument(
    '--metric',
    metavar='KEY',
    help='val_loss, val_bpb, val_accuracy, ... (default: val_loss; val_bpb '
    'where vocabularies differ)',
  )
  _add_plot(action('plot', 'plot curves', '*'))
  sub = action('report', 'write one HTML file of curves and differences', '*')
  _add_filter(sub)
  sub.add_argument(
    '--output',
    default='runs.html',
    metavar='FILE',
    help='file to write (default: runs.html)',
  )
  for name, text, nargs in (
    ('rm', 'delete runs', '+'),
    ('gc', 'delete ended runs without a checkpoint, and leftovers', '*'),
  ):
    action(name, text, nargs).add_argument(
      '--yes', action='store_true', help='delete; without it only list'
    )


def _add_list(parser: argparse.ArgumentParser) -> None:
  _add_filter(parser)
  group = parser_lib.group(parser, 'rows and columns')
  group.add_argument(
    '--sort', default='age', metavar='KEY', help='column to sort by'
  )
  group.add_argument('--reverse', action='store_true', help='reverse the order')
  group.add_argument(
    '--columns',
    default='',
    metavar='KEYS',
    help='further columns, such as model.width,optim.learning_rate '
    '(default: none)',
  )
  group.add_argument(
    '--limit',
    type=int,
    default=0,
    metavar='N',
    help='maximum number of runs; 0 is all',
  )
  group.add_argument(
    '--keys', action='store_true', help='list all keys to show and filter by'
  )


def _add_filter(parser: argparse.ArgumentParser) -> None:
  parser.add_argument(
    '--where',
    default='',
    metavar='FILTER',
    help="such as 'model.width>=256 and status==finished' (default: all)",
  )


def _add_plot(parser: argparse.ArgumentParser) -> None:
  _add_filter(parser)
  group = parser_lib.group(parser, 'image')
  group.add_argument(
    '--output',
    metavar='FILE',
    help='.png, .svg or .pdf (default: runs.png; for a single run '
    'DIR/plots/METRIC-AXIS.png)',
  )
  group.add_argument(
    '--x', default='steps', choices=_AXES, help='axis (default: steps)'
  )
  group.add_argument(
    '--metric',
    default='loss,val_loss',
    metavar='KEYS',
    help='metrics to plot (default: loss,val_loss)',
  )
  group.add_argument(
    '--smooth',
    type=float,
    default=0.0,
    metavar='X',
    help='weight of past values in the running mean of training metrics, 0 to '
    '1 (default: 0)',
  )
  group.add_argument(
    '--log',
    default='',
    metavar='AXES',
    help='logarithmic axes: x, y or xy (default: none)',
  )


def run(args: argparse.Namespace) -> int:
  """Runs the chosen subcommand; returns the exit code."""
  text, data = _ACTIONS[args.action](args)
  print(text)
  if args.json:
    from craft_jax.runs.writers import to_json

    print(strict_json.dumps(to_json(data)))
  return 0


def open_runs(
  dirs: Sequence[str], where: str = '', rows: bool = False
) -> tuple[list[Any], list[str]]:
  """Loads the runs in folders that pass a filter, and notes on unreadable ones.

  Args:
    dirs: folders to search (default: `runs`).
    where: filter expression; '' keeps all runs.
    rows: also read all rows of metrics, in parallel.
  """
  from craft_jax.runs import listing, parallel_read, query

  paths = listing.find(dirs or ['runs'])
  parallel_read.read(paths, rows)
  found, notes = listing.load_all(paths)
  if where:
    test = query.parse(where, _keys(found))
    found = [one for one in found if test(one.facts)]
  return found, notes


def _keys(found: Sequence[Any]) -> set[str]:
  """Keys by which these runs can be filtered and sorted."""
  from craft_jax.config import load as config_lib
  from craft_jax.runs.listing import FACTS

  names = {name for name, *_ in config_lib.settings()}
  return names.union(FACTS, *(one.settings for one in found))


def _check_key(flag: str, key: str, keys: set[str]) -> None:
  if key not in keys:
    raise UserError(
      f'{flag}={key}: runs have no such key{hint(key, keys)}; craft runs list '
      '--keys lists all'
    )


def _list(args: argparse.Namespace) -> tuple[str, Any]:
  from craft_jax.cli import runs_text
  from craft_jax.runs.listing import FACTS

  if args.keys:
    names = sorted(_keys([]) - set(FACTS))
    rows = [*FACTS.items(), *((name, 'a setting') for name in names)]
    return '\n'.join(runs_text.table(['key', 'is'], rows, 2)), dict(rows)
  if args.limit < 0:
    raise UserError(f'--limit={args.limit} must be at least 0')
  found, notes = open_runs(args.dirs, args.where)
  keys = _keys(found)
  more = [key for key in args.columns.split(',') if key]
  for flag, key in (('--sort', args.sort), *(('--columns', k) for k in more)):
    _check_key(flag, key, keys)
  facts = [one.facts for one in found]
  known = [one for one in facts if one.get(args.sort) is not None]
  try:
    known.sort(key=lambda one: one[args.sort], reverse=args.reverse)
  except TypeError:  # the setting has changed its type
    known.sort(key=lambda one: str(one[args.sort]), reverse=args.reverse)
  facts = known + [one for one in facts if one.get(args.sort) is None]
  facts = facts[: args.limit or None]
  lines = [f'note: {note}' for note in notes]
  if facts:
    lines.append(runs_text.listing(facts, [*_COLUMNS, *more]))
  else:
    lines.append('no runs' + (' that pass the filter' if args.where else ''))
  return '\n'.join(lines), {'runs': facts, 'notes': notes}


def _show(args: argparse.Namespace) -> tuple[str, Any]:
  from craft_jax.cli import runs_text
  from craft_jax.config import load as config_lib
  from craft_jax.config import settings
  from craft_jax.runs import listing

  if args.dirs is None:
    raise UserError('give a run directory; craft runs list shows all runs')
  one = listing.load(args.dirs)
  usual = config_lib.flatten(settings.Config())
  changed = {
    name: value
    for name, value in one.settings.items()
    if name not in usual or _plain(usual[name]) != value
  }
  data = one.facts | {
    'metadata': one.metadata,
    'summary': one.summary,
    'changed': changed,
  }
  return runs_text.show(one, changed), data


def _plain(value: Any) -> Any:
  """Converts a tuple to a list, as JSON does."""
  return list(value) if isinstance(value, tuple) else value


def _compare(args: argparse.Namespace) -> tuple[str, Any]:
  from craft_jax.cli import runs_text
  from craft_jax.runs import compare

  found, notes = open_runs(args.dirs, args.where, rows=True)
  if len(found) < 2:
    raise UserError(
      f'{len(found)} run(s) to compare; give two or more, or a folder of them'
    )
  if args.metric:
    known = {key for one in found for key in one.digest.final}
    known = {key for key in known if key.startswith('val_')} or {'val_loss'}
    if args.metric not in known:
      raise UserError(
        f'--metric={args.metric}: no run has it'
        f'{hint(args.metric, known)}; they have {", ".join(sorted(known))}'
      )
  result = compare.compare(found, args.metric)
  text = runs_text.comparison(result)
  return '\n'.join([*(f'note: {n}' for n in notes), text]), compare.as_dict(
    result
  )


def _plot(args: argparse.Namespace) -> tuple[str, Any]:
  from craft_jax.runs import plot

  metrics = [name for name in args.metric.split(',') if name]
  output = args.output or 'runs.png'
  plot.check(output, args.smooth, args.log, metrics)
  found, notes = open_runs(args.dirs, args.where, rows=True)
  if not found:
    raise UserError('no runs to plot; craft runs list shows all runs')
  if not args.output and len(found) == 1:
    name = f'{"-".join(metrics)}-{args.x}.png'
    output = os.path.join(found[0].name, layout.PLOTS, name)
  drawn = plot.draw(found, output, metrics, args.x, args.smooth, args.log)
  text = f'{output}: {drawn} curves of {len(found)} runs'
  data = {'output': output, 'curves': drawn, 'runs': len(found)}
  return '\n'.join([*(f'note: {n}' for n in notes), text]), data


def _report(args: argparse.Namespace) -> tuple[str, Any]:
  from craft_jax.cli import runs_text
  from craft_jax.runs import compare, report

  if pathlib.Path(args.output).suffix not in ('.html', '.htm'):
    raise UserError(f'--output={args.output} must end in .html')
  files.check_output(args.output, '--output')
  found, notes = open_runs(args.dirs, args.where, rows=True)
  if not found:
    raise UserError('no runs to report; craft runs list shows all runs')
  compared = compare.compare(found)
  page = report.page(found, compared, runs_text.verdict(compared))
  files.write_atomic(args.output, page)
  text = f'{args.output}: {len(found)} runs, {len(page) / 1e6:.2f} MB'
  data = {'output': args.output, 'runs': len(found), 'bytes': len(page)}
  return '\n'.join([*(f'note: {n}' for n in notes), text]), data


def _rm(args: argparse.Namespace) -> tuple[str, Any]:
  from craft_jax.runs import delete

  paths = dict.fromkeys(files.as_path(folder) for folder in args.dirs)
  return _deleted([delete.removable(path) for path in paths], args.yes)


def _gc(args: argparse.Namespace) -> tuple[str, Any]:
  from craft_jax.runs import delete

  found, _ = open_runs(args.dirs)
  return _deleted(delete.garbage(found), args.yes)


def _deleted(items: Sequence[Any], yes: bool) -> tuple[str, Any]:
  from craft_jax.cli import runs_text
  from craft_jax.runs import delete

  if yes:
    delete.delete(items)
  data = {
    'deleted': yes,
    'items': [
      {'path': str(item.path), 'bytes': item.bytes, 'why': item.why}
      for item in items
    ],
  }
  if not items:
    return 'nothing to delete', data
  return runs_text.items(items, yes), data


_ACTIONS: dict[str, Callable[[argparse.Namespace], tuple[str, Any]]] = {
  'list': _list,
  'show': _show,
  'compare': _compare,
  'plot': _plot,
  'report': _report,
  'rm': _rm,
  'gc': _gc,
}
