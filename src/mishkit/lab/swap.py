"""`mishkit swap`: the activations of an ONNX file, or of a model that is exported to one."""

from __future__ import annotations

import json
from collections.abc import Iterable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from rich.console import Console
from rich.text import Text

import mishkit as mk
from mishkit._progress import progress, step
from mishkit.forms import STANDARD
from mishkit.surgery._columns import aligned
from mishkit.surgery.swap import import_onnx, swap_onnx

from . import LabError
from .common.errors import telling
from .common.files import check_writable
from .common.models import Example, load

ONNX_FILES = (".onnx", ".onnxtxt", ".textproto", ".json")
"""How the names of ONNX files end."""


@dataclass(frozen=True)
class Settings:
    """What to replace by what, and where the result goes."""

    name: str
    rules: tuple[str, ...] = ()
    form: str | None = None
    output: Path | None = None
    """None for a dry run."""
    shapes: tuple[str, ...] = ()
    options: tuple[str, ...] = ()

    @property
    def is_file(self) -> bool:
        """Whether the model is an ONNX file already."""
        return self.name.endswith(ONNX_FILES)


def main(settings: Settings, *, as_json: bool = False) -> int:
    """Replace, print what was done, and return 1 if no rule matched.

    As JSON, what was done has the keys of `Replacements.to_json` and ``output``, the file that was
    written. Without rules there are ``sites``, a list with ``name`` and ``function``, and ``left``.
    """
    rules = _rules(settings)
    check_writable(settings.output)
    if settings.is_file and (settings.shapes or settings.options):
        raise LabError(f"{settings.name} is an ONNX file: --input and --option are for models")
    onnx = import_onnx()
    model: Any = settings.name if settings.is_file else _exported(settings)
    if not rules:
        sites, missed = onnx.survey(model)
        if as_json:
            listed = [{"name": site.name, "function": str(site)} for site in sites]
            _print_json({"sites": listed, "left": {miss.name: str(miss) for miss in missed}})
            return 0 if sites else 1
        rows = [(site.name, str(site)) for site in sites]
        _print([*aligned([("site", "function"), *rows])] if rows else [])
        _print(f"{miss.name} is left: {miss}" for miss in missed)
        _print([f"{len(sites)} site{'' if len(sites) == 1 else 's'}"])
        return 0 if sites else 1
    done = swap_onnx(model, rules, settings.output, settings.form or STANDARD, needs_match=True)
    is_matched = len(done.unused) < len(rules)
    if is_matched and not settings.rules:
        done.unused = ()  # the rules are for whatever there is
    if as_json:
        output = str(settings.output) if settings.output and is_matched else None
        _print_json({**json.loads(done.to_json()), "output": output})
        return 0 if is_matched else 1
    _print([str(done)])
    if is_matched:
        _print([f"written to {settings.output}" if settings.output else "nothing was written"])
    return 0 if is_matched else 1


def _rules(settings: Settings) -> dict[str, str]:
    """The rules by key; with a form alone, every function for itself."""
    rules = {}
    for text in settings.rules:
        key, equals, value = text.partition("=")
        if not (key and equals and value):
            raise LabError(
                f'a rule is OLD=NEW, silu=mish or "blocks.*=hard_mish:k=3", not "{text}"'
            )
        rules[key] = value
    if not rules and settings.form is not None:
        return {name: name for name in mk.names()}
    if not rules and settings.output is not None:
        raise LabError("what is to be replaced? silu=mish, for instance, or --form fast")
    return rules


def _exported(settings: Settings) -> Any:
    """The model in ONNX, in memory."""
    with progress("mishkit swap", steps=2):
        step(f"building {settings.name}")
        example = load(settings.name, settings.shapes, settings.options, train=False)
        step("exporting to ONNX")
        return _export(settings, example)


def _export(settings: Settings, example: Example) -> Any:
    with telling(f"{settings.name} can't be exported to ONNX"), torch.no_grad():
        program = torch.onnx.export(example.model, example.inputs, dynamo=True, verbose=False)
    assert program is not None
    return program.model


def _print(lines: Iterable[str]) -> None:
    for line in lines:
        _console.print(Text(line), soft_wrap=True)


def _print_json(plain: dict[str, Any]) -> None:
    print(json.dumps(plain, indent=2, ensure_ascii=False))


_console = Console(highlight=False)
