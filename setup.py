"""Builds mishkit/_kernels.so, the CPU kernels, and a small library for `mishkit accuracy`.

The rest of the metadata is in pyproject.toml.

The library speaks PyTorch's stable C ABI and is loaded by torch.ops.load_library, so building it
needs neither torch nor Python's headers: a C++17 compiler is enough, and one wheel serves every
Python and every torch from 2.10 on. Without a compiler the package installs all the same and
works through plain torch.

Environment: CXX, CXXFLAGS and LDFLAGS as usual; MISHKIT_REQUIRE_KERNELS=1 makes a failed build
of the kernels an error; MISHKIT_NO_KERNELS=1 leaves them out.
"""

from __future__ import annotations

import hashlib
import os
import shlex
import shutil
import subprocess
import sys
from collections.abc import Sequence
from concurrent.futures import ThreadPoolExecutor
from functools import cached_property
from pathlib import Path

from setuptools import Extension, setup
from setuptools.command.bdist_wheel import bdist_wheel
from setuptools.command.build_ext import build_ext

NAME = "mishkit._kernels"
BIND, KERNELS = "csrc/bind.cpp", "csrc/kernels.cpp"
COUNTER, ERRORS = "mishkit.lab.accuracy._errors", "csrc/errors.cpp"
"""What only `mishkit accuracy --exhaustive` needs, in a library of its own."""
HEADERS = sorted(str(path) for path in Path("csrc").rglob("*.h"))
OF_BIND = [path for path in HEADERS if Path(path).parts[1] == "bind"]
"""Headers that the kernels, which take minutes to compile, don't include."""
PARTS = 6
"""How many parts of the kernels are compiled at the same time, for each instruction set."""

AVX2 = ["-mavx2", "-mfma", "-mf16c", "-mbmi2"]
AVX512 = ["-mavx512f", "-mavx512bw", "-mavx512dq", "-mavx512vl", *AVX2]
X86: dict[str, list[str]] = {
    "baseline": [],
    "avx2": AVX2,
    "avx512": [*AVX512, "-mprefer-vector-width=512"],
}
ARM: dict[str, list[str]] = {"neon": []}
ISAS = {"x86_64": X86, "amd64": X86, "aarch64": ARM, "arm64": ARM}

COMMON = shlex.split(
    "-O3 -std=c++17 -fPIC -fvisibility=hidden -fno-math-errno -fno-trapping-math"
    " -ffp-contract=off -DNDEBUG -Wall -Wextra"
)
# GCC's own AVX-512 headers trip these warnings (its bug 105593).
QUIET = ["-Wno-maybe-uninitialized", "-Wno-uninitialized"]
# Software-pipelined loops gain from scheduling before register allocation, which GCC leaves off
# on x86; clang has no such flags.
SCHEDULE = ["-fschedule-insns", "-fsched-pressure"]


class BuildError(Exception):
    """The kernels cannot be built here; the message says why in one line."""


