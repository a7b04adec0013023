"""Reads the text of a compiled program: what each operation is and costs.

The text is what `compiled.as_text()` gives. Pure: no JAX.
"""

import dataclasses
import functools
import math
import re
from collections.abc import Iterator, Sequence

# What an operation is, by opcode; the rest is elementwise, a reduction or, for
# those that only hold others, `CONTROL`.
PRODUCT, COLLECTIVE, SCATTER, MOVE, CONTROL, ELEMENTWISE = (
  'products', 'collectives', 'scatter', 'moves', 'control', 'elementwise',
)  # fmt: skip
_COLLECTIVES = (
  'all-reduce', 'all-gather', 'reduce-scatter', 'all-to-all',
  'ragged-all-to-all', 'collective-permute', 'collective-broadcast',
)  # fmt: skip
_KIND = {
  'dot': PRODUCT,
  'ragged-dot': PRODUCT,
  'convolution': PRODUCT,
  'gather': SCATTER,
  'scatter': SCATTER,
  'sort': SCATTER,
  'while': CONTROL,
  'conditional': CONTROL,
  **dict.fromkeys(_COLLECTIVES, COLLECTIVE),
}
# They give values a place, a layout or a type, and compute none.
_MOVES = {
  'copy', 'copy-start', 'copy-done', 'transpose', 'reshape', 'bitcast',
  'bitcast-convert', 'broadcast', 'concatenate', 'pad', 'slice',
  'dynamic-slice', 'dynamic-update-slice', 'convert', 'reverse', 'iota',
}  # fmt: skip
_SLICES = ('dynamic-slice', 'gather', 'slice')  # they read a part
_NOTHING = {'parameter', 'constant', 'tuple', 'get-tuple-element'}
_PRODUCT_CALLS = re.compile(r'gemm|matmul|dot|cublas|conv', re.IGNORECASE)

_BITS = re.compile(r'^(?:pred|[a-z]*?(\d+))')
_ARRAY = re.compile(r'([a-z][a-z0-9]*)\[([\d,]*)\]')
_LINE = re.compile(r'^\s+(?:ROOT )?%?([\w.\-]+) = ')
_HEAD = re.compile(r'^(?:ENTRY )?%?([\w.\-]+) \(.*\{$')
_OPCODE = re.compile(r'([\w\-]+)\(')
_CALLED = re.compile(
  r'(?:calls|to_apply|body|condition|true_computation|false_computation)='
  r'%?([\w.\-]+)'
)
_BRANCHES = re.compile(r'branch_computations=\{([^}]*)\}')
_CONTRACTING = re.compile(
  r'lhs_contracting_dim(?:s=\{([\d,]*)\}|ensions":\[([\d",]*)\])'
)
_OP_NAME = re.compile(r'metadata=\{[^}]*?op_name="((?:[^"\\]|\\.)*)"')
_MOST_USERS = 50  # to look for a name at
_TARGET = re.compile(r'custom_call_target="([^"]*)"')


