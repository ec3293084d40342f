"""What a Triton kernel compiles to on a GPU that this machine need not have.

Triton compiles for any target, and its wheel includes NVIDIA's disassembler; for AMD it keeps the
assembly itself. Both are read here. We count how many instructions an element costs and which unit
of the processor they run in, how wide the loads and stores are, and look for what a kernel should
never contain, such as float64 arithmetic or local memory.

A kernel processes full blocks without a mask and the last block with one. Costs are those of a full
block, including the prologue. The path counted runs from the entry to an exit that stores. It has
the fewest masked accesses, then the fewest calls (which leaves out the slow paths of divisions and
square roots), then the fewest instructions. So of a branch on data, the cheaper side counts.
Float64 and local memory count wherever they are.

With Triton's interpreter, if chosen in the environment, there is nothing to compile. So
`compile_all` compiles in separate processes, without the interpreter.
"""

from __future__ import annotations

import multiprocessing
import os
import re
import subprocess
import tempfile
from collections import Counter
from collections.abc import Callable, Iterator, Mapping, Sequence
from concurrent.futures import ProcessPoolExecutor, as_completed
from contextlib import contextmanager
from dataclasses import dataclass, field
from functools import cached_property
from pathlib import Path
from typing import Any, NamedTuple

from .. import LabError

TARGETS = ("sm_75", "sm_80", "sm_90", "sm_100", "gfx942")
"""T4; A100; H100 and H200; B200; MI300X."""

WIDE = 128
"""Bits: the widest access that every target has, and the one that moves memory fastest."""

ISSUE, FMA, HEAVY, ALU, SPECIAL = "issue", "FMA", "IMAD", "ALU", "SFU"
HALF, DOUBLE = "FP16", "FP64"
"""Units of NVIDIA's processors: the issue slots that every instruction takes; float32
multiplication and addition; the half of that unit that also multiplies integers; comparisons,
selects, logic and integer addition; special functions (on AMD: transcendental ones); packed
float16; float64.
"""
VECTOR, SCALAR = "VALU", "SALU"
"""AMD's units: the vector units, in which a transcendental instruction takes four slots, and the
scalar unit.
"""

FLOAT64, LOCAL, NARROW, UNSEEN = "float64", "local memory", "narrow accesses", "costs unseen"
"""Faults of a kernel. Float64: an unintended instruction in float64, often from a literal that
float32 doesn't have. Local memory: registers kept in memory. Narrow accesses: loads and stores of
less than `WIDE` bits, or masked. Costs unseen: calls, loops and branches on data, whose costs
aren't counted in full; or more or less memory traffic than its build says, so the path isn't the
right one.
"""

Finder = Callable[[str, str, str, str], "Build | None"]
"""Returns the build for a `Job`, or None if there is none. Must be a module-level function, since
other processes have to find it too.
"""


@dataclass(frozen=True)
class Build:
    """What Triton needs to compile a kernel, and how much work one program does."""

    kernel: Any
    """The `triton.jit` function."""
    signature: Mapping[str, Any]
    """The type of every argument, in order: "*fp32", "i64", "constexpr"; a tuple for a tuple."""
    constexprs: Mapping[str, Any]
    num_warps: int
    elements: int
    """Elements per program."""
    bytes_per_element: float
    """Bytes read from and written to memory, per element."""
    aligned: tuple[str, ...] = ()
    """Arguments that are divisible by 16."""

    @property
    def packed(self) -> int:
        """How many arguments point to bytes that hold one bit per element."""
        return sum(kind in ("*u8", "*i8") for kind in self.signature.values())

    @property
    def bits(self) -> int:
        """The bits of the widest element type that an argument points to."""
        kinds = [kind[1:] for kind in self.signature.values() if str(kind).startswith("*")]
        return max((int(re.sub(r"\D", "", kind) or 8) for kind in kinds), default=32)


class Job(NamedTuple):
    """Which kernel to compile for which target: enough to find its `Build` in another process."""

    function: str
    body: str
    dtype: str
    target: str


