"""Other activations in a model's places, by rules; and back again."""

from __future__ import annotations

import functools
import os
from collections.abc import Callable, Iterable, Mapping
from dataclasses import dataclass
from typing import Any

from torch import nn

from mishkit._missing import install

from . import rules as _rules
from ._columns import aligned
from .known import identify
from .slots import Slot, restore, slots

_SWAP, _UNSWAP = "mishkit.swap", "mishkit.unswap"


@dataclass(frozen=True)
class Replacement:
    """One activation in another's place."""

    name: str
    """Where: the path of a submodule or attribute, or the name of an ONNX node."""
    old: str
    new: str

    def __str__(self) -> str:
        return f"{self.name}: {self.old} -> {self.new}"


class Replacements(list[Replacement]):
    """What was replaced where, in the model's order; `print` shows it as a table."""

    unused: tuple[Any, ...]
    """The keys of rules for which there was no site."""

    def __init__(self, found: Iterable[Replacement] = (), unused: Iterable[Any] = ()) -> None:
        super().__init__(found)
        self.unused = tuple(unused)

    def __str__(self) -> str:
        rows = [("site", "old", "new"), *((one.name, one.old, one.new) for one in self)]
        lines = aligned(rows) if self else []
        count = f"{len(self)} site{'' if len(self) == 1 else 's'} replaced"
        if self.unused:
            count += f"; none found for {', '.join(_shown(key) for key in self.unused)}"
        return "\n".join([*lines, count])


def swap(
    model: Any, rules: Mapping[Any, Any], *, output: str | os.PathLike[str] | None = None
) -> Replacements:
    """Put other activations in a model's places: ``swap(model, {"silu": "mish"})``.

    In a `torch.nn.Module` the modules and function attributes that hold activations are replaced;
    what a `forward` calls by itself, as ``F.silu(x)``, is beyond reach. The names of submodules,
    hooks and training mode stay; `unswap` undoes it all. An ONNX model is rewritten in standard
    operators (see below).

    Parameters
    ----------
    model : torch.nn.Module, path, onnx.ModelProto, onnx_ir.Model or torch.onnx.ONNXProgram
        what is changed, in place; a path names an ONNX file, which stays as it is
    rules : mapping
        which sites, to what; the first rule that is for a site counts. A key is

        - the name of a function, ``"silu"``: every site that computes it, be it a class of torch,
          mishkit, timm or transformers, or a function of torch or mishkit. ``"gelu"`` and
          ``"gelu_tanh"`` are two;
        - a class of modules, ``torch.nn.GELU``: modules of exactly this class;
        - a pattern of paths, ``"blocks.*.act"``, in which ``*`` is any text, dots too. It is for
          known activations; where its last part is spelt out, also for modules of other classes
          without submodules, parameters or buffers. It must be for one at least.

        A value is

        - the name of one of mishkit's activations, ``"mish"``, with parameters as in
          ``"hard_mish:k=5"`` or ``("aptx", {"trainable": True})``, or its class. A module's
          ``inplace=True`` is kept, and mishkit's ``save="output"``, where the new one allows it
          and no argument says otherwise; so are parameters where it is the same function;
        - another class of modules, which is called without arguments;
        - a module, of which each site gets a copy;
        - a function of the old module that returns the new one.

        A module that is shared by several sites is replaced by one shared module. What replaces a
        function attribute is a function; a module with parameters can't.
    output : path, optional
        where the rewritten ONNX model is saved: needed with a path, possible with an ONNX model

    Returns
    -------
    Replacements
        a list of what was replaced where (`name`, `old`, `new`), which prints as a table; `unused`
        has the keys for which there was no site

    Raises
    ------
    ValueError
        if a key is neither a function nor a pattern that is for anything, if there is no such
        activation or it can't take the arguments, or if the model itself is an activation
    TypeError
        if the model, a key or a value is none of these
    ModuleNotFoundError
        for ONNX, without the extra ``onnx``

    Whatever is raised, nothing has been replaced.

    Notes
    -----
    In ONNX, sites are nodes and groups of nodes that compute a known function, however it is
    written: ``Softplus``, ``Tanh`` and ``Mul`` are ``"mish"``, ``Erf`` and its company ``"gelu"``.
    Patterns are for the name of a site's last node. Values are mishkit's activations alone, with
    numbers for parameters. What is written suits the model's opset, ``Mish`` from 18 on, ``Gelu``
    from 20 on; where that is no shorter than what is there for the same function, it is left. So
    ``{"mish": "mish", "gelu": "gelu"}`` joins what an exporter took apart.
    """
    if not isinstance(model, nn.Module):
        return _swap_onnx(model, rules, output)
    if output is not None:
        raise ValueError(f"{_SWAP}: output= is for ONNX models")
    changes, unused = resolve(model, rules, _SWAP)
    # Described before any is put in place: a description shows what is inside.
    done = [Replacement(slot.name, describe(slot.value), describe(new)) for slot, new in changes]
    for slot, new in changes:
        slot.put(new)
    return Replacements(done, unused)


