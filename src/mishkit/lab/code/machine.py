"""What the compiler made of the kernels: the instructions in the main loop of each.

Kernels are found without their symbols, which may be stripped and have mangled names. Instead we
use the tables of kernel pointers that csrc/kernels.cpp fills (`InstructionSet`, `Functions` and
`FunctionKernels` in csrc/kernels.h), which the loader's relocations reveal. objdump then
disassembles the code.
"""

from __future__ import annotations

import bisect
import re
import shutil
import struct
import subprocess
from dataclasses import dataclass
from functools import cached_property, lru_cache
from pathlib import Path

from mishkit.backends import cpu
from mishkit.bodies import BODIES
from mishkit.functions import ACTIVATIONS

from .. import LabError

# As in csrc/kernels.h.
DTYPES = ("float32", "float64", "bfloat16", "float16")
ISAS = {"baseline": 16, "avx2": 32, "avx512": 64, "neon": 16}
"""Instruction sets, and the size of their vectors in bytes."""
BLOCK_VECTORS = 4
"""Vectors per iteration of the main loop (csrc/loops.h)."""
_HEAD = 16
"""Where the pointers of a FunctionKernels begin."""

_RELATIVE = {62: 8, 183: 1027}
"""For each ELF machine (x86-64, arm64): the relocation that adds the library's load address."""
_OBJDUMPS = ("objdump", "llvm-objdump")

# Instructions on vector registers, by the register names of the two syntaxes.
_VECTOR = re.compile(r"%[xyz]mm|%k[0-7]|\b[vq]\d+(?:\.\d+[bhsd])?\b")
_DIVISION = re.compile(r"^v?divp[sd]$|^fdiv$")
_ROOT = re.compile(r"^v?sqrtp[sd]$|^fsqrt$")
_STREAMING = re.compile(r"^v?movnt|^stnp$")
_LINE = re.compile(r"^\s*([0-9a-f]+):\s+(\S+)\s*(.*)$")
_JUMP = re.compile(r"^(j[a-z]+|b(\.[a-z]+)?|cbn?z|tbn?z)$")
_TARGET = re.compile(r"(?:^|[\s,])(?:0x)?([0-9a-f]+)\s*(?:<|$)")


@dataclass(frozen=True)
class LoopCounts:
    """The main loop of one kernel; counts are per element."""

    isa: str
    body: str
    dtype: str
    vector_instructions: float
    divisions: float
    """Vector divisions; each handles as many elements as a vector has."""
    square_roots: float
    other_instructions: float
    """Address computation, counters and jumps."""
    elements: int
    """Elements per iteration."""
    iterates: bool
    """Whether there is an inner loop; it is counted as one pass."""


@dataclass(frozen=True)
class Instruction:
    """One line of a disassembly."""

    address: int
    name: str
    operands: str

    @property
    def is_vector(self) -> bool:
        """Whether it uses vector registers."""
        return bool(_VECTOR.search(self.operands))

    @property
    def ends(self) -> bool:
        """Whether the code after it can only be reached by jumps."""
        return self.name in ("jmp", "ret", "b", "br", "ud2")

    @property
    def target(self) -> int | None:
        """The address that it jumps to."""
        match = _TARGET.search(self.operands) if _JUMP.match(self.name) else None
        return int(match[1], 16) if match else None