class Access(NamedTuple):
    """A kind of load from or store to global memory."""

    is_store: bool
    bits: int
    masked: bool


@dataclass(frozen=True)
class Code:
    """The machine code of one kernel for one target."""

    target: str
    opcodes: Mapping[str, int]
    """How often each instruction occurs on the main path of one thread."""
    operations: Mapping[str, float]
    """How many slots of each unit an element takes: see `nvidia_units` and `amd_units`."""
    accesses: Mapping[Access, int]
    """Loads and stores of global memory on the main path of one thread."""
    elements: float
    """Elements per thread."""
    bytes_per_element: float
    registers: int
    """32-bit registers per thread."""
    shared: int
    """Bytes of shared memory per program."""
    local: int
    """Bytes of local memory per thread (stack, spilled registers), or the accesses to it if more.
    """
    float64: tuple[str, ...]
    """Float64 instructions anywhere in a kernel whose arguments aren't float64."""
    calls: int
    """Calls on the main path, whose cost isn't counted here."""
    masks: int
    """On AMD: how often the main path masks off threads."""
    has_loop: bool
    """Whether there is a loop; its body then counts once."""
    diverged: float
    """Instructions per element if threads take both sides of every branch on data; otherwise only
    the cheaper side counts.
    """
    narrow_allowance: float
    """Bits per thread that may be accessed less than `WIDE` at a time: those of packed sides."""

    @property
    def instructions(self) -> float:
        """Instructions per element."""
        return self.operations.get(ISSUE, 0.0)

    @property
    def special(self) -> float:
        """Operations of the special-function unit (on AMD: transcendental), per element."""
        return self.operations.get(SPECIAL, 0.0)

    @property
    def moved(self) -> float:
        """Bytes loaded and stored on the main path, per element."""
        return sum(n * a.bits for a, n in self.accesses.items()) / (8 * self.elements)

    @property
    def is_wide(self) -> bool:
        """Whether everything but the packed sides is accessed `WIDE` bits at a time, unmasked."""
        if not any(access.is_store for access in self.accesses):
            return False
        narrow = sum(n * a.bits for a, n in self.accesses.items() if a.bits < WIDE)
        return narrow <= self.narrow_allowance and not any(a.masked for a in self.accesses)

    @property
    def access_words(self) -> str:
        """For example "load 2×128, store 1×128, 1×8 masked"."""
        parts = []
        for name, is_store in (("load", False), ("store", True)):
            accesses = [(a, n) for a, n in sorted(self.accesses.items()) if a.is_store == is_store]
            words = (f"{n}×{a.bits}{' masked' * a.masked}" for a, n in reversed(accesses))
            parts.append(f"{name} {', '.join(words) or 'none'}")
        return ", ".join(parts)

    @property
    def faults(self) -> dict[str, str]:
        """What no kernel should have, each fault with a description."""
        faults = {}
        if self.float64:
            faults[FLOAT64] = ", ".join(self.float64)
        if self.local:
            faults[LOCAL] = f"{self.local} bytes"
        if not self.is_wide:
            faults[NARROW] = self.access_words
        unseen = {
            # A thread or two may share a byte of packed sides, and so read or write it twice.
            f"moves {self.moved:.3g} bytes of {self.bytes_per_element:.3g}": (
                abs(self.moved - self.bytes_per_element) > 0.3
            ),
            f"calls: {self.calls}": self.calls > 0,
            f"masks: {self.masks}": self.masks > 0,
            "a loop": self.has_loop,
            f"branches: {self.instructions:.1f} to {self.diverged:.1f} instructions": (
                self.diverged > self.instructions
            ),
        }
        if any(unseen.values()):
            faults[UNSEEN] = ", ".join(words for words, is_so in unseen.items() if is_so)
        return faults


# ---- compiling -----------------------------------------------------------------------------------


