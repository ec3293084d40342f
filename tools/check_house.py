"""Check the rules of the source tree that no linter knows.

    python tools/check_house.py      print what breaks a rule, and fail

1. No circle of imports, those within functions included.
2. Data flows one way: `functional → ops → backends → functions`. `recompute`, `surgery` and `lab`
   may use the public API and the second layer (`SECOND_LAYER`), and nothing in the core imports
   them; within `lab` no folder imports one that comes later in `LAB`. The command line,
   `mishkit_cli`, may use all of them.
3. `lab` holds folders and at most `MOST_FILES_IN_LAB` files.
4. No function has more than `MOST_LINES` lines, its docstring not counted.
5. Names of torch that are not public stand in `PRIVATE` alone.
6. What tests, tools, benchmarks and examples import of the package is there.
"""

from __future__ import annotations

import ast
import functools
import re
import sys
from collections.abc import Iterator
from graphlib import CycleError, TopologicalSorter
from pathlib import Path

ROOT = Path(__file__).parent.parent
SOURCE = ROOT / "src"
USERS = ("tests", "tools", "benchmarks", "examples")
CORE = ("functional", "ops", "backends", "functions")
"""Each may import those that follow it."""
SECOND_LAYER = ("activation", "forms", "functions", "bodies", "backends", "ops")
"""What the parts beside the core may import beyond the public API."""
PUBLIC = (
    "export",
    "functional",
    "gates",
    "modules",
    "neuron",
    "registry",
    "memory",
    "recompute",
    "surgery",
    "_version",
)
HELPERS = (
    "_calls",
    "_checkpoint",
    "_environment",
    "_html",
    "_missing",
    "_mode",
    "_modules",
    "_progress",
    "_repeats",
    "_torch_private",
    "_torchvision",
)
CLI = "mishkit_cli"
BESIDE = ("recompute", "surgery", "lab", CLI)
ENTRANCES = ("_lazy", "__main__", "_program", "integrations")
"""They lead into the laboratory, the command line and surgery, and run other programs."""
LAB = ("common", "code", "bench", "accuracy", "calculus", "study")
MOST_FILES_IN_LAB = 4
MOST_LINES = 90
PRIVATE = ("mishkit._torch_private", "mishkit.lab.code.inductor")
"""The second feigns a GPU for torch's compiler, and is made of that compiler's own parts."""
PRIVATE_NAME = re.compile(r"torch(\.\w+)*\.(_(?!_)\w+)")

PACKAGES = ("mishkit", CLI)

Graph = dict[str, set[str]]


@functools.cache
def parsed(path: Path) -> ast.Module:
    """The syntax tree of a file, which most of the rules look at."""
    return ast.parse(path.read_text(encoding="utf-8"))


def modules() -> dict[str, Path]:
    """The files of the package, by the names of their modules."""
    files = {}
    for path in sorted(SOURCE.rglob("*.py")):
        parts = path.relative_to(SOURCE).with_suffix("").parts
        files[".".join(parts[:-1] if parts[-1] == "__init__" else parts)] = path
    return files


def imports(files: dict[str, Path]) -> Graph:
    """Which module of the package imports which."""
    graph: Graph = {}
    for name, path in files.items():
        package = name if path.name == "__init__.py" else name.rpartition(".")[0]
        graph[name] = set()
        for node in ast.walk(parsed(path)):
            for target in _targets(node, package):
                if target not in files:  # a name within a module
                    target = target.rpartition(".")[0]
                if target in files and target != name:
                    graph[name].add(target)
    return graph


def _targets(node: ast.AST, package: str) -> Iterator[str]:
    if isinstance(node, ast.Import):
        yield from (alias.name for alias in node.names)
    elif isinstance(node, ast.ImportFrom):
        base = node.module or ""
        if node.level:
            parents = package.split(".")[: len(package.split(".")) - node.level + 1]
            base = ".".join([*parents, base]).rstrip(".")
        yield from (f"{base}.{alias.name}" for alias in node.names)


def circles(graph: Graph) -> Iterator[str]:
    """The first circle of imports, if there is one."""
    try:
        TopologicalSorter(graph).prepare()
    except CycleError as error:
        yield "circle of imports: " + " → ".join(error.args[1])


def against_the_flow(graph: Graph) -> Iterator[str]:
    """Imports that go the wrong way."""
    for name, targets in graph.items():
        source = _place(name)
        for target in targets:
            to = _place(target)
            if source and to and not _may_import(source, to):
                yield f"{name} must not import {target}"


