"""Activations by name: for configurations, and in the tables of timm and transformers."""

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
    """The names of all activations, in the order of the table: those of the functions."""
    return list(ACTIVATIONS)


def get(name: str, **arguments: Any) -> nn.Module:
    """A new module by its name, so that a configuration can name an activation by a string.

    Parameters
    ----------
    name : str
        the function's name (``"h_mish"``, see `names`) or the module's (``"HMish"``)
    **arguments
        what the module takes: ``get("softplus", beta=2)``, ``get("mish", save="output")``

    Raises
    ------
    ValueError
        if there is no such activation, or it can't take these values
    TypeError
        if the module takes no such argument, or the name is no string
    """
    return _module(_function_name(name, "mishkit.get"))(**arguments)


def register(
    *,
    prefix: str = "mishkit_",
    named: Mapping[str, str | tuple[str, Mapping[str, Any]]] | None = None,
    libraries: Iterable[str] = ("timm", "transformers"),
) -> dict[str, list[str]]:
    """Make the activations known by name to timm and transformers, where these are installed.

    After ``mishkit.register()``, ``timm.create_model("resnet18", act_layer="mishkit_mish")`` and a
    transformers configuration with ``hidden_act="mishkit_mish"`` use `mishkit.Mish`. The names last
    as long as the process: call it again before a model that uses them is loaded elsewhere. Calling
    it twice is fine; what was registered last under a name counts, for models built from then on.

    timm passes ``inplace=True`` in most convolutional networks, and backward then works from the
    output (see `mishkit.functional`); it is not obeyed where arguments in `named` exclude that, as
    ``trainable=True`` does. What `named` says itself wins over the library:
    ``named={"mishkit_mish": ("mish", {"inplace": False})}``. With arguments that only the module
    takes, a name is known to timm's `get_act_layer`, not to its `get_act_fn`.

    Parameters
    ----------
    prefix : str, default "mishkit_"
        what each of `names` is registered under begins with. With the empty prefix, ours replace
        those that the libraries have under the same names, for every model built afterwards. One
        stays theirs: timm's ``hard_mish`` is another function than ours, namely our `h_mish`.
    named : mapping, optional
        further names, taken as they are, each for an activation or a pair of one and its arguments:
        ``{"softplus2": ("softplus", {"beta": 2})}``
    libraries : iterable of str, default ("timm", "transformers")
        which of these libraries to register with. Those that are installed are imported, also where
        a torchvision that is built for CUDA stands beside a torch for CPUs; an import that fails
        raises what it raises.

    Returns
    -------
    dict
        The names that each library now has, for the libraries that are installed.

    Raises
    ------
    ValueError
        if a library is unknown, a name is not in lower case (timm looks no other up) or, unless
        the prefix is empty, the library's own; and for what `get` refuses. Nothing is registered
        then.
    TypeError
        if an activation takes no such argument; nothing is registered then
    """
    entries: dict[str, tuple[str, dict[str, Any]]] = {prefix + name: (name, {}) for name in names()}
    entries |= {name: _named(name, given) for name, given in (named or {}).items()}
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
    found = {library: _LIBRARIES[library]() for library in installed}
    registered = {library: list(entries) for library in found}
    for library, tables in found.items():
        theirs = [name for name in entries if tables.has_its_own(name)]
        if prefix and theirs:
            raise ValueError(
                f'mishkit.register: {library} has its own "{theirs[0]}"; '
                'use another name, or prefix="" to replace what it has'
            )
        for name in _DIFFERENT[library]:
            if name in theirs and name not in (named or ()):
                registered[library].remove(name)
    for library, tables in found.items():
        for name in registered[library]:
            tables.write(name, *entries[name])
    return registered


def _module(name: str) -> type[nn.Module]:
    return MODULES[ACTIVATIONS[name].module_name]


def _function_name(name: str, caller: str) -> str:
    """The function's name, from either name."""
    if not isinstance(name, str):
        raise TypeError(f"{caller}: the name must be a string, not {type(name).__name__}")
    if name in _FUNCTION_NAMES:
        return _FUNCTION_NAMES[name]
    nearest = difflib.get_close_matches(name.lower(), ACTIVATIONS, n=1)
    meant = f'; did you mean "{nearest[0]}"?' if nearest else "."
    raise ValueError(
        f'{caller}: there is no activation "{name}"{meant} There are {", ".join(names())}.'
    )


def _named(name: str, given: str | tuple[str, Mapping[str, Any]]) -> tuple[str, dict[str, Any]]:
    """An activation and its arguments, after building it once to see that they fit."""
    try:
        activation, arguments = (given, {}) if isinstance(given, str) else given
        arguments = dict(arguments)
    except (TypeError, ValueError):
        raise ValueError(
            f'mishkit.register: "{name}" must stand for an activation or a pair of one and '
            f"its arguments, not {given!r}"
        ) from None
    activation = _function_name(activation, "mishkit.register")
    module = _module(activation)
    module(**arguments)
    try:
        module(**{**arguments, "save": "output"})
    except ValueError:  # backward needs the input, so that `inplace` is not for a library to say
        arguments.setdefault("inplace", False)
    return activation, arguments


# What the libraries find in their tables: partials of these two, which can be pickled, as models
# may keep them. timm takes no other callable objects than partials everywhere, and some of its
# networks pass `inplace` by position.


def _layer(
    module: type[nn.Module], arguments: dict[str, Any], inplace: bool = False, **given: Any
) -> nn.Module:
    return module(**{"inplace": inplace, **given, **arguments})


def _apply(
    function: Callable[..., Tensor],
    arguments: dict[str, Any],
    input: Tensor,
    inplace: bool = False,
    **given: Any,
) -> Tensor:
    return function(input, **{"inplace": inplace, **given, **arguments})


class _Tables(NamedTuple):
    """The tables of a library, by which it finds activations."""

    layers: Sequence[dict[str, Any]]
    functions: Sequence[dict[str, Any]] = ()

    def has_its_own(self, name: str) -> bool:
        # Not table[name]: in one of transformers' tables that builds a module.
        found = [dict.get(table, name) for table in (*self.layers, *self.functions)]
        makers = [getattr(one, "func", one) for one in found if one is not None]
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

    # All of them: which one is asked first depends on timm's settings for export and scripting.
    return _Tables(create_act._ACT_LAYERS, create_act._ACT_FNS)


def _transformers() -> _Tables:
    from transformers import activations

    # Most models use ACT2FN, a copy of ACT2CLS that builds what it finds; some use ACT2CLS.
    return _Tables((activations.ACT2CLS, activations.ACT2FN))


_LIBRARIES = {"timm": _timm, "transformers": _transformers}
_DIFFERENT: dict[str, tuple[str, ...]] = {"timm": ("hard_mish",), "transformers": ()}
"""Names under which a library has another function than ours."""
