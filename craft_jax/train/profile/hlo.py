"""Parses the HLO text of a compiled program: kind and cost of operations.

The text is that of `compiled.as_text()`. This module does not import JAX.
"""

import dataclasses
import functools
import math
import re
from collections.abc import Iterator, Sequence

# Kinds of operations. `CONTROL` only contains others; ELEMENTWISE includes
# reductions and every opcode that is not listed below.
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
# Opcodes that move or convert data without computing.
_MOVES = {
  'copy', 'copy-start', 'copy-done', 'transpose', 'reshape', 'bitcast',
  'bitcast-convert', 'broadcast', 'concatenate', 'pad', 'slice',
  'dynamic-slice', 'dynamic-update-slice', 'convert', 'reverse', 'iota',
}  # fmt: skip
_SLICES = ('dynamic-slice', 'gather', 'slice')  # read part of an operand
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
_MOST_USERS = 50  # limit of the search for a named user
_TARGET = re.compile(r'custom_call_target="([^"]*)"')


@dataclasses.dataclass(frozen=True)
class Array:
  """Type of an array, such as `f32[4,128]`."""

  dtype: str
  dims: tuple[int, ...]

  @property
  def bytes(self) -> int:
    """Size in bytes; types smaller than a byte count as one."""
    found = _BITS.match(self.dtype)
    bits = int(found[1]) if found and found[1] else 8
    return math.prod(self.dims) * max(bits // 8, 1)


@dataclasses.dataclass(frozen=True)
class Instruction:
  """An HLO instruction.

  Attributes:
    name: name that is unique in the program, also used by traces.
    opcode: opcode, such as 'fusion' or 'dot'.
    outputs: types of the results.
    operands: names of the operands.
    called: names of the computations it calls.
    contracting: contracting dims of the first operand, for products.
    target: target of a custom call, else ''.
    op_name: JAX's name stack (`metadata.op_name`), or ''.
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
    name: name of the module, also used by traces.
    instructions: instructions by name.
  """

  def __init__(self, text: str):
    """Args:
    text: HLO text from `compiled.as_text()`.
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
    """The instruction itself, or its nearest user that has an `op_name`.

    Copies and transposes that XLA adds have no name; they serve their users.
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
    """Yields the instruction and, recursively, those it calls."""
    yield instruction
    for name in instruction.called:
      for inner in self._computations.get(name, ()):
        yield from self.inside(inner)

  @functools.cache  # noqa: B019 (a command reads one program)
  def kind(self, name: str) -> str:
    """Kind of an instruction; for a fusion, that of its costliest part."""
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
    """FLOPs of the products in an instruction, 2 per multiply-add."""
    instruction, total = self.instructions[name], 0
    if _own_kind(instruction) == CONTROL:
      return 0  # its instructions are counted by themselves
    for inner in self.inside(instruction):
      if _own_kind(inner) == PRODUCT and inner.contracting and inner.operands:
        lhs = self.instructions[inner.operands[0]].outputs[0].dims
        depth = math.prod(lhs[dim] for dim in inner.contracting)
        total += 2 * math.prod(inner.outputs[0].dims) * depth
    return total

  @functools.cache  # noqa: B019
  def bytes(self, name: str) -> int:
    """Bytes read and written: each operand and output once, slices by size.

    Overestimates memory traffic if operands are still in a cache.
    """
    instruction = self.instructions[name]
    if _own_kind(instruction) == CONTROL:
      return 0  # its instructions are counted by themselves
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
    """Bytes that a body reads; of sliced arrays, only the slices."""
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
    """Bytes of the output; of an in-place update, only the update."""
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
  """Parses an instruction such as `f32[4]{0} add(%a, %b), metadata={...}`."""
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
  """Index after the parenthesis that closes the one at `start`."""
  depth = 0
  for place in range(start, len(text)):
    depth += (text[place] == '(') - (text[place] == ')')
    if not depth:
      return place + 1
  raise ValueError(f'a bracket is never closed: {text[start : start + 80]}')