def _place(name: str) -> list[str]:
    """Where a module is: the parts of its name, without the package `mishkit`."""
    parts = name.split(".")
    return parts[1:] if parts[0] == "mishkit" else parts


def _may_import(source: list[str], target: list[str]) -> bool:
    room, other = source[0], target[0]
    if room == other == "lab":
        places = [LAB.index(p[1]) if len(p) > 1 and p[1] in LAB else None for p in (source, target)]
        return None in places or places[0] >= places[1]  # type: ignore[operator]
    if room in (other, CLI):
        return True
    if room in CORE:
        return other not in BESIDE and (other not in CORE or CORE.index(room) < CORE.index(other))
    if room in BESIDE:
        return other in SECOND_LAYER + PUBLIC + HELPERS
    return other not in BESIDE or room in ENTRANCES


def crowded() -> Iterator[str]:
    """Whether `lab` has too many files beside its folders."""
    files = [path.name for path in (SOURCE / "mishkit" / "lab").glob("*.py")]
    if len(files) > MOST_FILES_IN_LAB:
        yield f"lab holds {len(files)} files, at most {MOST_FILES_IN_LAB} may be"


def long_functions(files: dict[str, Path]) -> Iterator[str]:
    """Functions that are too long to read."""
    for name, path in files.items():
        for node in ast.walk(parsed(path)):
            if not isinstance(node, ast.FunctionDef | ast.AsyncFunctionDef):
                continue
            lines = (node.end_lineno or 0) - node.lineno + 1
            if ast.get_docstring(node) is not None:
                docstring = node.body[0]
                lines -= (docstring.end_lineno or 0) - docstring.lineno + 1
            if lines > MOST_LINES:
                yield f"{name}.{node.name} has {lines} lines, more than {MOST_LINES}"


def private_names(files: dict[str, Path]) -> Iterator[str]:
    """Names of torch that are not public, outside their place."""
    for name, path in files.items():
        if name in PRIVATE:
            continue
        for node in ast.walk(parsed(path)):
            used = ast.unparse(node) if isinstance(node, ast.Attribute) else ""
            if isinstance(node, ast.ImportFrom) and not node.level:
                used = f"{node.module}.{node.names[0].name}"
            if PRIVATE_NAME.fullmatch(used) or re.match(r"torch\.([a-z]+\.)*_[a-z]", used):
                yield f"{name}:{node.lineno}: {used} is not public"  # type: ignore[attr-defined]


def missing_names(files: dict[str, Path]) -> Iterator[str]:
    """What is imported of the package, but is not there."""
    bound = {name: _bound_names(path) for name, path in files.items()}
    for path in sorted(path for folder in USERS for path in (ROOT / folder).rglob("*.py")):
        for node in ast.walk(parsed(path)):
            for target in _targets(node, ""):
                module, _, name = target.rpartition(".")
                if target.partition(".")[0] not in PACKAGES or target in files:
                    continue
                if module not in files or not bound[module] & {name, "__getattr__", "*"}:
                    where = f"{path.relative_to(ROOT)}:{node.lineno}"  # type: ignore[attr-defined]
                    yield f"{where}: there is no {target}"


def _bound_names(path: Path) -> set[str]:
    """What a module binds, in functions too; "*" where its text does not have all the names."""
    names = set()
    for node in ast.walk(parsed(path)):
        if isinstance(node, ast.FunctionDef | ast.AsyncFunctionDef | ast.ClassDef):
            names.add(node.name)
        elif isinstance(node, ast.Name) and isinstance(node.ctx, ast.Store):
            names.add(node.id)
        elif isinstance(node, ast.Import | ast.ImportFrom):
            names |= {(alias.asname or alias.name).partition(".")[0] for alias in node.names}
        elif isinstance(node, ast.Call) and ast.unparse(node.func) == "globals().update":
            names.add("*")
    return names


def main() -> int:
    """Print what breaks a rule; 1 where anything does."""
    files = modules()
    graph = imports(files)
    broken = [
        *circles(graph),
        *against_the_flow(graph),
        *crowded(),
        *long_functions(files),
        *private_names(files),
        *missing_names(files),
    ]
    print("\n".join(broken) or f"check_house: {len(files)} modules in order")
    return 1 if broken else 0


if __name__ == "__main__":
    sys.exit(main())