class Compiler:
    """The C++ compiler, asked rather than guessed about: target, flags."""

    def __init__(self) -> None:
        found = next(filter(shutil.which, ("c++", "g++", "clang++")), None)
        self.command = shlex.split(os.environ.get("CXX", found or ""))
        if not self.command:
            raise BuildError("no C++ compiler found (set CXX to name one)")
        # "x86_64-linux-gnu", "arm64-apple-darwin23.1.0": right under cross-compilation too.
        self.triple = self.run(["-dumpmachine"]).strip()
        self.machine = self.triple.partition("-")[0]
        self.is_mac = "darwin" in self.triple
        if not (self.is_mac or "linux" in self.triple) or self.machine not in ISAS:
            raise BuildError(f"there are no kernels for {self.triple or self.command[0]}")

    def run(self, args: Sequence[str]) -> str:
        command = [*self.command, *args]
        try:
            done = subprocess.run(
                command,
                stdin=subprocess.DEVNULL,
                capture_output=True,
                text=True,
                errors="replace",  # a compiler may speak another encoding than Python
            )
        except OSError as error:
            raise BuildError(f"{command[0]} does not start ({error.strerror})") from None
        sys.stderr.write(done.stderr)  # warnings too
        if done.returncode:
            raise BuildError(f"{shlex.join(self.command)} failed with status {done.returncode}")
        return done.stdout

    def accepts(self, flags: Sequence[str]) -> bool:
        # -Werror because clang merely warns about an optimisation flag that it does not know.
        probe = ["-Werror", *flags, "-x", "c++", "-c", os.devnull, "-o", os.devnull]
        return not subprocess.run([*self.command, *probe], capture_output=True).returncode

    @cached_property
    def isas(self) -> dict[str, list[str]]:
        """The instruction sets that the compiler knows, each with its flags."""
        isas = {isa: flags for isa, flags in ISAS[self.machine].items() if self.accepts(flags)}
        extra = QUIET * self.accepts(QUIET)
        extra += SCHEDULE * (ISAS[self.machine] is X86 and self.accepts(SCHEDULE))
        return {isa: flags + extra for isa, flags in isas.items()}

    def compile(self, source: str, target: Path, flags: Sequence[str]) -> bool:
        """Compiles unless the object is up to date; says whether it did."""
        args = [*COMMON, *flags, *shlex.split(os.environ.get("CXXFLAGS", "")), "-c", source]
        recipe = target.with_suffix(".cmd")  # a change of flags or compiler rebuilds as well
        command = shlex.join([*self.command, *args])
        headers = {BIND: HEADERS, KERNELS: set(HEADERS) - set(OF_BIND)}.get(source, ())
        needs = [source, *headers]
        fresh = target.exists() and recipe.exists() and recipe.read_text() == command
        if fresh and target.stat().st_mtime >= max(os.path.getmtime(need) for need in needs):
            return False
        target.parent.mkdir(parents=True, exist_ok=True)
        recipe.unlink(missing_ok=True)  # an object is complete only beside its recipe
        self.run([*args, "-o", str(target)])
        recipe.write_text(command)
        return True

    def link(self, objects: Sequence[Path], target: Path, scratch: Path, torch: bool) -> None:
        # libstdc++ and libgcc stay dynamic. An error is a C++ exception that unwinds through
        # torch's frames, and two copies of the unwinder abort the process; torch has loaded the
        # shared ones anyway.
        libraries = []
        if torch and self.is_mac:
            libraries = ["-undefined", "dynamic_lookup"]
        elif torch:
            # The library must name libtorch_cpu.so as needed, but torch is not here. A stub with
            # that soname will do: at run time the torch already loaded answers to it.
            stub = scratch / "libtorch_cpu.so"
            soname = f"-Wl,-soname,{stub.name}"
            self.run(["-shared", "-nostdlib", soname, "-x", "c++", os.devnull, "-o", str(stub)])
            libraries = ["-Wl,--no-as-needed", str(stub), "-Wl,--as-needed"]
        target.parent.mkdir(parents=True, exist_ok=True)
        libraries += shlex.split(os.environ.get("LDFLAGS", ""))
        self.run(["-shared", *map(str, objects), *libraries, "-o", str(target)])

    def link_if_new(
        self, objects: Sequence[Path], target: Path, scratch: Path, anew: bool, torch: bool
    ) -> bool:
        """Links unless the library is up to date; says whether it did."""
        linked = scratch / f"{target.stem}.sha256"  # as it was linked: a library cut short differs
        if not anew and linked.exists() and linked.read_text() == digest(target):
            return False
        linked.unlink(missing_ok=True)
        self.link(objects, target, scratch, torch)
        linked.write_text(digest(target))
        return True


def required() -> bool:
    """Whether the environment says that kernels which can't be built are an error."""
    return os.environ.get("MISHKIT_REQUIRE_KERNELS", "0") not in ("", "0")


def compile_all(compiler: Compiler, scratch: Path) -> tuple[list[str], list[Path], bool]:
    """Compiles the kernels for each instruction set that can be, and what binds them to torch.

    Returns the instruction sets, the objects, and whether any object was compiled anew. An
    instruction set that the compiler says it knows and then fails on is left out, and a line says
    so; where the kernels are required it is an error.
    """

    def of_part(isa: str, part: int) -> Path:
        return scratch / f"kernels-{isa}-{part}.o"

    def compile_part(job: tuple[str, int]) -> bool | BuildError:
        isa, part = job
        macros = {"ISA": isa, "PARTS": PARTS, "PART": part}
        flags = [f"-DMISHKIT_{name}={value}" for name, value in macros.items()]
        try:
            return compiler.compile(KERNELS, of_part(isa, part), flags + compiler.isas[isa])
        except BuildError as error:
            return error

    def of_bind(isas: Sequence[str]) -> Path:
        return scratch / f"bind-{'-'.join(isas)}.o"

    def compile_bind(isas: Sequence[str]) -> bool:
        return compiler.compile(BIND, of_bind(isas), [f"-DMISHKIT_HAS_{x.upper()}" for x in isas])

    isas = list(compiler.isas)
    if not isas:
        raise BuildError("the compiler knows no instruction set")
    with ThreadPoolExecutor(os.cpu_count()) as pool:
        # The last functions of the table have the most parameters and the most code: they begin.
        jobs = [(isa, part) for part in reversed(range(PARTS)) for isa in isas]
        of_parts = pool.map(compile_part, jobs)
        of_binding = pool.submit(compile_bind, tuple(isas))
        parts = dict(zip(jobs, of_parts, strict=True))
    failed = {isa: error for (isa, _), error in parts.items() if isinstance(error, BuildError)}
    if len(failed) == len(isas) or (failed and required()):
        raise next(iter(failed.values()))
    for isa, error in failed.items():
        print(f"mishkit: going on without {isa}: {error}", flush=True)
        isas.remove(isa)
    bound = compile_bind(isas) if failed else of_binding.result()
    objects = [of_part(isa, part) for isa in isas for part in range(PARTS)]
    anew = bound or any(parts[isa, part] for isa, part in jobs if isa in isas)
    return isas, [*objects, of_bind(isas)], anew


