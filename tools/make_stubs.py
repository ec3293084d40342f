"""Write the type stubs of the modules, which are made in a loop over the table.

    python tools/make_stubs.py            # writes _module_types.pyi
    python tools/make_stubs.py --check    # fails where a stub is not what would be written

A stub named as its module would hide the module itself from mypy. So these describe the made names
alone, under names of their own that exist for type checkers only, and the modules import them
under TYPE_CHECKING.
"""

from __future__ import annotations

import argparse
import inspect
import subprocess
import sys
import textwrap
from collections.abc import Callable
from pathlib import Path

PACKAGE = Path(__file__).parent.parent / "src" / "mishkit"
sys.path.insert(0, str(PACKAGE.parent))

from mishkit.modules import MODULES, ActivationModule, TrainableModule  # noqa: E402

HEAD = '''"""{title}: made by tools/make_stubs.py, for type checkers alone."""

'''


def parameters_of(signature: inspect.Signature, first: str = "") -> str:
    """The parameters as they stand in a `def`, with plain names for the types."""
    shown = str(signature.replace(return_annotation=inspect.Signature.empty))[1:-1]
    return ", ".join(
        filter(None, (first, shown.replace("torch.Tensor", "Tensor").replace("typing.", "")))
    )


def docstring(made: object) -> str:
    text = inspect.getdoc(made) or ""
    return f'"""{text}\n"""' if "\n" in text else f'"""{text}"""'


def module_stub(name: str, module: type[ActivationModule]) -> str:
    signature = module.arguments
    trained = module.parameter_names if issubclass(module, TrainableModule) else ()
    attributes = [
        f"{p.name}: float | Parameter"
        if p.name in trained
        else parameters_of(
            inspect.Signature([p.replace(default=p.empty, kind=p.POSITIONAL_OR_KEYWORD)])
        )
        for p in signature.parameters.values()
    ]
    init = f"def __init__({parameters_of(signature, 'self')}) -> None: ..."
    body = textwrap.indent("\n".join([docstring(module), "", *attributes, "", init]), "    ")
    base = next(c for c in module.__mro__ if c in (TrainableModule, ActivationModule))
    return f"class {name}({base.__name__}):\n{body}\n"


def modules() -> str:
    stubs = [module_stub(name, module) for name, module in MODULES.items()]
    imports = (
        "from typing import Literal\n\nfrom torch.nn import Parameter\n\n"
        "from .modules import ActivationModule, TrainableModule\n"
    )
    return HEAD.format(title="The modules") + "\n".join([imports, *stubs])


STUBS: dict[str, Callable[[], str]] = {
    "_module_types.pyi": modules,
}


def formatted(text: str) -> str:
    command = [sys.executable, "-m", "ruff", "format", "--stdin-filename", "stub.pyi", "-"]
    return subprocess.run(command, input=text, text=True, capture_output=True, check=True).stdout


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--check", action="store_true", help="only compare")
    check = parser.parse_args().check
    for name, make in STUBS.items():
        path, text = PACKAGE / name, formatted(make())
        if not check:
            path.write_text(text)
        elif not path.exists() or path.read_text() != text:
            sys.exit(f"{path} is out of date: run python tools/make_stubs.py")


if __name__ == "__main__":
    main()
