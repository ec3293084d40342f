"""The wheel and the sdist: what is in them, and that they are built and used in bare places."""

from __future__ import annotations

import os
import platform
import re
import shutil
import subprocess
import sys
import tarfile
import textwrap
import zipfile
from collections.abc import Callable
from importlib import metadata
from pathlib import Path

import interpreters
import pytest
from common import ROOT, mostly_slow, shared

LIBRARY, COUNTER = "mishkit/_kernels.so", "mishkit/lab/accuracy/_errors.so"
# What torch's own Linux wheels ask for (manylinux_2_28): ours must not ask for more.
NEWEST = {"GLIBC": (2, 28), "GLIBCXX": (3, 4, 25), "CXXABI": (1, 3, 11), "GCC": (7, 0, 0)}

linux = pytest.mark.skipif(sys.platform != "linux", reason="looks into ELF files")


def without_ours() -> dict[str, str]:
    """The environment without what a developer's shell or make says about the build, which must not
    leak into the builds here."""
    ours = ("MISHKIT_", "CXX", "LDFLAGS", "PYTHON")
    return {name: value for name, value in os.environ.items() if not name.startswith(ours)}


def run(
    *command: object, cwd: Path | None = None, env: dict[str, str] | None = None
) -> subprocess.CompletedProcess[str]:
    return subprocess.run(
        [str(word) for word in command],
        cwd=cwd,
        env={**without_ours(), **(env or {})},
        text=True,
        stdout=subprocess.PIPE,
        stderr=subprocess.STDOUT,
    )


def python(code: str, path: Path, fork: bool = False) -> str:
    """Run code with the packages in path before all others, from a place without sources; where
    torch has been imported already, and nothing of ours, in a `fork`."""
    environment = {**without_ours(), "PYTHONPATH": str(path)}
    if fork:
        done = interpreters.python(textwrap.dedent(code), environment, path.parent, "Warning")
        assert done.returncode == 0, done.stderr
        return done.stdout + done.stderr
    script = path.parent / "script.py"
    script.write_text(textwrap.dedent(code))
    done = run(sys.executable, "-W", "error", script, env={"PYTHONPATH": str(path)})
    assert done.returncode == 0, done.stdout
    return done.stdout


def copy_of_the_project(target: Path) -> Path:
    no_sources = (".*", "build", "dist", "*.egg-info", "*.so", "__pycache__")
    return shutil.copytree(ROOT, target, ignore=shutil.ignore_patterns(*no_sources))


def wheel(project: Path, *options: str, **env: str) -> tuple[Path, str]:
    """Build a wheel; return it and what the build said."""
    dist = project.parent / "dist"
    shutil.rmtree(dist, ignore_errors=True)
    done = run(
        *(sys.executable, "-m", "pip", "wheel", project, "-w", dist, "-v", "--no-deps", *options),
        env=env,
    )
    assert done.returncode == 0, done.stdout
    (path,) = dist.iterdir()
    return path, done.stdout


def unpack(path: Path, target: Path) -> Path:
    zipfile.ZipFile(path).extractall(target)
    return target


def wheel_of_setuptools(folder: Path) -> Path:
    """The installed setuptools as a wheel again, for an isolated build that asks no network."""
    setuptools = metadata.distribution("setuptools")
    path = folder / f"setuptools-{setuptools.version}-py3-none-any.whl"
    with zipfile.ZipFile(path, "w") as archive:
        for file in setuptools.files or ():
            if file.suffix != ".pyc":
                archive.write(file.locate(), file)
    return path