def build(target: Path, scratch: Path) -> str:
    """Builds the library at target and returns a line that says what was done."""
    if os.environ.get("MISHKIT_NO_KERNELS", "0") not in ("", "0"):
        raise BuildError("MISHKIT_NO_KERNELS is set")
    compiler = Compiler()
    isas, objects, anew = compile_all(compiler, scratch)
    if compiler.link_if_new(objects, target, scratch, anew, torch=True):
        return f"built {target.name} ({', '.join(isas)}) with {compiler.command[0]}"
    return f"{target.name} ({', '.join(isas)}) is up to date"


def build_counter(target: Path, scratch: Path) -> str:
    """Builds the library that counts errors, and returns a line that says what was done."""
    compiler = Compiler()
    counter = scratch / "errors.o"
    anew = compiler.compile(ERRORS, counter, [])
    built = compiler.link_if_new([counter], target, scratch, anew, torch=False)
    return f"built {target.name}" if built else f"{target.name} is up to date"


def digest(path: Path) -> str:
    """Of a file's content; empty where there is no file."""
    return hashlib.sha256(path.read_bytes()).hexdigest() if path.exists() else ""


class BuildKernels(build_ext):
    """build_ext for a library that is not a Python module, and that may be missing."""

    def get_ext_filename(self, fullname: str) -> str:
        return os.path.join(*fullname.split(".")) + ".so"

    def build_extension(self, ext: Extension) -> None:
        target = Path(self.get_ext_fullpath(ext.name))
        if ext.name == COUNTER and not Path(self.get_ext_fullpath(NAME)).exists():
            target.unlink(missing_ok=True)
            return  # there is nothing to count without the kernels, and the reason has been said
        make = build if ext.name == NAME else build_counter
        try:
            print("mishkit:", make(target, Path(self.build_temp)), flush=True)
        except BuildError as error:
            target.unlink(missing_ok=True)  # one left by an earlier build would be stale
            if required():
                raise SystemExit(f"mishkit: the kernels were not built: {error}") from None
            print(f"mishkit: {error}: going on without the kernels, on plain torch", flush=True)

    def copy_extensions_to_source(self) -> None:
        build_py = self.get_finalized_command("build_py")
        for ext in self.extensions:
            inplace, built = self._get_inplace_equivalent(build_py, ext)
            # Or a newer one would stay: a stale one, or one that was cut short.
            if digest(Path(built)) != digest(Path(inplace)):
                Path(inplace).unlink(missing_ok=True)
        super().copy_extensions_to_source()


class Wheel(bdist_wheel):
    """py3-none-<platform> with the library, py3-none-any without: no Python ABI in either."""

    def get_tag(self) -> tuple[str, str, str]:
        library = Path(self.get_finalized_command("build_ext").get_ext_fullpath(NAME))
        self.root_is_pure = not library.exists()
        if self.root_is_pure:
            return super().get_tag()
        platform = super().get_tag()[2]
        if not self.plat_name_supplied:
            compiler = Compiler()
            if compiler.is_mac:  # built for one machine, even where Python serves two
                platform = platform.replace("universal2", compiler.machine)
            else:
                platform = f"linux_{compiler.machine}"
        return "py3", "none", platform


setup(
    # optional: where there is no library, there is none to copy beside the sources either
    ext_modules=[
        Extension(NAME, [BIND, KERNELS], depends=HEADERS, language="c++", optional=True),
        *[Extension(COUNTER, [ERRORS], language="c++", optional=True)] * Path(ERRORS).exists(),
    ],
    cmdclass={"build_ext": BuildKernels, "bdist_wheel": Wheel},
)
