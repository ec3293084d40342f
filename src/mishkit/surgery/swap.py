"""Other activations in a model's places, by rules; and back again."""

from __future__ import annotations

import functools
import os
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from typing import Any

from torch import nn

from .._missing import install
from ..recompute.model import detach
from . import rules as _rules
from .known import identify
from .replacements import Replacement, Replacements
from .slots import Refused, Slot, put_all, restore, slots

_SWAP, _UNSWAP = "mishkit.swap", "mishkit.unswap"


def swap(
    model: Any, rules: Mapping[Any, Any], *, output: str | os.PathLike[str] | None = None
) -> Replacements:
    """Put other activations in a model's places: ``swap(model, {"silu": "mish"})``.

    In a `torch.nn.Module` the modules and function attributes that hold activations are replaced;
    what a `forward` calls by itself, as ``F.silu(x)``, is beyond reach. The names of submodules,
    hooks and training mode stay, and so does what users and tools gave to a module beyond its
    class, as the observers of quantisation; `unswap` undoes it all. A module that is parametrized,
    or whose `forward` was replaced, is left, and the result says so. An ONNX model is rewritten in
    standard operators (see below).

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
          ``inplace=True`` is kept, with ``save="copy"`` where the old one keeps a copy of its
          input, as torch's SiLU, Mish and Hardswish do, or the new one needs its input; mishkit's
          ``save`` is kept where the new one allows it, and parameters where it is the same
          function. Arguments that are given go before all of these;
        - another class of modules, which is called without arguments;
        - a module, of which each site gets a copy;
        - a function of the old module that returns the new one.

        A module that is shared by several sites is replaced by one shared module; a function makes
        a module for each module that it is given. What replaces a
        function attribute is a function; a module with parameters can't.
    output : path, optional
        where the rewritten ONNX model is saved: needed with a path, possible with an ONNX model

    Returns
    -------
    Replacements
        a list of what was replaced where (`name`, `old`, `new`), which prints as a table; `unused`
        has the keys for which there was no site, `left` the sites that were left and why

    Raises
    ------
    ValueError
        if a key is neither a function nor a pattern that is for anything, if there is no such
        activation or it can't take the arguments, if a function makes one module for several, or if
        the model itself is an activation
    TypeError
        if the model, a key or a value is none of these
    ModuleNotFoundError
        for ONNX, without the extra ``onnx``

    Whatever is raised, here, by what rules call or by the model, nothing has been replaced.

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
    changes, unused, left = resolve(model, rules, _SWAP)
    # Described before any is put in place: a description shows what is inside.
    done = [Replacement(slot.name, describe(slot.value), describe(new)) for slot, new in changes]
    with explained(_SWAP):
        put_all(changes)
    return Replacements(done, unused, left)


def unswap(model: nn.Module) -> list[str]:
    """Put back every activation that was replaced, here or by others of mishkit's surgery.

    A model that `lean` made recompute goes back to keeping what it kept.

    Works on copies too, by `copy.deepcopy` or pickle. Hooks, training mode and what users and tools
    gave to modules stay, and parameters of what is put back have the device and the dtype that the
    model was moved or converted to; those of what was put in (as of a trained `Swish`) are lost.

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
    ValueError
        if the `forward` of what was put in has been replaced since

    Whatever is raised, nothing has been put back.
    """
    if not isinstance(model, nn.Module):
        raise TypeError(f"{_UNSWAP}: the model must be a module, not {type(model).__name__}")
    with explained(_UNSWAP):
        restored = restore(model)
    for module in model.modules():
        detach(module)
    return restored


def describe(value: Any) -> str:
    """An activation in one line: a module as it prints itself, a function by its name."""
    if isinstance(value, nn.Module):
        try:
            text = repr(value)
        except AttributeError:  # from an old pickle, without what its class shows now
            return f"{type(value).__name__}()"
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
) -> tuple[list[tuple[Slot, Any]], list[Any], dict[str, str]]:
    """What the rules put in which slots, made but not put there; the keys that found none; and the
    names of slots that are left, with the reasons.

    What is shared is replaced by one. Raises what `swap` does, beginning with the caller's name.
    """
    parsed = _rules.parse(rules, caller)
    if identify(model) is not None:
        raise ValueError(f"{caller}: the model itself is an activation; nothing holds it")
    taken, left = _taken(model, parsed, caller)
    made: dict[tuple[int, int], Any] = {}
    changes = []
    for slot, rule in taken:
        old, shared = slot.value, (id(slot.value), rule)
        if not isinstance(old, nn.Module) or shared not in made:
            try:
                made[shared] = _make(parsed[rule][1], slot)
            except (TypeError, ValueError) as error:
                reason = str(error).removeprefix("mishkit.")
                kind = TypeError if isinstance(error, TypeError) else ValueError
                raise kind(f'{caller}: at "{slot.name}": {reason}') from error
        changes.append((slot, made[shared]))
    _check_not_mixed(changes, caller)
    used = {rule for _, rule in taken}
    return changes, [key.given for i, (key, _) in enumerate(parsed) if i not in used], left


def _check_not_mixed(changes: list[tuple[Slot, Any]], caller: str) -> None:
    """That no module takes the place of two: it could have the hooks and the children of one, and
    stand for one when it is taken back."""
    place_of: dict[int, Slot] = {}
    for slot, new in changes:
        if not isinstance(new, nn.Module):
            continue
        first = place_of.setdefault(id(new), slot)
        if first.value is not slot.value:
            raise ValueError(
                f'{caller}: one {type(new).__name__} is made for "{first.name}" and '
                f'"{slot.name}", which hold two modules; make one for each'
            )


def _taken(
    model: nn.Module, parsed: list[tuple[_rules.Key, _rules.Value]], caller: str
) -> tuple[list[tuple[Slot, int]], dict[str, str]]:
    """The slots that are replaced, each with the first rule that is for it; and those that are
    left, with the reasons."""
    every = list(slots(model))
    taken: list[tuple[Slot, int]] = []
    left: dict[str, str] = {}
    for slot in every:
        if taken and slot.name.startswith(f"{taken[-1][0].name}."):
            continue  # its surroundings go
        for i, (key, _) in enumerate(parsed):
            if reason := key.leaves(slot):
                left[slot.name] = reason
                break
            if key.takes(slot):
                taken.append((slot, i))
                break
    for key, _ in parsed:
        if key.pattern is None or any(key.takes(slot) or key.leaves(slot) for slot in every):
            continue
        others = [slot for slot in every if key.matches(slot.name)]
        if not others:
            raise ValueError(f"{caller}: {_rules.unknown(key.pattern, [s.name for s in every])}")
        raise ValueError(
            f'{caller}: "{key.pattern}" is for no activation; it fits "{others[0].name}", '
            f"a {type(others[0].value).__name__}"
        )
    return taken, left


@contextmanager
def explained(caller: str) -> Iterator[None]:
    """What a place refuses, beginning with the caller's name."""
    try:
        yield
    except Refused as error:
        raise ValueError(f"{caller}: {error}") from None


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