class Library:
    """The kernels in a built library, a 64-bit ELF file."""

    def __init__(self, path: Path) -> None:
        self.path = path
        self._bytes = path.read_bytes()
        if self._bytes[:6] != b"\x7fELF\x02\x01":
            raise LabError("instructions are counted in ELF libraries (Linux) alone")

    @cached_property
    def _sections(self) -> list[tuple[int, int, int, int]]:
        """Type, address, offset and size of each section."""
        start, size, count = (
            struct.unpack_from("<Q", self._bytes, 40)[0],
            *struct.unpack_from("<HH", self._bytes, 58),
        )
        sections = []
        for number in range(count):
            _, kind, _, address, offset, length = struct.unpack_from(
                "<IIQQQQ", self._bytes, start + number * size
            )
            sections.append((kind, address, offset, length))
        return sections

    @cached_property
    def _pointers(self) -> dict[int, int]:
        """What the loader will write: for each address, an address in the library."""
        machine = struct.unpack_from("<H", self._bytes, 18)[0]
        relative = _RELATIVE.get(machine)
        pointers: dict[int, int] = {}
        for kind, _, offset, length in self._sections:
            if kind == 4:  # relocations with addends
                rows = struct.iter_unpack("<QQq", self._bytes[offset : offset + length])
                pointers |= {
                    address: addend
                    for address, info, addend in rows
                    if info & 0xFFFFFFFF == relative
                }
        return pointers

    def _offset(self, address: int) -> int | None:
        """The file offset of the byte at an address."""
        for kind, start, offset, length in self._sections:
            if kind != 8 and start and start <= address < start + length:
                return offset + address - start
        return None

    def _pointer(self, address: int) -> int:
        if address in self._pointers:
            return self._pointers[address]
        # Packed relocations keep their addends in place.
        offset = self._offset(address)
        return struct.unpack_from("<Q", self._bytes, offset)[0] if offset is not None else 0

    def _text(self, address: int) -> str:
        offset = self._offset(address) if address else None
        if offset is None:
            return ""
        end = self._bytes.find(b"\0", offset, offset + 40)
        return self._bytes[offset:end].decode("ascii", "replace") if end > offset else ""

    @cached_property
    def kernels(self) -> dict[tuple[str, str, str, str], int]:
        """The addresses of all kernels, by instruction set, function, dtype and body."""
        kernels = {}
        for address in sorted(self._pointers):
            isa = self._text(self._pointer(address))
            if isa not in ISAS:
                continue
            in_order = self._pointer(address + 8)
            while (name := self._text(self._pointer(self._pointer(in_order)))) in ACTIVATIONS:
                row = self._pointer(in_order)
                places = [(dtype, body) for dtype in DTYPES for body in BODIES]
                for number, (dtype, body) in enumerate(places):
                    kernels[isa, name, dtype, body] = self._pointer(row + _HEAD + 8 * number)
                in_order += 8
        if not kernels:
            raise LabError("the library has no table of kernels that could be read")
        return kernels

    @cached_property
    def _starts(self) -> list[int]:
        return sorted(set(self.kernels.values()))

    @cached_property
    def _tool(self) -> str:
        tool = next(filter(None, map(shutil.which, _OBJDUMPS)), None)
        if tool is None:
            raise LabError(
                "instructions are not counted: objdump is not installed (it is in binutils)"
            )
        return tool

    def disassemble(self, address: int) -> list[Instruction]:
        """The instructions from a kernel's start to its end, or to the next kernel."""
        following = bisect.bisect_right(self._starts, address)
        limit = address + (1 << 16)
        end = min(self._starts[following], limit) if following < len(self._starts) else limit
        command = [self._tool, "-d", "--no-show-raw-insn", f"--start-address={address:#x}"]
        result = subprocess.run(
            [*command, f"--stop-address={end:#x}", str(self.path)], capture_output=True, text=True
        )
        if result.returncode:
            raise LabError(f"objdump failed: {result.stderr.strip().splitlines()[-1]}")
        instructions: list[Instruction] = []
        for line in result.stdout.splitlines():
            if line.endswith(">:") and instructions:  # the symbol of another function
                break
            match = _LINE.match(line)
            if match:
                instructions.append(Instruction(int(match[1], 16), match[2], match[3]))
        return instructions

    def count(
        self, isa: str, function: str, dtype: str, body: str, *, iterated: bool = False
    ) -> LoopCounts:
        """Count the instructions of a kernel's main loop; of the iterated one if it has two."""
        loop = self._main_loop(self.kernels[isa, function, dtype, body], iterated)
        lanes = ISAS[isa] // (8 if dtype == "float64" else 4)
        elements = BLOCK_VECTORS * lanes
        vector = [i for i in loop.code if i.is_vector]
        return LoopCounts(
            isa=isa,
            body=body,
            dtype=dtype,
            vector_instructions=len(vector) / elements,
            divisions=sum(bool(_DIVISION.match(i.name)) for i in vector) / elements,
            square_roots=sum(bool(_ROOT.match(i.name)) for i in vector) / elements,
            other_instructions=(len(loop.code) - len(vector)) / elements,
            elements=elements,
            iterates=loop.has_inner,
        )

    def _main_loop(self, address: int, iterated: bool) -> Loop:
        """The longest loop that writes through the caches; a kernel may jump to others."""
        code = self.disassemble(address)
        candidates = _main_loops(code)
        if not candidates:
            inside = range(code[0].address, code[-1].address + 1)
            targets = {i.target for i in code if i.target and i.target not in inside}
            candidates = [
                loop for target in targets for loop in _main_loops(self.disassemble(target))
            ]
        if not candidates:
            raise LabError("no loop was found in a kernel")
        matching = [loop for loop in candidates if loop.has_inner == iterated] or candidates
        return max(matching, key=lambda loop: loop.weight)


