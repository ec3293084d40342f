"""Replace the activations of a model by rules, and put the old ones back."""

from __future__ import annotations

import functools
import os
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from typing import Any

from torch import nn

from .._missing import install
from ..forms import STANDARD
from ..recompute.model import detach
from . import rules as _rules
from .known import identify
from .replacements import Replacement, Replacements
from .slots import Refused, Slot, put_all, restore, slots

_SWAP, _UNSWAP = "mishkit.swap", "mishkit.unswap"


def swap(
    model: Any,
    rules: Mapping[Any, Any],
    *,
    output: str | os.PathLike[str] | None = None,
    form: str | None = None,
) -> Replacements:
    """Replace the activations of a model: ``swap(model, {"silu": "mish"})``.

    In a `torch.nn.Module`, the submodules and function attributes that hold activations are
    replaced. Calls in a `forward`, such as ``F.silu(x)``, are out of reach. Submodule names, hooks
    and training mode stay the same, and so does anything that users and tools attached to a module,
    such as the observers of quantisation. `unswap` undoes it all. A module that is parametrized, or
    whose `forward` was replaced, is left alone and listed in the result. An ONNX model is rewritten
    in standard operators (see below).

    Parameters
    ----------
    model : torch.nn.Module, path, onnx.ModelProto, onnx_ir.Model or torch.onnx.ONNXProgram
        changed in place; a path names an ONNX file, which itself is not changed
    rules : mapping
        which sites to replace, and by what; the first rule that matches a site is used. A key is

        - the name of a function, ``"silu"``: matches every site that computes it, whether a class
          from torch, mishkit, timm or transformers, a module without parameters that computes it by
          hand (which is evaluated to see that), or a function from torch or mishkit. ``"gelu"`` and
          ``"gelu_tanh"`` are different names;
        - a module class, ``torch.nn.GELU``: matches modules of exactly this class;
        - a pattern of paths, ``"blocks.*.act"``, in which ``*`` matches any text, dots too. It
          matches known activations. If its last part has no wildcard, it also matches modules of
          other classes without submodules, parameters or buffers. It must match at least one site.

        A value is

        - the name of one of mishkit's activations, ``"mish"``, with parameters as in
          ``"hard_mish:k=5"`` or ``("aptx", {"trainable": True})``, or its class. A module's
          ``inplace=True`` is carried over. It gets ``save="copy"`` if the old module keeps a copy
          of its input, as torch's SiLU, Mish and Hardswish do, or if the new one needs its input.
          mishkit's ``save`` is carried over if the new module allows it, and parameters are if it
          computes the same function. Arguments that you give take precedence over all of these;
        - `mishkit.gate`: the function stays and waits until its output is multiplied by a tensor
          of its shape, which is then one pass: ``swap(model, {"silu": mk.gate})`` for SwiGLU.
          Anything else that is done with the output computes the function first;
        - another module class, which is called without arguments;
        - a module, of which each site gets a copy;
        - a function that takes the old module and returns the new one.

        A module shared by several sites is replaced by one shared module; a function is called once
        for each old module. A function attribute is replaced by a function; a module with
        parameters can't take its place.
    output : path, optional
        where to save the rewritten ONNX model: required with a path, optional with an ONNX model
    form : str, optional
        how the functions are written in ONNX: ``"standard"``, the default, by their own operators;
        ``"fast"``, by what is fastest in ONNX Runtime, or ``"fast:openvino"`` in another of
        `mishkit.export.RUNTIMES`; ``"opset:17"`` by operators that this opset has too, so that
        ``onnx.version_converter`` can take the model there

    Returns
    -------
    Replacements
        a list of what was replaced where (`name`, `old`, `new`), which prints as a table; `unused`
        has the keys that matched no site, and `left` the sites that were left alone, and in ONNX
        the near misses, with the reasons

    Raises
    ------
    ValueError
        if a key is neither a function nor a pattern that matches anything, if there is no such
        activation or it does not accept the arguments, if a function returns the same module for
        several old ones, or if the model itself is an activation
    TypeError
        if the model, a key or a value has none of the types above
    ModuleNotFoundError
        for ONNX, if the extra ``onnx`` is not installed

    If anything is raised, by `swap`, by what the rules call or by the model, nothing was replaced.

    Notes
    -----
    In ONNX, a site is a node or a group of nodes that computes a known function, however it is
    written: ``Softplus``, ``Tanh`` and ``Mul`` are ``"mish"``, and ``Erf`` with its usual
    companions is ``"gelu"``. Patterns match the name of a site's last node. Values can only be
    mishkit's activations, with numbers for parameters. The nodes written suit the model's opset:
    ``Mish`` from 18 on, ``Gelu`` from 20 on. If a site already computes the same function and the
    new nodes are no shorter, the site is left as it is. So ``{"mish": "mish", "gelu": "gelu"}``
    joins what an exporter took apart.

    Only the sites are rewritten: other nodes, domains and data stay as they are, valid or not. A
    function that the opset does not have, such as ``Mish`` before 18, is written in operators that
    it does have. Nodes that all but compute a function, because one of their values is used
    elsewhere or a constant is off, are in `left`.
    """
    if not isinstance(model, nn.Module):
        _check_onnx(model, output)
        return swap_onnx(model, rules, output, STANDARD if form is None else form)
    if output is not None or form is not None:
        raise ValueError(f"{_SWAP}: {'form' if output is None else 'output'}= is for ONNX models")
    changes, unused, left = resolve(model, rules, _SWAP)
    # Describe them before any is put in place, since a description shows what is inside.
    done = [Replacement(slot.name, describe(slot.value), describe(new)) for slot, new in changes]
    with explained(_SWAP):
        put_all(changes)
    return Replacements(done, unused, left)


