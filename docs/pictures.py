"""Draws the pictures of these pages again, from small real runs.

  python docs/pictures.py                       # all, into docs/images/
  python docs/pictures.py plot.png --output=/tmp

Two runs over the sources of the standard library, a sweep of nine, and what
the commands show of them: about eight minutes on two cores. The commands are
shown without the flags that make the runs short and log often. Curves need
matplotlib, the report needs Chromium (with playwright); without them those
pictures are left out, with a line that says so.
"""

import argparse
import contextlib
import fcntl
import io
import os
import pathlib
import pty
import re
import shlex
import shutil
import struct
import subprocess
import sys
import tempfile
import termios
from collections.abc import Iterator
from typing import Any, NamedTuple

import rich.console
import rich.terminal_theme
import rich.text

_ROOT = pathlib.Path(__file__).resolve().parents[1]
_BROWSERS = ('chromium', 'chromium-browser', 'google-chrome')
# None of them is needed to open a file; some ask servers of their own.
_FLAGS = (
  '--headless', '--no-sandbox', '--disable-gpu', '--disable-quic',
  '--no-first-run', '--disable-background-networking',
  '--disable-component-update', '--disable-sync',
)  # fmt: skip
_FONT = 'ui-monospace,Menlo,Consolas,"DejaVu Sans Mono",monospace'
# rich's own frame without the font that it loads from a server.
_FRAME = """<svg viewBox="0 0 {width} {height}" \
xmlns="http://www.w3.org/2000/svg"><style>
.{unique_id}-matrix {{ font: {char_height}px FONT; white-space: pre }}
{styles}
</style><defs><clipPath id="{unique_id}-clip-terminal"><rect x="0" y="0" \
width="{terminal_width}" height="{terminal_height}"/></clipPath>
{lines}</defs>
{chrome}
<g transform="translate({terminal_x}, {terminal_y})" \
clip-path="url(#{unique_id}-clip-terminal)">
{backgrounds}
<g class="{unique_id}-matrix">{matrix}</g>
</g></svg>
""".replace('FONT', _FONT)
_THEME = rich.terminal_theme.TerminalTheme(
  background=(30, 32, 36),
  foreground=(222, 224, 228),
  # Black to white as terminals have them, then bright.
  normal=[
    (0, 0, 0), (224, 108, 117), (143, 206, 114), (229, 192, 123),
    (97, 175, 239), (198, 120, 221), (86, 201, 217), (222, 224, 228),
  ],
  bright=[
    (112, 118, 128), (240, 130, 138), (160, 220, 130), (240, 205, 140),
    (120, 190, 250), (210, 140, 235), (110, 220, 235), (255, 255, 255),
  ],
)  # fmt: skip
_SWEEP = (
  'craft sweep base --set model.width=16,32,64 --set train.steps=50,100,200 '
  '--workdir=runs/sizes --quiet --config.model.depth=2 '
  '--config.model.num_heads=2 --config.optim.warmup_steps=10 '
  '--config.log.sample_chars=0 --config.log.every=2'
)


class Missing(Exception):
  """What a picture needs is not here."""


class Place(NamedTuple):
  """Where the runs are, and how long they are.

  Attributes:
    home: the folder that commands are run in.
    steps: of each of the two runs.
  """

  home: pathlib.Path
  steps: int


def _command(place: Place) -> pathlib.Path:
  """A folder with the command `craft`, as an installation has it."""
  path = place.home / 'bin' / 'craft'
  if not path.exists():
    path.parent.mkdir()
    path.write_text(
      f'#!/bin/sh\nexec "{sys.executable}" -m craft_jax.main "$@"\n'
    )
    path.chmod(0o755)
  return path.parent