def unswap(model: nn.Module) -> list[str]:
    """Put back every activation that was replaced, here or by others of mishkit's surgery.

    Works on copies too, by `copy.deepcopy` or pickle. Hooks and training mode stay; parameters of
    what was put in (as those of a trained `Swish`) are lost.

    Parameters
    ----------
    model : torch.nn.Module
        what `swap` changed

    Returns
    -------
    list of str
        the names of the sites that were put back

    Raises
    ------
    TypeError
        if the model is no module
    """
    if not isinstance(model, nn.Module):
        raise TypeError(f"{_UNSWAP}: the model must be a module, not {type(model).__name__}")
    return restore(model)


def describe(value: Any) -> str:
    """An activation in one line: a module as it prints itself, a function by its name."""
    if isinstance(value, nn.Module):
        text = repr(value)
        return text if "\n" not in text else f"{type(value).__name__}(...)"
    if isinstance(value, functools.partial):
        defaults = {"inplace": False, "save": "input"}
        shown = [(k, v) for k, v in value.keywords.items() if k not in defaults or v != defaults[k]]
        return f"{describe(value.func)}({', '.join(f'{k}={v!r}' for k, v in shown)})"
    owner = getattr(value, "__self__", None)
    if isinstance(owner, nn.Module):
        return describe(owner)
    return getattr(value, "__name__", None) or repr(value)


def resolve(
    model: nn.Module, rules: Mapping[Any, Any], caller: str
) -> tuple[list[tuple[Slot, Any]], list[Any]]:
    """What the rules put in which slots, made but not put there; and the keys that found none.

    What is shared is replaced by one. Raises what `swap` does, beginning with the caller's name.
    """
    parsed = _rules.parse(rules, caller)
    if identify(model) is not None:
        raise ValueError(f"{caller}: the model itself is an activation; nothing holds it")
    taken = _taken(model, parsed, caller)
    made: dict[tuple[int, int], Any] = {}
    changes = []
    for slot, rule in taken:
        old, shared = slot.value, (id(slot.value), rule)
        if not isinstance(old, nn.Module) or shared not in made:
            try:
                made[shared] = _make(parsed[rule][1], slot)
            except (TypeError, ValueError) as error:
                reason = str(error).removeprefix("mishkit.")
                raise type(error)(f'{caller}: at "{slot.name}": {reason}') from error
        changes.append((slot, made[shared]))
    used = {rule for _, rule in taken}
    return changes, [key.given for i, (key, _) in enumerate(parsed) if i not in used]


def _taken(
    model: nn.Module, parsed: list[tuple[_rules.Key, _rules.Value]], caller: str
) -> list[tuple[Slot, int]]:
    """The slots that are replaced, each with the first rule that is for it."""
    every = list(slots(model))
    taken: list[tuple[Slot, int]] = []
    for slot in every:
        if taken and slot.name.startswith(f"{taken[-1][0].name}."):
            continue  # its surroundings go
        for i, (key, _) in enumerate(parsed):
            if key.takes(slot):
                taken.append((slot, i))
                break
    for key, _ in parsed:
        if key.pattern is None or any(key.takes(slot) for slot in every):
            continue
        others = [slot for slot in every if key.matches(slot.name)]
        if not others:
            raise ValueError(f"{caller}: {_rules.unknown(key.pattern, [s.name for s in every])}")
        raise ValueError(
            f'{caller}: "{key.pattern}" is for no activation; it fits "{others[0].name}", '
            f"a {type(others[0].value).__name__}"
        )
    return taken


def _make(value: _rules.Value, slot: Slot) -> nn.Module | Callable[..., Any]:
    if isinstance(slot.value, nn.Module):
        return value.module(slot.value, slot.known)
    return value.function(slot.value, slot.known)


def _swap_onnx(
    model: Any, rules: Mapping[Any, Any], output: str | os.PathLike[str] | None
) -> Replacements:
    library = type(model).__module__.partition(".")[0]
    is_path = isinstance(model, (str, os.PathLike))
    is_program = library == "torch" and type(model).__name__ == "ONNXProgram"
    if not (is_path or is_program or library in ("onnx", "onnx_ir")):
        raise TypeError(
            f"{_SWAP}: the model must be a torch.nn.Module, an ONNX model or a path of one, not "
            f"{type(model).__name__}"
        )
    if is_path and output is None:
        raise ValueError(f"{_SWAP}: where the model in {os.fspath(model)} goes needs output=")
    try:
        from .onnx import swap as rewrite
    except ModuleNotFoundError as error:
        if error.name not in ("onnx", "onnx_ir"):
            raise
        raise ModuleNotFoundError(
            f"{_SWAP} needs {error.name} for this: {install(error.name, 'onnx')}", name=error.name
        ) from None
    return rewrite(model, _rules.parse(rules, _SWAP), output)


def _shown(key: Any) -> str:
    return key.__name__ if isinstance(key, type) else repr(key)