def _check_onnx(model: Any, output: str | os.PathLike[str] | None) -> None:
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


def unswap(model: nn.Module) -> list[str]:
    """Put back every activation that `swap` or other surgery functions of mishkit replaced.

    A model that `lean` made recompute goes back to keeping what it kept.

    Also works on copies made by `copy.deepcopy` or pickle. Hooks, training mode and whatever users
    and tools attached to modules are kept. Parameters of the restored activations have the device
    and dtype that the model was moved or converted to; parameters of the removed ones (for example
    of a trained `Swish`) are lost.

    Parameters
    ----------
    model : torch.nn.Module
        a model changed by `swap`

    Returns
    -------
    list of str
        the names of the sites that were restored

    Raises
    ------
    TypeError
        if the model is not a module
    ValueError
        if the `forward` of a replacement has itself been replaced since

    If anything is raised, nothing was put back.
    """
    if not isinstance(model, nn.Module):
        raise TypeError(f"{_UNSWAP}: the model must be a module, not {type(model).__name__}")
    with explained(_UNSWAP):
        restored = restore(model)
    for module in model.modules():
        detach(module)
    return restored


def describe(value: Any) -> str:
    """An activation in one line: a module's repr, or a function's name."""
    if isinstance(value, nn.Module):
        try:
            text = repr(value)
        except AttributeError:  # from an old pickle that lacks what its class now prints
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
    """The slots to be changed with their new values, which are made but not put in place; the keys
    that matched no slot; and the names of slots that are left alone, with the reasons.

    Shared modules are replaced by one shared module. Raises what `swap` raises, with messages that
    begin with the caller's name.
    """
    parsed = _rules.parse(rules, caller)
    if identify(model) is not None:
        raise ValueError(f"{caller}: the model itself is an activation; nothing holds it")
    taken, left = _taken(model, parsed, caller)
    new_values: dict[tuple[int, int], Any] = {}
    changes = []
    for slot, rule in taken:
        old, shared = slot.value, (id(slot.value), rule)
        if not isinstance(old, nn.Module) or shared not in new_values:
            try:
                new_values[shared] = _make(parsed[rule][1], slot)
            except (TypeError, ValueError) as error:
                reason = str(error).removeprefix("mishkit.")
                kind = TypeError if isinstance(error, TypeError) else ValueError
                raise kind(f'{caller}: at "{slot.name}": {reason}') from error
        changes.append((slot, new_values[shared]))
    _check_not_mixed(changes, caller)
    used = {rule for _, rule in taken}
    return changes, [key.given for i, (key, _) in enumerate(parsed) if i not in used], left


def _check_not_mixed(changes: list[tuple[Slot, Any]], caller: str) -> None:
    """Check that no module would replace two others: it could have the hooks and children of only
    one of them, and could be turned back into only one.
    """
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
    """The slots to be replaced, each with the first rule that matches it, and the slots that are
    left alone, with the reasons.
    """
    every = list(slots(model))
    taken: list[tuple[Slot, int]] = []
    left: dict[str, str] = {}
    for slot in every:
        if taken and slot.name.startswith(f"{taken[-1][0].name}."):
            continue  # lies inside a module that is replaced
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
        matched = [slot for slot in every if key.matches(slot.name)]
        if not matched:
            raise ValueError(f"{caller}: {_rules.unknown(key.pattern, [s.name for s in every])}")
        raise ValueError(
            f'{caller}: "{key.pattern}" is for no activation; it fits "{matched[0].name}", '
            f"a {type(matched[0].value).__name__}"
        )
    return taken, left


@contextmanager
def explained(caller: str) -> Iterator[None]:
    """Prefix errors raised by a slot with the caller's name."""
    try:
        yield
    except Refused as error:
        raise ValueError(f"{caller}: {error}") from None


def _make(value: _rules.Value, slot: Slot) -> nn.Module | Callable[..., Any]:
    if isinstance(slot.value, nn.Module):
        return value.module(slot.value, slot.known)
    return value.function(slot.value, slot.known)


def swap_onnx(
    model: Any,
    rules: Mapping[Any, Any],
    output: str | os.PathLike[str] | None,
    form: str,
    *,
    needs_match: bool = False,
) -> Replacements:
    """`swap` for ONNX models. Without an output a file is read alone; with `needs_match` nothing is
    written unless a rule matches.
    """
    rewrite = import_onnx().swap
    done: Replacements = rewrite(
        model, _rules.parse(rules, _SWAP), output, form, needs_match=needs_match
    )
    return done


def import_onnx() -> Any:
    """What works on ONNX models. Raises ModuleNotFoundError if a package is missing."""
    try:
        from .onnx import rewrite
    except ModuleNotFoundError as error:
        if error.name not in ("onnx", "onnx_ir"):
            raise
        raise ModuleNotFoundError(
            f"{_SWAP} needs {error.name} for this: {install(error.name, 'onnx')}", name=error.name
        ) from None
    return rewrite