def craft(place: Place, command: str, columns: int = 80) -> str:
  """What a command shows on a terminal, colours and all.

  Args:
    place: where it is run.
    command: begins with `craft`.
    columns: the width of the terminal.

  Raises:
    RuntimeError: it failed.
  """
  leader, follower = pty.openpty()
  size = struct.pack('HHHH', 40, columns, 0, 0)
  fcntl.ioctl(follower, termios.TIOCSWINSZ, size)
  env = {k: v for k, v in os.environ.items() if k not in ('COLUMNS', 'LINES')}
  done = subprocess.Popen(
    [str(_command(place) / 'craft'), *shlex.split(command)[1:]],
    cwd=place.home,
    stdin=follower,
    stdout=follower,
    stderr=follower,
    env=env
    | {
      'TERM': 'xterm-256color',
      'COLORTERM': 'truecolor',
      'PYTHONPATH': str(_ROOT),
      # What a run says to type next.
      'PATH': f'{_command(place)}{os.pathsep}{os.environ["PATH"]}',
    },
  )
  os.close(follower)
  said = b''
  with contextlib.suppress(OSError):  # the other end is closed: all was read
    while block := os.read(leader, 65536):
      said += block
  os.close(leader)
  text = said.decode()
  if done.wait():
    raise RuntimeError(f'{command}\n{text}')
  return text.replace('\r\n', '\n')


def at_share(text: str, share: float) -> str:
  """The screen when the bar had come to a share of its steps."""
  frames = text.split('\r\x1b[2K')
  for number, frame in enumerate(frames):
    found = re.search(r'(\d+)/(\d+)  [\d:]+ left  loss', frame)
    if found and int(found[1]) >= share * int(found[2]):
      frames = frames[: number + 1]
      break
  # Of each frame the last line is what the next one overwrites.
  kept = [re.sub(r'[^\n]*\Z', '', frame) for frame in frames[:-1]]
  shown = ''.join([*kept, frames[-1]])
  return re.sub(r'\x1b\[\?\d+[hl]', '', shown)


def terminal(path: pathlib.Path, shown: list[tuple[str, str]], columns: int):
  """Writes commands and what they show as the picture of a terminal."""
  console = rich.console.Console(
    record=True,
    width=columns,
    file=io.StringIO(),
    force_terminal=True,
    color_system='truecolor',
    legacy_windows=False,
  )
  for number, (command, text) in enumerate(shown):
    if number:
      console.print()
    console.print(rich.text.Text(f'$ {command}', 'bold #8fce72'))
    console.print(rich.text.Text.from_ansi(text.rstrip('\n')))
  console.print()  # rich cuts the last line
  path.write_text(
    console.export_svg(
      title='',
      theme=_THEME,
      code_format=_FRAME,
      unique_id=path.stem,
      font_aspect_ratio=0.602,
    ),
    encoding='utf-8',
  )


# --- what is run -------------------------------------------------------------