@dataclasses.dataclass(frozen=True)
class Array:
  """A type of the text: `f32[4,128]`."""

  dtype: str
  dims: tuple[int, ...]

  @property
  def bytes(self) -> int:
    """Of all entries; types under a byte count as one."""
    found = _BITS.match(self.dtype)
    bits = int(found[1]) if found and found[1] else 8
    return math.prod(self.dims) * max(bits // 8, 1)


@dataclasses.dataclass(frozen=True)
class Instruction:
  """One line of the text.

  Attributes:
    name: unique in the program; a trace knows the operation by it.
    opcode: 'fusion', 'dot', ...
    outputs: the arrays it makes.
    operands: names.
    called: names of the computations in it.
    contracting: dims of the first operand that a product sums over.
    target: of a custom call, else ''.
    op_name: what JAX says it comes from, or ''.
  """

  name: str
  opcode: str
  outputs: tuple[Array, ...]
  operands: tuple[str, ...]
  called: tuple[str, ...]
  contracting: tuple[int, ...]
  target: str
  op_name: str


class Program:
  """The instructions of a compiled program.

  Attributes:
    name: of the module: what a trace calls the program.
    instructions: by name.
  """

  def __init__(self, text: str):
    """Args:
    text: of `compiled.as_text()`.
    """
    self.name = text.split(None, 2)[1].rstrip(',') if text else ''
    self.instructions: dict[str, Instruction] = {}
    self._computations: dict[str, list[Instruction]] = {}
    inside: list[Instruction] = []
    for line in text.splitlines():
      if head := _HEAD.match(line):
        inside = self._computations.setdefault(head[1], [])
      elif found := _LINE.match(line):
        instruction = _instruction(found[1], line[found.end() :])
        self.instructions[found[1]] = instruction
        inside.append(instruction)
    self._users: dict[str, list[Instruction]] = {}
    for instruction in self.instructions.values():
      for operand in instruction.operands:
        self._users.setdefault(operand, []).append(instruction)

  def purpose(self, instruction: Instruction) -> Instruction:
    """It, or the nearest one with an `op_name` that uses what it makes.

    XLA's own copies and transposes have no name; they are made for their user.
    """
    reached, seen = [instruction], {instruction.name}
    for found in reached:
      if '/' in found.op_name:
        return found
      for user in self._users.get(found.name, ()):
        if user.name not in seen and len(seen) < _MOST_USERS:
          seen.add(user.name)
          reached.append(user)
    return instruction

  def inside(self, instruction: Instruction) -> Iterator[Instruction]:
    """It, and what is in the computations that it calls."""
    yield instruction
    for name in instruction.called:
      for inner in self._computations.get(name, ()):
        yield from self.inside(inner)

  @functools.cache  # noqa: B019 (a command reads one program)
  def kind(self, name: str) -> str:
    """One of the kinds above; of a fusion, of the dearest thing in it."""
    instruction = self.instructions[name]
    kind = _own_kind(instruction)
    if kind in (PRODUCT, COLLECTIVE, CONTROL):
      return kind
    kinds = {
      _own_kind(inner)
      for inner in self.inside(instruction)
      if inner.opcode not in ('fusion', 'call', 'async-start')
    } or {kind}
    for kind in (PRODUCT, COLLECTIVE, SCATTER, ELEMENTWISE, MOVE):
      if kind in kinds:
        return kind
    return MOVE

  @functools.cache  # noqa: B019
  def flops(self, name: str) -> int:
    """2 per multiplication and addition of the products in it, once each."""
    instruction, total = self.instructions[name], 0
    if _own_kind(instruction) == CONTROL:
      return 0  # what is in it counts
    for inner in self.inside(instruction):
      if _own_kind(inner) == PRODUCT and inner.contracting and inner.operands:
        lhs = self.instructions[inner.operands[0]].outputs[0].dims
        depth = math.prod(lhs[dim] for dim in inner.contracting)
        total += 2 * math.prod(inner.outputs[0].dims) * depth
    return total

  @functools.cache  # noqa: B019
  def bytes(self, name: str) -> int:
    """Read and written, each operand and output once, slices by their size.

    What stays in a cache is counted as if it did not: more than what comes
    from memory where operations are small.
    """
    instruction = self.instructions[name]
    if _own_kind(instruction) == CONTROL:
      return 0  # what is in it counts
    body = self._computations.get(next(iter(instruction.called), ''), [])
    if instruction.opcode != 'fusion' or not body:
      body = [instruction]
      reads = self._reads(body, instruction.operands)
    else:
      reads = self._reads(
        body, [inner.name for inner in body if inner.opcode == 'parameter']
      )
    return reads + self._written(body[-1], body)

  def _reads(self, body: Sequence[Instruction], sources: Sequence[str]) -> int:
    """Bytes of the arrays that a body reads, of sliced ones what is used."""
    total = 0
    for source in sources:
      array = self.instructions.get(source)
      if array is None:
        continue
      whole = sum(a.bytes for a in array.outputs)
      used = 0
      for user in (i for i in body if source in i.operands):
        first = source == user.operands[0]
        if first and user.opcode in _SLICES:
          used += sum(a.bytes for a in user.outputs)
        elif not (first and user.opcode == 'dynamic-update-slice'):
          used = whole
      total += min(used, whole)
    return total

  def _written(self, root: Instruction, body: Sequence[Instruction]) -> int:
    """Bytes of the output; of an update in place what is new."""
    if root.opcode == 'dynamic-update-slice':
      return sum(a.bytes for a in self.instructions[root.operands[1]].outputs)
    if root.opcode == 'bitcast' and len(body) > 1:
      inner = self.instructions[root.operands[0]]
      if inner in body:
        return self._written(inner, [inner])
    return sum(a.bytes for a in root.outputs)


def _own_kind(instruction: Instruction) -> str:
  opcode = instruction.opcode
  for end in ('-start', '-done', '-update'):
    if opcode.removesuffix(end) in _COLLECTIVES:
      return COLLECTIVE
  if opcode in ('custom-call', 'fusion') and instruction.contracting:
    return PRODUCT
  if opcode == 'custom-call' and _PRODUCT_CALLS.search(instruction.target):
    return PRODUCT
  if opcode in _MOVES or opcode in _NOTHING:
    return MOVE
  return _KIND.get(opcode, ELEMENTWISE)


def _instruction(name: str, rest: str) -> Instruction:
  """Of `f32[4]{0} add(%a, %b), metadata={...}`."""
  stop = _closing(rest, 0) if rest.startswith('(') else rest.index(' ')
  head = _OPCODE.search(rest, stop)
  assert head, f'no operation: {name} = {rest[:80]}'
  end = _closing(rest, head.end() - 1)
  tail = rest[end:]
  called = _CALLED.findall(tail)
  if branches := _BRANCHES.search(tail):
    called += re.findall(r'[\w.\-]+', branches[1])
  dims = _CONTRACTING.search(tail)
  op_name, target = _OP_NAME.search(tail), _TARGET.search(tail)
  return Instruction(
    name=name,
    opcode=head[1],
    outputs=tuple(
      Array(dtype, tuple(int(d) for d in shape.split(',') if d))
      for dtype, shape in _ARRAY.findall(rest[:stop])
    ),
    operands=tuple(re.findall(r'%([\w.\-]+)', rest[head.end() : end])),
    called=tuple(called),
    contracting=tuple(
      int(d) for d in re.findall(r'\d+', (dims[1] or dims[2] or ''))
    )
    if dims
    else (),
    target=target[1] if target else '',
    op_name=op_name[1] if op_name else '',
  )


def _closing(text: str, start: int) -> int:
  """The place after the bracket that closes the one at `start`."""
  depth = 0
  for place in range(start, len(text)):
    depth += (text[place] == '(') - (text[place] == ')')
    if not depth:
      return place + 1
  raise ValueError(f'a bracket is never closed: {text[start : start + 80]}')