def compile_for(build: Build, target: str) -> Code:
    """Compile a kernel and read its code; needs a process in which Triton isn't interpreted."""
    if target not in TARGETS:
        raise LabError(f"unknown target {target!r}; there are {', '.join(TARGETS)}")
    import triton
    from triton.backends.compiler import GPUTarget
    from triton.compiler import ASTSource

    is_amd = target.startswith("gfx")
    lanes = 64 if is_amd else 32
    gpu = GPUTarget("hip", target, lanes) if is_amd else GPUTarget("cuda", int(target[3:]), lanes)
    names = list(build.signature)
    source = ASTSource(
        fn=build.kernel,
        signature=dict(build.signature),
        constexprs=dict(build.constexprs),
        attrs={(names.index(name),): [["tt.divisibility", 16]] for name in build.aligned},
    )
    compiled = triton.compile(source, target=gpu, options={"num_warps": build.num_warps})
    elements = build.elements / (build.num_warps * lanes)
    if is_amd:
        return _read_amd(compiled.asm["amdgcn"], build, elements, target)
    return _read_nvidia(compiled.asm["cubin"], build, elements, target)


def _compile(find: Finder, job: Job) -> Code | str | None:
    try:
        build = find(*job)
        return None if build is None else compile_for(build, job.target)
    except Exception as error:  # whatever the compiler raises concerns this kernel only
        # Triton raises one error per function on the way to the one at fault.
        while isinstance(error.__cause__, Exception):
            error = error.__cause__
        # It shows the source and points into it; then it gives the reason, or stops there.
        lines = [line.strip() for line in str(error).splitlines() if line.strip(" ^")]
        return f"{type(error).__name__}: {lines[-1] if lines else ''}"


def compile_all(
    jobs: Sequence[Job], find: Finder, processes: int | None = None
) -> Iterator[tuple[Job, Code | str | None]]:
    """Every job as it finishes, with its code, an error message, or None if it has no kernel."""
    count = min(processes or os.cpu_count() or 1, max(1, len(jobs)))
    context = multiprocessing.get_context("spawn")
    # Start them without the interpreter, since their imports depend on it.
    with _without("TRITON_INTERPRET"), ProcessPoolExecutor(count, mp_context=context) as pool:
        jobs_by_future = {pool.submit(_compile, find, job): job for job in jobs}
        try:
            for future in as_completed(jobs_by_future):
                yield jobs_by_future[future], future.result()
        finally:
            pool.shutdown(cancel_futures=True)


@contextmanager
def _without(variable: str) -> Iterator[None]:
    value = os.environ.pop(variable, None)
    try:
        yield
    finally:
        if value is not None:
            os.environ[variable] = value


# ---- the main path -------------------------------------------------------------------------------


@dataclass(frozen=True)
class Instruction:
    """One instruction, and where execution may continue."""

    text: str
    opcode: str
    guarded: bool = False
    access: Access | None = None
    goes_to: str | None = None
    """The label that it branches to; "" if the kernel ends there."""
    falls_through: bool = True
    is_call: bool = False
    parts: bool = False
    """Whether it is a branch that each thread of a group may take or not by itself. (AMD's groups
    branch as one; they mask threads instead.)
    """
    masks: bool = False
    """Whether it masks off threads for what follows."""


class MainPath(NamedTuple):
    """What a thread runs where nothing is masked."""

    instructions: list[Instruction]
    diverged: int
    """How many instructions a group of threads runs if it takes every side of its branches."""
    has_loop: bool
    """Whether the kernel has a loop anywhere."""