def _train(place: Place, name: str, *flags: str) -> tuple[str, str]:
  """The command of a run and what it showed; trained once."""
  seen = place.home / f'{name}.txt'
  words = ['craft', 'train', '--config=base', f'--workdir=runs/{name}', *flags]
  short = ' '.join(words)
  if not seen.exists():
    every = max(place.steps // 6, 50)
    words += [
      f'--config.train.steps={place.steps}',
      f'--config.eval.every={every}',
      f'--config.optim.warmup_steps={place.steps // 12}',
      f'--config.log.sample_every={2 * every}',
      '--config.log.sample_chars=160',
      f'--config.log.every={every // 12}',
    ]
    seen.write_text(craft(place, ' '.join(words), columns=96))
  return short, seen.read_bytes().decode()


def _runs(place: Place) -> None:
  _train(place, 'first')
  _train(place, 'second', '--config.model.width=192')


def _sizes(place: Place) -> None:
  # What is finished already is left as it is.
  craft(place, _SWEEP)


# --- the pictures ------------------------------------------------------------


def _bar(place: Place, path: pathlib.Path) -> None:
  command, text = _train(place, 'first')
  terminal(path, [(command, at_share(text, 0.62))], 96)


def _compare(place: Place, path: pathlib.Path) -> None:
  _runs(place)
  commands = ('craft runs list', 'craft runs compare')
  terminal(path, [(each, craft(place, each)) for each in commands], 80)


def _plot(place: Place, path: pathlib.Path) -> None:
  _matplotlib()
  _runs(place)
  craft(
    place, f'craft runs plot runs/first runs/second --log=y --output={path}'
  )


def _report(place: Place, path: pathlib.Path, size: Any, dark: bool) -> None:
  with chromium() as browser:
    _runs(place)
    craft(place, 'craft runs report runs/first runs/second')
    page = browser.new_page(
      viewport=dict(zip(('width', 'height'), size, strict=True)),
      color_scheme='dark' if dark else 'light',
    )
    page.goto((place.home / 'runs.html').as_uri())
    if not dark:  # a pointer over the first chart
      page.locator('svg').first.hover(position={'x': size[0] * 0.4, 'y': 90})
    page.screenshot(path=path)


def _report_light(place: Place, path: pathlib.Path) -> None:
  _report(place, path, (1000, 940), dark=False)


def _report_phone(place: Place, path: pathlib.Path) -> None:
  _report(place, path, (390, 1090), dark=True)


def _sweep(place: Place, path: pathlib.Path) -> None:
  _matplotlib()
  _sizes(place)
  flags = f'--x=flops --metric=loss --smooth=0.9 --log=xy --output={path}'
  craft(place, f'craft runs plot runs/sizes {flags}')


def _scaling(place: Place, path: pathlib.Path) -> None:
  _matplotlib()
  _sizes(place)
  craft(place, f'craft scaling runs/sizes --output={path}')


def _scaling_text(place: Place, path: pathlib.Path) -> None:
  _sizes(place)
  command = 'craft scaling runs/sizes'
  text = craft(place, f'{command} --output=', columns=100)
  terminal(path, [(command, text)], 100)


def _profile(place: Place, path: pathlib.Path) -> None:
  command = 'craft profile --config=base --steps=20 --top=8'
  terminal(path, [(command, craft(place, command, columns=132))], 132)


def _score(place: Place, path: pathlib.Path) -> None:
  _train(place, 'first')
  command = (
    'craft score --workdir=runs/first --heat '
    '--text="def __init__(self, name):\n    self.name = nmae\n"'
  )
  terminal(path, [(command, craft(place, command))], 80)


PICTURES = {
  'train.svg': _bar,
  'compare.svg': _compare,
  'plot.png': _plot,
  'report.png': _report_light,
  'report-phone.png': _report_phone,
  'score.svg': _score,
  'sweep.png': _sweep,
  'scaling.png': _scaling,
  'scaling.svg': _scaling_text,
  'profile.svg': _profile,
}


def _matplotlib() -> None:
  try:
    import matplotlib  # noqa: F401
  except ImportError:
    raise Missing("matplotlib: pip install 'craft-jax[runs]'") from None


def _starts(path: str | None) -> bool:
  """Whether there is such a program, with the libraries that it needs."""
  if not path or not pathlib.Path(path).exists():
    return False
  done = subprocess.run([path, '--version'], capture_output=True)
  return done.returncode == 0


@contextlib.contextmanager
def chromium() -> Iterator[Any]:
  """A headless Chromium, found in PATH or as Playwright's own.

  Raises:
    Missing: there is none.
  """
  try:
    from playwright import sync_api
  except ImportError:
    raise Missing('playwright: pip install playwright') from None
  with sync_api.sync_playwright() as playwright:
    found = [*map(shutil.which, _BROWSERS), playwright.chromium.executable_path]
    path = next(filter(_starts, found), None)
    if path is None:
      raise Missing('Chromium: playwright install chromium gets one')
    browser = playwright.chromium.launch(
      executable_path=path, args=list(_FLAGS)
    )
    yield browser
    browser.close()


def main(argv: list[str] | None = None) -> None:
  """Draws what is asked for."""
  parser = argparse.ArgumentParser(
    description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
  )
  parser.add_argument(
    'names', nargs='*', metavar='NAME', help=', '.join(PICTURES)
  )
  parser.add_argument(
    '--output', type=pathlib.Path, default=_ROOT / 'docs' / 'images'
  )
  parser.add_argument('--steps', type=int, default=600, help='of the two runs')
  parser.add_argument(
    '--home', type=pathlib.Path, help='keep the runs here, and use them again'
  )
  args = parser.parse_args(argv)
  if wrong := set(args.names) - set(PICTURES):
    parser.error(f'no picture {wrong.pop()}; there are {", ".join(PICTURES)}')
  output = args.output.resolve()
  output.mkdir(parents=True, exist_ok=True)
  with tempfile.TemporaryDirectory() as folder:
    home = args.home.resolve() if args.home else pathlib.Path(folder)
    home.mkdir(parents=True, exist_ok=True)
    for name in args.names or PICTURES:
      try:
        PICTURES[name](Place(home, args.steps), output / name)
      except Missing as e:
        print(f'{name}: left out, it needs {e}')
      else:
        print(f'{name}: {(output / name).stat().st_size / 1e3:.0f} kB')


if __name__ == '__main__':
  main()