@pytest.fixture(scope="module")
def sdist(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The sdist, unpacked."""

    def make() -> Path:
        folder = tmp_path_factory.mktemp("sdist")
        project = copy_of_the_project(folder / "project")
        build = "import sys; from setuptools import build_meta; build_meta.build_sdist('dist')"
        done = run(sys.executable, "-c", build, cwd=project)
        assert done.returncode == 0, done.stdout
        (path,) = (project / "dist").iterdir()
        with tarfile.open(path) as archive:
            archive.extractall(folder / "unpacked", filter="data")
        (unpacked,) = (folder / "unpacked").iterdir()
        assert unpacked.name == path.name.removesuffix(".tar.gz")
        return unpacked

    return shared(tmp_path_factory, "sdist", make)  # type: ignore[no-any-return]


@pytest.fixture(scope="module")
def built(sdist: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A folder with a project and its wheel, built from the sdist alone, where there is no torch,
    and unpacked."""

    def make() -> Path:
        folder = tmp_path_factory.mktemp("built")
        project = shutil.copytree(sdist, folder / "project")
        env = {"MISHKIT_REQUIRE_KERNELS": "1"}
        # Compiling takes minutes. What `make kernels` has of the same sources, by the same command,
        # setup.py takes as it is; that the sdist has all that they include is seen here.
        compiler = next(filter(shutil.which, ("c++", "g++", "clang++")))
        for source in ("kernels.cpp", "bind.cpp", "errors.cpp"):
            command = (compiler, "-std=c++17", "-E", f"csrc/{source}", "-o", os.devnull)
            done = run(*command, cwd=project)
            assert done.returncode == 0, done.stdout
        objects = [path for path in ROOT.glob("build/temp.*/*") if path.is_file()]
        for path in objects:
            target = project / path.relative_to(ROOT)
            target.parent.mkdir(parents=True, exist_ok=True)
            shutil.copy2(path, target)  # with its time, by which setup.py sees it is up to date
        if not objects:
            env["CXXFLAGS"] = "-O1"
        # Isolated, as pip does by default: setuptools is all that the build can import.
        setuptools = wheel_of_setuptools(folder)
        path, _ = wheel(project, "--no-index", "--find-links", str(setuptools.parent), **env)
        unpack(path, folder / "unpacked")
        return folder

    return shared(tmp_path_factory, "built", make)  # type: ignore[no-any-return]


@pytest.fixture(scope="module")
def bare(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The same, without a compiler."""

    def make() -> Path:
        folder = tmp_path_factory.mktemp("bare")
        project = copy_of_the_project(folder / "project")
        path, said = wheel(project, "--no-build-isolation", CXX="/bin/false")
        assert len(re.findall("^ *mishkit: .*plain torch", said, re.MULTILINE)) == 1, said
        unpack(path, folder / "unpacked")
        return folder

    return shared(tmp_path_factory, "bare", make)  # type: ignore[no-any-return]


def names(folder: Path) -> set[str]:
    unpacked = folder / "unpacked"
    return {str(path.relative_to(unpacked)) for path in unpacked.rglob("*") if path.is_file()}


def test_the_wheel_has_everything(built: Path) -> None:
    (path,) = (built / "dist").iterdir()
    assert re.fullmatch(r"mishkit-[\w.]+-py3-none-(linux|macosx)_\w+\.whl", path.name)
    sources = {
        str(path.relative_to(ROOT / "src"))
        for package in ("mishkit", "mishkit_cli")
        for path in (ROOT / "src" / package).rglob("*")
        if path.suffix in (".py", ".pyi", ".j2") or path.name == "py.typed"
    }
    inside = {name for name in names(built) if ".dist-info/" not in name}
    assert inside == sources | {LIBRARY, COUNTER, "mishkit/py.typed", "mishkit_autoload.py"}


def test_the_wheel_asks_for_torch_alone(built: Path) -> None:
    (metadata,) = (built / "unpacked").glob("*.dist-info/METADATA")
    needs = re.findall("^Requires-Dist: (.*)$", metadata.read_text(), re.MULTILINE)
    assert [need for need in needs if "extra ==" not in need] == ["torch>=2.10"]


def test_the_wheel_works(built: Path) -> None:
    said = python(
        """
        import importlib.metadata
        import mishkit as mk, torch
        from mishkit.backends import cpu

        x = torch.linspace(-9, 9, 101)
        torch.testing.assert_close(mk.mish(x), torch.nn.functional.mish(x))
        assert importlib.metadata.version("mishkit") == mk.__version__
        assert cpu.isas()
        print(mk.__file__)
        """,
        built / "unpacked",
    )
    assert said.strip() == str(built / "unpacked" / "mishkit" / "__init__.py")


@linux
def test_the_library_runs_elsewhere(built: Path) -> None:
    """It needs torch, and a C and C++ runtime no newer than torch does; nothing of Python."""
    said = run("readelf", "-d", "-V", "-W", built / "unpacked" / LIBRARY).stdout
    needed = set(re.findall(r"NEEDED.*\[(.*)\]", said))
    assert "libtorch_cpu.so" in needed
    assert not [name for name in needed if name.startswith(("libpython", "libtorch_python"))]
    for runtime, version in re.findall(r"Name: ([A-Z]+)_([\d.]+)", said):
        assert tuple(map(int, version.split("."))) <= NEWEST[runtime], f"{runtime} {version}"


@linux
def test_instruction_sets_share_no_code(built: Path) -> None:
    """An inline function that two objects define is merged by the linker into one of the copies,
    maybe the one for AVX-512: it would stop older machines. So no two may define the same."""
    objects = sorted((built / "project" / "build").rglob("*.o"))
    assert len(objects) >= 2
    owners: dict[str, list[str]] = {}
    symbols = run("nm", "--defined-only", "--print-file-name", *objects).stdout
    for line in symbols.splitlines():
        before, kind, name = line.rsplit(maxsplit=2)
        if kind == "W":  # tables of constants (V) may be shared: they are the same everywhere
            owners.setdefault(name, []).append(before)
    assert not {name: where for name, where in owners.items() if len(where) > 1}


def test_without_a_compiler(bare: Path) -> None:
    (path,) = (bare / "dist").iterdir()
    assert path.name.endswith("-py3-none-any.whl")
    assert names(bare).isdisjoint({LIBRARY, COUNTER})
    said = python(
        """
        import warnings
        with warnings.catch_warnings(record=True) as caught:
            warnings.simplefilter("always")
            import mishkit as mk, torch
            for _ in range(2):
                x = torch.linspace(-9, 9, 101, requires_grad=True)
                mk.mish(x).sum().backward()
        torch.testing.assert_close(mk.mish(x), torch.nn.functional.mish(x))
        for warning in caught:
            print(warning.category.__name__, warning.message)
        """,
        bare / "unpacked",
        fork=True,
    )
    assert re.fullmatch("(Runtime|User)Warning .*plain torch.*", said.strip()), said


def test_the_command_without_the_lab(bare: Path) -> None:
    """The console script exists without the extra, and says in one line how to get it."""
    said = python(
        """
        import sys, warnings
        from importlib.metadata import entry_points
        sys.modules["typer"] = None  # what import sees where a package is missing
        warnings.simplefilter("ignore")
        (script,) = entry_points(group="console_scripts", name="mishkit")
        main = script.load()
        try:
            main()
        except SystemExit as stop:
            if isinstance(stop.code, str):
                print(stop.code)
            assert stop.code, "it must not look like success"
        """,
        bare / "unpacked",
        fork=True,
    )
    assert "pip install" in said and "typer" in said and len(said.strip().splitlines()) == 1, said


def test_sdist(sdist: Path) -> None:
    """It has what building, checking, testing and the site need, and nothing that was built."""
    inside = {path.relative_to(sdist).as_posix() for path in sdist.rglob("*") if path.is_file()}
    folders = (
        "csrc/**/*.*",
        "docs/**/*.*",
        "examples/*.py",
        "src/**/*.py",
        "tests/*.py",
        "tools/*.py",
    )
    files = [path for pattern in folders for path in ROOT.glob(pattern) if path.suffix != ".pyc"]
    files += [ROOT / name for name in ("Makefile", "mkdocs.yml", "setup.py")]
    assert {path.relative_to(ROOT).as_posix() for path in files} <= inside
    assert not [name for name in inside if name.endswith((".so", ".pyc"))]


KERNELS = """
#include "width.h"
#define JOIN(a, b, c) a##b##c
#define NAME(isa, part) JOIN(isa, _, part)
namespace NAME(MISHKIT_ISA, MISHKIT_PART) { int width() { return WIDTH; } }
"""
BIND = """
#if !defined MISHKIT_HAS_AVX2 && !defined MISHKIT_HAS_NEON && !defined MISHKIT_HAS_BASELINE
#error no instruction set
#endif
"""


@pytest.fixture
def build(tmp_path: Path) -> Callable[..., subprocess.CompletedProcess[str]]:
    """Builds a tiny library in place, with the project's own setup.py."""
    for name, text in {
        "pyproject.toml": '[project]\nname = "mishkit"\nversion = "0"\n',
        # Two parts rather than all, as each starts a compiler for each instruction set.
        "setup.py": re.sub(
            r"^PARTS = \d+", "PARTS = 2", (ROOT / "setup.py").read_text(), flags=re.M
        ),
        "src/mishkit/__init__.py": "",
        "csrc/width.h": "#define WIDTH 8\n",
        "csrc/kernels.cpp": KERNELS,
        "csrc/bind.cpp": BIND,
    }.items():
        (tmp_path / name).parent.mkdir(parents=True, exist_ok=True)
        (tmp_path / name).write_text(text)

    def build(**env: str) -> subprocess.CompletedProcess[str]:
        setup = (sys.executable, "setup.py", "-q", "build_ext", "--inplace")
        return run(*setup, cwd=tmp_path, env=env)

    return build


def test_builds_again_only_after_a_change(build: Callable, tmp_path: Path) -> None:
    library = tmp_path / "src" / LIBRARY
    assert "built" in build().stdout and library.exists()
    assert "up to date" in build().stdout
    (tmp_path / "csrc/width.h").write_text("#define WIDTH 16\n")
    assert "built" in build().stdout
    assert "built" in build(CXXFLAGS="-O0").stdout
    (tmp_path / "csrc/width.h").write_text("#error broken\n")
    assert "plain torch" in build().stdout
    assert not library.exists(), "a library of older sources must not stay"


@pytest.mark.parametrize(
    "env", mostly_slow([{"CXX": "/bin/false"}, {"CXXFLAGS": "--no-such-flag"}], 1)
)
def test_kernels_can_be_required(build: Callable, env: dict[str, str]) -> None:
    done = build(MISHKIT_REQUIRE_KERNELS="1", **env)
    assert done.returncode and "kernels were not built" in done.stdout


def test_kernels_can_be_left_out(build: Callable, tmp_path: Path) -> None:
    assert build(MISHKIT_NO_KERNELS="1").returncode == 0
    assert not (tmp_path / "src" / LIBRARY).exists()


@pytest.mark.skipif(platform.machine() != "x86_64", reason="one instruction set alone")
@pytest.mark.parametrize(
    ("macro", "left"),
    mostly_slow([("__AVX512F__", "baseline, avx2"), ("__AVX2__", "baseline")], 1),
)
def test_an_instruction_set_that_fails_is_left_out(
    build: Callable, tmp_path: Path, macro: str, left: str
) -> None:
    """And the others are built: not where kernels are required."""
    kernels = tmp_path / "csrc/kernels.cpp"
    kernels.write_text(f"#ifdef {macro}\n#error broken\n#endif\n{kernels.read_text()}")
    said = build().stdout
    assert f"({left})" in said and "going on without avx512" in said
    assert (tmp_path / "src" / LIBRARY).exists()
    assert f"({left}) is up to date" in build().stdout
    assert build(MISHKIT_REQUIRE_KERNELS="1").returncode


@pytest.mark.parametrize("where", ["src", "build/lib*"])
@pytest.mark.parametrize("size", mostly_slow([0, 1000], [1000]))
def test_a_library_that_was_cut_short_is_built_anew(
    build: Callable, tmp_path: Path, where: str, size: int
) -> None:
    build()
    library = tmp_path / "src" / LIBRARY
    whole = library.read_bytes()
    (cut,) = tmp_path.glob(f"{where}/{LIBRARY}")
    cut.write_bytes(whole[:size])
    build()
    assert library.read_bytes() == whole


def test_an_object_that_was_cut_short_is_compiled_anew(build: Callable, tmp_path: Path) -> None:
    """The compiler is stopped while it writes."""
    (tmp_path / "c++").write_text(
        '#!/bin/sh\ncase "$*" in *-c*bind.cpp*) : > "${@: -1}"; kill -9 $$;; esac\nexec c++ "$@"\n'
        .replace("/bin/sh", "/bin/bash")
    )  # fmt: skip
    (tmp_path / "c++").chmod(0o755)
    build()
    (tmp_path / "csrc/width.h").write_text("#define WIDTH 16\n")
    assert "plain torch" in build(CXX=str(tmp_path / "c++")).stdout
    assert "built" in build().stdout
    assert (tmp_path / "src" / LIBRARY).exists()


@pytest.mark.parametrize("words", mostly_slow(["caf\\xe9", "\\xff\\xfe", "\\xc3"], 1))
def test_a_compiler_may_speak_any_encoding(build: Callable, tmp_path: Path, words: str) -> None:
    compiler = tmp_path / "c++"
    compiler.write_text(f"#!/bin/bash\nprintf '{words}\\n' >&2\nexec c++ \"$@\"\n")
    compiler.chmod(0o755)
    done = build(CXX=str(compiler))
    assert done.returncode == 0 and "built" in done.stdout


CHECK = ROOT / "tools" / "check_torch_c.py"


def test_torch_c_fits_torch() -> None:
    done = run(sys.executable, CHECK)
    assert done.returncode == 0, done.stdout


@pytest.mark.parametrize(
    ("right", "wrong"),
    mostly_slow(
        [
            ("aoti_torch_get_dim(AtenTensorHandle", "aoti_torch_get_dim(int64_t"),
            ("MISHKIT_SINCE(2, 13) ", ""),  # not there in 2.10
            ("int32_t aoti_torch_dtype_float32()", "int64_t aoti_torch_dtype_float32()"),
            ("using StableIValue = uint64_t", "using StableIValue = int64_t"),
            ("torch_parallel_for(", "torch_serial_for("),  # no such entry point
        ],
        2,
    ),
)
def test_a_wrong_prototype_is_caught(right: str, wrong: str, tmp_path: Path) -> None:
    header = (ROOT / "csrc" / "bind" / "torch_c.h").read_text()
    assert right in header
    (tmp_path / "torch_c.h").write_text(header.replace(right, wrong))
    done = run(sys.executable, CHECK, tmp_path / "torch_c.h")
    assert done.returncode == 1 and "does not fit" in done.stdout
