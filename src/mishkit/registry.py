"""Activations by name: for use in configurations, and registered with timm and transformers."""

from __future__ import annotations

import difflib
import inspect
from collections.abc import Callable, Iterable, Mapping, Sequence
from functools import partial
from importlib.util import find_spec
from typing import Any, NamedTuple

from torch import Tensor, nn

from ._torchvision import mend_torchvision
from .functional import FUNCTIONS
from .functions import ACTIVATIONS
from .modules import MODULES

_FUNCTION_NAMES = {name: name for name in ACTIVATIONS} | {
    activation.module_name: name for name, activation in ACTIVATIONS.items()
}


def names() -> list[str]:
    """The names of all activation functions, in table order."""
    return list(ACTIVATIONS)


def get(name: str, **arguments: Any) -> nn.Module:
    """Build a module from its name, so that a configuration can name an activation by a string.

    Parameters
    ----------
    name : str
        the name of the function (``"h_mish"``, see `names`) or of the module (``"HMish"``)
    **arguments
        arguments of the module: ``get("softplus", beta=2)``, ``get("mish", save="output")``

    Raises
    ------
    ValueError
        if there is no such activation, or if it does not accept these values
    TypeError
        if the module has no such argument, or the name is not a string
    """
    return _module(_function_name(name, "mishkit.get"))(**arguments)


def register(
    *,
    prefix: str = "mishkit_",
    named: Mapping[str, str | tuple[str, Mapping[str, Any]]] | None = None,
    libraries: Iterable[str] = ("timm", "transformers"),
) -> dict[str, list[str]]:
    """Register the activations by name with timm and transformers, if these are installed.

    After ``mishkit.register()``, ``timm.create_model("resnet18", act_layer="mishkit_mish")`` and a
    transformers configuration with ``hidden_act="mishkit_mish"`` use `mishkit.Mish`. The names last
    as long as the process: call it again before loading a model that uses them in another process.
    Calling it twice is fine; models built afterwards use what was registered last under a name.

    timm passes ``inplace=True`` in most convolutional networks, and the backward pass then works
    from the output (see `mishkit.functional`). That request is ignored if the arguments in `named`
    exclude it, as ``trainable=True`` does. Arguments given in `named` override those that the
    library passes: ``named={"mishkit_mish": ("mish", {"inplace": False})}``. A name whose arguments
    only the module takes is available from timm's `get_act_layer`, but not from its `get_act_fn`.

    Parameters
    ----------
    prefix : str, default "mishkit_"
        prefix put before each of `names`. With an empty prefix, our activations replace those that
        the libraries have under the same names, in every model built afterwards. The exception is
        timm's ``hard_mish``, which stays theirs because it is a different function: our `h_mish`.
    named : mapping, optional
        further names, used without the prefix, each for an activation or for a pair of an
        activation and its arguments: ``{"softplus2": ("softplus", {"beta": 2})}``
    libraries : iterable of str, default ("timm", "transformers")
        which libraries to register with. Those that are installed are imported, even if a CUDA
        build of torchvision is installed next to a CPU build of torch; an error raised by the
        import is passed on.

    Returns
    -------
    dict
        The names now registered with each library, for the libraries that are installed.

    Raises
    ------
    ValueError
        if a library is unknown, if a name is not in lower case (timm looks up no other), if a name
        is already the library's own and the prefix is not empty, or for what `get` rejects. Nothing
        is registered in these cases.
    TypeError
        if an activation has no such argument; nothing is registered then
    """
    entries: dict[str, tuple[str, dict[str, Any]]] = {prefix + name: (name, {}) for name in names()}
    entries |= {name: _named(name, spec) for name, spec in (named or {}).items()}
    for name in entries:
        if name != name.lower():
            raise ValueError(f'mishkit.register: names must be in lower case, not "{name}"')
    libraries = [libraries] if isinstance(libraries, str) else list(libraries)
    for library in libraries:
        if library not in _LIBRARIES:
            known = ", ".join(_LIBRARIES)
            raise ValueError(f'mishkit.register: unknown library "{library}"; known are {known}')
    installed = [library for library in libraries if find_spec(library)]
    if installed:
        mend_torchvision()
    by_library = {library: _LIBRARIES[library]() for library in installed}
    registered = {library: list(entries) for library in by_library}
    for library, tables in by_library.items():
        theirs = [name for name in entries if tables.has_its_own(name)]
        if prefix and theirs:
            raise ValueError(
                f'mishkit.register: {library} has its own "{theirs[0]}"; '
                'use another name, or prefix="" to replace what it has'
            )
        for name in _DIFFERENT[library]:
            if name in theirs and name not in (named or ()):
                registered[library].remove(name)
    for library, tables in by_library.items():
        for name in registered[library]:
            tables.write(name, *entries[name])
    return registered