def _main_loops(code: list[Instruction]) -> list[Loop]:
    """The loops over full blocks; the small loops over the remaining elements are left out."""
    usual = [loop for loop in loops(code) if loop.is_usual and not loop.is_inner]
    heaviest = max((loop.weight for loop in usual), default=0)
    return [loop for loop in usual if loop.weight > heaviest / 2]


@dataclass(frozen=True)
class Loop:
    """The instructions of a loop."""

    code: list[Instruction]
    has_inner: bool
    is_inner: bool

    @property
    def weight(self) -> int:
        """The number of its vector instructions."""
        return sum(i.is_vector for i in self.code)

    @property
    def is_usual(self) -> bool:
        """Whether it uses vectors and does not bypass the caches."""
        streams = any(_STREAMING.match(i.name) for i in self.code)
        return not streams and self.weight > 0


def loops(code: list[Instruction]) -> list[Loop]:
    """The natural loops of a function: a jump back to a dominating block, and all in between.

    Not every backward jump is one, since compilers put unlikely code after the rest.
    """
    index = {instruction.address: i for i, instruction in enumerate(code)}
    targets = {index[i.target] for i in code if i.target in index}
    after_jump = {n + 1 for n, i in enumerate(code) if _JUMP.match(i.name) or i.ends}
    heads = sorted({0, *targets, *(n for n in after_jump if n < len(code))})
    blocks = dict(zip(heads, [*heads[1:], len(code)], strict=True))
    follows: dict[int, list[int]] = {}
    for head, end in blocks.items():
        last = code[end - 1]
        follows[head] = [index[last.target]] if last.target in index else []
        if not last.ends and end < len(code):
            follows[head].append(end)
    reached, todo = set(), [0]  # the padding between blocks is not reached
    while todo:
        head = todo.pop()
        if head not in reached:
            reached.add(head)
            todo += follows[head]
    heads = sorted(reached)
    follows = {head: follows[head] for head in heads}
    predecessors: dict[int, list[int]] = {head: [] for head in heads}
    for head, nexts in follows.items():
        for following in nexts:
            predecessors[following].append(head)
    dominators = _dominators(heads, predecessors)
    bodies: dict[int, set[int]] = {}
    ways_back: list[int] = []
    for head, nexts in follows.items():
        for top in nexts:
            if top in dominators[head]:
                ways_back.append(top)
                bodies.setdefault(top, {top}).update(_on_the_way(head, top, predecessors))
    return [
        Loop(
            [i for head in sorted(body) for i in code[head : blocks[head]]],
            # Two loops may begin at the same place.
            has_inner=sum(other_top in body for other_top in ways_back) > 1,
            is_inner=any(
                other_top != top and top in inside for other_top, inside in bodies.items()
            ),
        )
        for top, body in bodies.items()
    ]


def _dominators(heads: list[int], predecessors: dict[int, list[int]]) -> dict[int, set[int]]:
    """The blocks that every path to a block goes through."""
    everything = set(heads)
    dominators = {head: {0} if head == 0 else everything for head in heads}
    changed = True
    while changed:
        changed = False
        for head in heads[1:]:
            ways = [dominators[b] for b in predecessors[head]]
            new = {head} | (set.intersection(*ways) if ways else set())
            changed |= new != dominators[head]
            dominators[head] = new
    return dominators


def _on_the_way(bottom: int, top: int, predecessors: dict[int, list[int]]) -> set[int]:
    body, todo = {top}, [bottom]
    while todo:
        block = todo.pop()
        if block not in body:
            body.add(block)
            todo += predecessors[block]
    return body


@lru_cache(maxsize=1)
def library() -> Library:
    """The library of this installation."""
    if not cpu.LIBRARY.exists():
        raise LabError("instructions are not counted: the kernels were not built")
    return Library(cpu.LIBRARY)