@dataclass
class Program:
    """Instructions, and the labels in front of them."""

    instructions: list[Instruction] = field(default_factory=list)
    labels: dict[str, int] = field(default_factory=dict)
    """The index of the instruction that follows each label."""

    @cached_property
    def starts(self) -> list[int]:
        """Where basic blocks begin."""
        starts = {0, *self.labels.values()}
        for number, instruction in enumerate(self.instructions):
            if instruction.goes_to is not None or not instruction.falls_through:
                starts.add(number + 1)
        return sorted(start for start in starts if start < len(self.instructions))

    def block(self, start: int) -> list[Instruction]:
        """The instructions of the block that begins there."""
        following = self.starts.index(start) + 1
        stop = self.starts[following] if following < len(self.starts) else None
        return self.instructions[start:stop]

    def followers(self, start: int) -> list[int]:
        """Where the blocks that may run next begin."""
        block = self.block(start)
        last, followers = block[-1], []
        if last.falls_through and start + len(block) < len(self.instructions):
            followers.append(start + len(block))
        if last.goes_to:
            followers.append(self.labels[last.goes_to])
        return followers

    def main_path(self) -> MainPath:
        """The path that processes a full block."""
        order, has_loop = self._blocks_backwards()
        # For each block, and for whether anything is stored from there on: the least cost still to
        # come, and the blocks that may follow, best first, each with its own such flag.
        best: dict[tuple[int, bool], tuple[_Cost, list[tuple[int, bool]]]] = {}
        for start in order:  # the blocks that follow a block come before it in this order
            block = self.block(start)
            own, has_store = _Cost.of(block), any(i.access and i.access.is_store for i in block)
            followers = [
                (to, stores)
                for to in self.followers(start)
                for stores in (True, False)
                if (to, stores) in best
            ]
            ways: dict[bool, list[tuple[_Cost, list[tuple[int, bool]]]]] = {True: [], False: []}
            for to in followers:
                ways[to[1] or has_store].append((own.plus(best[to][0]), [to]))
            if not followers:
                ways[has_store].append((own, []))
            for stores, choices in ways.items():
                if choices:
                    choices.sort()
                    least = choices[0][0]
                    # Threads of a group may diverge there and run all sides, if these cost no more
                    # by the criteria that count first.
                    alike = [next for cost, next in choices if cost[:-1] == least[:-1]]
                    sides = alike if block[-1].parts else alike[:1]
                    best[start, stores] = least, [to for next in sides for to in next]
        entry = (0, (0, True) in best)
        path, current = [entry], entry
        while best[current][1]:
            current = best[current][1][0]
            path.append(current)
        reached = {entry}
        todo = [entry]
        while todo:
            for to in best[todo.pop()][1]:
                if to not in reached:
                    reached.add(to)
                    todo.append(to)
        return MainPath(
            [instruction for start, _ in path for instruction in self.block(start)],
            sum(len(self.block(start)) for start in {start for start, _ in reached}),
            has_loop,
        )

    def _blocks_backwards(self) -> tuple[list[int], bool]:
        """All reachable blocks, each after the blocks that follow it; and whether there's a loop.

        Backward branches are left out, since otherwise a block would have to follow itself.
        """
        order: list[int] = []
        state: dict[int, bool] = {}  # whether everything that follows is done
        has_loop = False
        stack = [(0, iter(self.followers(0)))]
        state[0] = False
        while stack:
            start, ways = stack[-1]
            to = next(ways, None)
            if to is None:
                stack.pop()
                state[start] = True
                order.append(start)
            elif to not in state:
                state[to] = False
                stack.append((to, iter(self.followers(to))))
            elif not state[to]:
                has_loop = True
        return order, has_loop


class _Cost(NamedTuple):
    """What the main path minimises, most important first."""

    masked: int = 0
    calls: int = 0
    instructions: int = 0

    @classmethod
    def of(cls, block: Sequence[Instruction]) -> _Cost:
        accesses = [i.access for i in block if i.access]
        return cls(
            sum(a.masked for a in accesses) + sum(i.masks for i in block),
            sum(i.is_call for i in block),
            len(block),
        )

    def plus(self, other: _Cost) -> _Cost:
        return _Cost(*map(sum, zip(self, other, strict=True)))


# ---- NVIDIA --------------------------------------------------------------------------------------

