"""What the runs of a sweep print: a file each, in the sweep's folder."""

import contextlib
import pathlib

from craft_jax.runtime import files

FOLDER = 'logs'


class Logs:
  """The files that runs print into.

  Nothing can be added to an object of a store: there a run prints into a local
  file, which `send` copies into the folder.
  """

  def __init__(self, folder: files.AnyPath):
    """Args:
    folder: of the sweep.
    """
    self._folder = folder / FOLDER
    self._sent: dict[str, int] = {}

  def name(self, run: str) -> str:
    """The path of the log of a run, as it is shown to people."""
    return str(self._folder / f'{run}.log')

  def file(self, run: str) -> pathlib.Path:
    """The local file to print into; it holds what the run printed before."""
    kept = self._folder / f'{run}.log'
    if isinstance(kept, pathlib.Path):
      return kept
    file = files.scratch() / FOLDER / kept.name
    if not file.exists():
      file.parent.mkdir(exist_ok=True)
      with contextlib.suppress(FileNotFoundError):
        file.write_bytes(kept.read_bytes())
    return file

  def send(self, run: str) -> None:
    """Copies what a local file has more by now to the object store."""
    kept, file = self._folder / f'{run}.log', self.file(run)
    if kept == file or self._sent.get(run) == file.stat().st_size:
      return
    data = file.read_bytes()
    files.write_atomic(kept, data)
    self._sent[run] = len(data)