def _module(name: str) -> type[nn.Module]:
    return MODULES[ACTIVATIONS[name].module_name]


def _function_name(name: str, caller: str) -> str:
    """The function's name, given the name of the function or of the module."""
    if not isinstance(name, str):
        raise TypeError(f"{caller}: the name must be a string, not {type(name).__name__}")
    if name in _FUNCTION_NAMES:
        return _FUNCTION_NAMES[name]
    nearest = difflib.get_close_matches(name.lower(), ACTIVATIONS, n=1)
    meant = f'; did you mean "{nearest[0]}"?' if nearest else "."
    raise ValueError(
        f'{caller}: there is no activation "{name}"{meant} There are {", ".join(names())}.'
    )


def _named(name: str, spec: str | tuple[str, Mapping[str, Any]]) -> tuple[str, dict[str, Any]]:
    """An activation and its arguments. Builds the module once to check that the arguments fit."""
    try:
        activation, arguments = (spec, {}) if isinstance(spec, str) else spec
        arguments = dict(arguments)
    except (TypeError, ValueError):
        raise ValueError(
            f'mishkit.register: "{name}" must stand for an activation or a pair of one and '
            f"its arguments, not {spec!r}"
        ) from None
    activation = _function_name(activation, "mishkit.register")
    module = _module(activation)
    module(**arguments)
    try:
        module(**{**arguments, "save": "output"})
    except ValueError:  # backward needs the input, so the library must not set `inplace`
        arguments.setdefault("inplace", False)
    return activation, arguments


# The libraries' tables hold partials of the two functions below. Models may keep them, and partials
# can be pickled. Some code in timm accepts no callable objects other than partials, and some of its
# networks pass `inplace` by position.


def _layer(
    module: type[nn.Module], arguments: dict[str, Any], inplace: bool = False, **passed: Any
) -> nn.Module:
    return module(**{"inplace": inplace, **passed, **arguments})


def _apply(
    function: Callable[..., Tensor],
    arguments: dict[str, Any],
    input: Tensor,
    inplace: bool = False,
    **passed: Any,
) -> Tensor:
    return function(input, **{"inplace": inplace, **passed, **arguments})


class _Tables(NamedTuple):
    """The tables in which a library looks up activations."""

    layers: Sequence[dict[str, Any]]
    functions: Sequence[dict[str, Any]] = ()

    def has_its_own(self, name: str) -> bool:
        # Not table[name]: in one of transformers' tables that would build a module.
        entries = [dict.get(table, name) for table in (*self.layers, *self.functions)]
        makers = [getattr(entry, "func", entry) for entry in entries if entry is not None]
        return any(getattr(maker, "__module__", None) != __name__ for maker in makers)

    def write(self, name: str, activation: str, arguments: dict[str, Any]) -> None:
        for table in self.layers:
            table[name] = partial(_layer, _module(activation), arguments)
        function = FUNCTIONS[activation]
        for table in self.functions:
            table.pop(name, None)
            if arguments.keys() <= inspect.signature(function).parameters.keys():
                table[name] = partial(_apply, function, arguments)


def _timm() -> _Tables:
    from timm.layers import create_act

    # Write to all of them: timm's settings for export and scripting decide which is searched first.
    return _Tables(create_act._ACT_LAYERS, create_act._ACT_FNS)


def _transformers() -> _Tables:
    from transformers import activations

    # Most models use ACT2FN, a copy of ACT2CLS that instantiates what it looks up; some use
    # ACT2CLS.
    return _Tables((activations.ACT2CLS, activations.ACT2FN))


_LIBRARIES = {"timm": _timm, "transformers": _transformers}
_DIFFERENT: dict[str, tuple[str, ...]] = {"timm": ("hard_mish",), "transformers": ()}
"""Names that stand for a different function in the library than in mishkit."""