# Units are from NVIDIA's "Nsight Compute: Profiling Guide", Pipelines. FMA does float32 arithmetic
# and integer multiplication. ALU does comparisons, selects, integer addition, logic and (from
# Ampere on) the packing conversion from float32. XU does special functions and the other
# conversions. From GA10x on FMA is two pipes, and only the heavy one multiplies integers.
_FLOAT = frozenset(["FADD", "FMUL", "FFMA"])
_TWO_FLOATS = frozenset(["FADD2", "FMUL2", "FFMA2"])
_MULTIPLY = frozenset(["IMAD", "IMUL", "IDP", "IDP4A"])
_HALVES = frozenset(["HADD2", "HMUL2", "HFMA2"])
_XU = frozenset(["MUFU", "F2F", "F2I", "I2F", "FRND", "POPC", "FLO", "BREV"])
_DOUBLE = frozenset(["DADD", "DMUL", "DFMA", "DSETP", "DMNMX", "DMMA"])
# Memory, control flow and the uniform unit have units of their own, but take an issue slot.
_ELSEWHERE = re.compile(
    r"LD|ST|ATOM|RED|SHFL|MEMBAR|CCTL|BAR|DEPBAR|B[RS]|BREAK|EXIT|RET|CALL|WARPSYNC|WARPGROUP|"
    r"NOP|S2R|S2UR|CS2R|R2UR|YIELD|NANOSLEEP|ELECT|ACQBULK|ERRBAR|PREEXIT|U"
)
_LINE = re.compile(r"\s*/\*([0-9a-f]{4,})\*/\s+(@!?U?P[T0-9]+\s+)?([A-Z0-9_.]+)\s*(.*?)\s*;")


def nvidia_units(opcode: str, target: str) -> dict[str, float]:
    """The units that an instruction takes, and how many slots of each, per thread.

    An unknown instruction is counted for the ALU, which is no faster than any other unit that it
    might run in.
    """
    base = opcode.partition(".")[0]
    # A packed instruction does two operations and saves only an issue slot.
    if base in _FLOAT or base in _TWO_FLOATS:
        return {ISSUE: 1, FMA: 2 if base in _TWO_FLOATS else 1}
    if base in _MULTIPLY:
        return {ISSUE: 1, FMA: 1, HEAVY: 1}
    if base in _HALVES:  # Turing and GA100 have a pipe for it; later both FMA pipes run it
        return {ISSUE: 1, HALF: 1} if _number(target) <= 80 else {ISSUE: 1, FMA: 2, HEAVY: 1}
    if base in _XU:
        return {ISSUE: 1, SPECIAL: 1}
    if base in _DOUBLE:
        return {ISSUE: 1, DOUBLE: 1}
    if _ELSEWHERE.match(base):
        return {ISSUE: 1}
    return {ISSUE: 1, ALU: 1}


def _number(target: str) -> int:
    return int(target[3:])


def _read_nvidia(cubin: bytes, build: Build, elements: float, target: str) -> Code:
    text = _disassemble(cubin)
    program = parse_nvidia(text)
    usage = {name: int(n) for name, n in re.findall(r"(REG|STACK|SHARED|LOCAL):(\d+)", text)}
    opcodes = [i.opcode for i in program.instructions]
    return _code(
        program,
        build,
        elements,
        target,
        registers=usage["REG"],
        shared=usage["SHARED"],
        local=max(
            usage["STACK"] + usage["LOCAL"], sum(o.startswith(("LDL", "STL")) for o in opcodes)
        ),
        float64=[o for o in opcodes if _is_double(o)],
    )


def _is_double(opcode: str) -> bool:
    base, _, modifiers = opcode.partition(".")
    kinds = modifiers.split(".")
    return base in _DOUBLE or (
        base in _XU and any(kind == "F64" or kind.endswith("64H") for kind in kinds)
    )


def _disassemble(cubin: bytes) -> str:
    import triton.backends.nvidia

    tool = Path(triton.backends.nvidia.__file__).parent / "bin" / "cuobjdump"
    with tempfile.TemporaryDirectory() as folder:
        path = Path(folder, "kernel.cubin")
        path.write_bytes(cubin)
        command = [str(tool), "-sass", "-res-usage", str(path)]
        result = subprocess.run(command, capture_output=True, text=True)
    if result.returncode:
        raise LabError(f"cuobjdump failed: {result.stderr.strip()}")
    return result.stdout


def parse_nvidia(text: str) -> Program:
    """The instructions in the output of `cuobjdump -sass` for one kernel."""
    program = Program()
    rejoins: dict[str, str] = {}  # where a convergence barrier brings threads back together
    for line in text.splitlines():
        match = _LINE.match(line)
        if not match:
            continue
        address, guard, opcode, operands = match.groups()
        base = opcode.partition(".")[0]
        guarded = bool(guard) and not guard.startswith(("@PT", "@UPT"))
        addresses = [hex(int(a, 16)) for a in re.findall(r"0x[0-9a-f]+", operands)]
        goes_to, falls_through = None, True
        if base == "BSSY":
            rejoins[operands.split(",")[0]] = addresses[-1]
        elif base == "BSYNC":
            goes_to, falls_through = rejoins[operands.split(",")[0]], guarded
        elif base in ("BRA", "JMP"):
            goes_to = addresses[-1]
            falls_through = guarded or re.match(r"!?U?P\d", operands) is not None
        elif base in ("EXIT", "RET"):
            goes_to, falls_through = "", guarded
        elif base in ("BRX", "JMX", "BRXU", "JMXU"):
            raise LabError(f"a branch that can't be followed: {line.strip()}")
        program.labels[hex(int(address, 16))] = len(program.instructions)
        program.instructions.append(
            Instruction(
                match.group(0).strip(),
                opcode,
                guarded=guarded,
                access=_nvidia_access(base, opcode, guarded),
                goes_to=goes_to,
                falls_through=falls_through,
                is_call=base == "CALL",
                parts=base == "BRA" and falls_through and "UP" not in (guard or "") + operands,
            )
        )
    # Every address got a label; keep only those that are branched to, as blocks begin there.
    gone_to = {i.goes_to for i in program.instructions}
    program.labels = {label: index for label, index in program.labels.items() if label in gone_to}
    if not program.instructions:
        raise LabError("no instructions were found in what cuobjdump printed")
    return program


def _nvidia_access(base: str, opcode: str, guarded: bool) -> Access | None:
    if base not in ("LDG", "STG"):
        return None
    width = re.search(r"\.[US]?(8|16|64|96|128|256)(?=\.|$)", opcode)
    wider = ".ENL2" in opcode  # Blackwell: 256 bits that go to two groups of registers
    return Access(base == "STG", int(width.group(1)) if width else 256 if wider else 32, guarded)


# ---- AMD -----------------------------------------------------------------------------------------

_TRANSCENDENTAL = re.compile(r"v_(exp|log|rcp|rcp_iflag|rsq|sqrt|sin|cos)_(legacy_)?[fb](16|32|64)")
_FLOAT_AMD = re.compile(r"v_(pk_)?(fma|fmac|mul|add|sub|subrev|mad|mac|fmaak|fmamk)_(f|legacy_f)")
_WAITS = re.compile(r"s_(waitcnt|nop|branch|cbranch|endpgm|barrier|sleep|sethalt|setprio|clause)")
_ACCESS_AMD = re.compile(r"(?:global|flat|buffer)_(load|store)_[us]?(byte|short|dword)(?:x(\d))?")
_SIZES = {"byte": 8, "short": 16, "dword": 32}


def amd_units(opcode: str) -> dict[str, float]:
    """The units that an instruction takes, and how many slots of each, per thread.

    Transcendental functions run at a quarter of the rate of other vector instructions and block
    these meanwhile, according to LLVM's cost model for these targets.
    """
    if _TRANSCENDENTAL.match(opcode):
        return {ISSUE: 1, VECTOR: 4, SPECIAL: 1}
    if opcode.startswith("v_"):
        return {ISSUE: 1, VECTOR: 1, FMA if _FLOAT_AMD.match(opcode) else ALU: 1}
    if opcode.startswith("s_") and not _WAITS.match(opcode):
        return {ISSUE: 1, SCALAR: 1}
    return {ISSUE: 1}


def _read_amd(text: str, build: Build, elements: float, target: str) -> Code:
    program = parse_amd(text)
    opcodes = [i.opcode for i in program.instructions]

    def stated(name: str) -> int:
        match = re.search(rf"\.{name}:\s+(\d+)", text)
        if not match:
            raise LabError(f"no {name} in the assembly")
        return int(match.group(1))

    return _code(
        program,
        build,
        elements,
        target,
        registers=stated("vgpr_count"),
        shared=stated("group_segment_fixed_size"),
        local=max(
            stated("private_segment_fixed_size"),
            4 * (stated("vgpr_spill_count") + stated("sgpr_spill_count")),
            sum(o.startswith("scratch_") for o in opcodes),
        ),
        float64=[o for o in opcodes if re.match(r"v_.*_f64", o)],
    )


def parse_amd(text: str) -> Program:
    """The instructions in AMD's assembly for one kernel."""
    program = Program()
    kernel = re.search(r"^\s*\.type\s+(\S+),@function", text, re.MULTILINE)
    if not kernel:
        raise LabError("no function in the assembly")
    body = text[text.index(f"\n{kernel.group(1)}:") :]
    for line in body[: body.index(".Lfunc_end")].splitlines():
        label = re.match(r"(\.LBB\w+):", line)
        if label:
            program.labels[label.group(1)] = len(program.instructions)
            continue
        match = re.match(r"\s+([a-z]+_\w+)\s*([^;]*)", line)
        if not match:
            continue
        opcode, operands = match.group(1), match.group(2).strip()
        if opcode in ("s_setpc_b64",):
            raise LabError(f"a branch that can't be followed: {line.strip()}")
        branches = opcode.startswith(("s_branch", "s_cbranch"))
        ends = opcode == "s_endpgm"
        program.instructions.append(
            Instruction(
                match.group(0).strip(),
                opcode,
                access=_amd_access(opcode),
                goes_to=operands if branches else "" if ends else None,
                falls_through=not (ends or opcode == "s_branch"),
                is_call=opcode == "s_swappc_b64",
                masks="saveexec" in opcode or opcode.startswith("v_cmpx"),
            )
        )
    return program


def _amd_access(opcode: str) -> Access | None:
    match = _ACCESS_AMD.match(opcode)
    if not match:
        return None
    direction, kind, times = match.groups()
    return Access(direction == "store", _SIZES[kind] * int(times or 1), False)


# ---- both ----------------------------------------------------------------------------------------


def _code(
    program: Program,
    build: Build,
    elements: float,
    target: str,
    *,
    registers: int,
    shared: int,
    local: int,
    float64: Sequence[str],
) -> Code:
    path, diverged, has_loop = program.main_path()
    operations = Counter[str]()
    for instruction in path:
        opcode = instruction.opcode
        is_amd = target.startswith("gfx")
        operations.update(amd_units(opcode) if is_amd else nvidia_units(opcode, target))  # type: ignore[arg-type]
    return Code(
        target=target,
        opcodes=dict(Counter(i.opcode for i in path)),
        operations={unit: count / elements for unit, count in operations.items()},
        accesses=dict(Counter(i.access for i in path if i.access)),
        elements=elements,
        bytes_per_element=build.bytes_per_element,
        registers=registers,
        shared=shared,
        local=local,
        float64=() if "*fp64" in build.signature.values() else tuple(sorted(set(float64))),
        calls=sum(i.is_call for i in path),
        masks=sum(i.masks for i in path),
        has_loop=has_loop,
        diverged=diverged / elements,
        # One byte per access of `WIDE` bits, or one bit per element if that is more.
        narrow_allowance=build.packed * elements * max(1.0, 8 * build.bits / WIDE),
    )
