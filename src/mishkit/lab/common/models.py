"""Models that the commands can be asked to look at, by name, and inputs for them."""

from __future__ import annotations

import ast
import importlib
import importlib.util
import inspect
import os
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn

from ..._missing import install
from ..._torchvision import mend_torchvision
from .. import LabError
from .errors import telling
from .imports import imported

KINDS = (
    "timm:NAME, hf:NAME (or a folder), path/to/file.py:FUNCTION or package.module:FUNCTION; the "
    "function returns a model, or a model and its inputs"
)


@dataclass(frozen=True)
class Example:
    """A model with inputs for one pass."""

    name: str
    model: nn.Module
    inputs: tuple[Any, ...]


def load(
    name: str, shapes: Sequence[str] = (), options: Sequence[str] = (), *, train: bool = True
) -> Example:
    """The model with this name in training (or eval) mode, and inputs drawn with a fixed seed.

    Parameters
    ----------
    name : str
        see `KINDS`
    shapes : sequence of str
        a shape for each input, "2,3,224,224". Inputs are token numbers for a model with a
        vocabulary, otherwise N(0, 1) numbers. transformers' models get each input by keyword,
        starting with their `main_input_name`. The decoder's input is the second; unless given, it
        has as many tokens as the first, or one per sample
    options : sequence of str
        "key=value" for the function that builds the model: "pretrained=True", "act_layer=mish"

    Raises
    ------
    LabError
        if there is no such model, it can't be built, or a package or inputs are missing
    """
    model, own_inputs = _built(name, options, {}, seed=0)
    with telling(f"{name}, --input {' --input '.join(shapes)}"):
        inputs = tuple(own_inputs) or _inputs(model, [_shape(text) for text in shapes])
    if not inputs:
        raise LabError(f"{name} needs inputs: --input 2,3,224,224, for instance")
    return Example(name, model.train(train), inputs)


def build(name: str, options: Sequence[str] = (), *, seed: int = 0, **offered: Any) -> nn.Module:
    """The model with this name in training mode, with weights drawn with `seed`.

    timm's models get everything in `offered`; a function gets what it has parameters for. `options`
    take precedence. Raises LabError like `load`, and for `hf:`, whose models do not return plain
    scores.
    """
    if name.startswith("hf:"):
        raise LabError(f"{name}: only models that return a tensor of scores can be trained here")
    return _built(name, options, offered, seed)[0].train()


def _built(
    name: str, options: Sequence[str], offered: dict[str, Any], seed: int
) -> tuple[nn.Module, list[Any]]:
    """The model, and any inputs that came with it."""
    torch.manual_seed(seed)
    keywords = dict(_option(text) for text in options)
    library, _, target = name.partition(":")
    with telling(name):
        if library == "timm":
            built: Any = _timm(target, {**offered, **keywords})
        elif library == "hf":
            built = _transformers(target, keywords)
        elif target:
            function = _function(*name.rsplit(":", 1))
            built = function(**{**_accepted(function, offered), **keywords})
        elif name.endswith(".onnx"):
            raise LabError(
                f"{name} is an ONNX file, which keeps nothing for a backward pass; `mishkit swap "
                f"{name} --dry-run` lists its activations"
            )
        else:
            raise LabError(f'what is "{name}"? There is {KINDS}')
    model, *own_inputs = built if isinstance(built, tuple) else (built,)
    if not isinstance(model, nn.Module):
        raise LabError(f"{name} is no torch.nn.Module but a {type(model).__name__}")
    return model, own_inputs


def _accepted(function: Callable[..., Any], offered: dict[str, Any]) -> dict[str, Any]:
    parameters = inspect.signature(function).parameters.values()
    if any(parameter.kind is parameter.VAR_KEYWORD for parameter in parameters):
        return offered
    names = {parameter.name for parameter in parameters}
    return {name: value for name, value in offered.items() if name in names}


def _library(name: str) -> Any:
    mend_torchvision()
    try:
        return importlib.import_module(name)
    except ModuleNotFoundError as error:
        raise LabError(f"{error.name} is not installed: {install(error.name or name)}") from error


def _timm(name: str, options: dict[str, Any]) -> nn.Module:
    timm = _library("timm")
    if not timm.is_model(name):
        near = ", ".join(timm.list_models(f"*{name}*")[:5])
        raise LabError(f'timm has no model "{name}"' + (f"; it has {near}" if near else ""))
    return timm.create_model(name, **options)


def _transformers(name: str, options: dict[str, Any]) -> nn.Module:
    transformers = _library("transformers")
    kind = options.pop("class", "AutoModel")
    options.setdefault("dtype", "float32")
    if Path(name).exists():
        os.environ.setdefault("HF_HUB_OFFLINE", "1")
    return getattr(transformers, kind).from_pretrained(name, **options)


def _function(place: str, name: str) -> Callable[..., Any]:
    function = getattr(imported(place), name, None)
    if not callable(function):
        raise LabError(f'{place} has no function "{name}"')
    return function


def _option(text: str) -> tuple[str, Any]:
    key, equals, value = text.partition("=")
    if not (key and equals):
        raise LabError(f'an option is key=value, not "{text}"')
    try:
        return key, ast.literal_eval(value)
    except (ValueError, SyntaxError):  # a name without quotes
        return key, value


def _shape(text: str) -> list[int]:
    try:
        shape = [int(size) for size in text.split(",")]
        if min(shape) < 0:
            raise ValueError
    except ValueError:
        raise LabError(f'a shape is numbers with commas, 2,3,224,224, not "{text}"') from None
    return shape


def _inputs(model: nn.Module, shapes: Sequence[list[int]]) -> tuple[Any, ...]:
    """Random inputs of these shapes, in the order of the parameters of the model's forward."""
    config = getattr(model, "config", None)
    main = getattr(model, "main_input_name", None)
    if main is None or not shapes:
        tokens = getattr(config, "vocab_size", None)
        return tuple(_random(shape, tokens) for shape in shapes)
    names = list(inspect.signature(model.forward).parameters)
    order = [main, *(name for name in names if name != main)]
    shapes = list(shapes)
    if getattr(config, "is_encoder_decoder", False) and _DECODERS in names:
        order = [main, _DECODERS, *(name for name in order[1:] if name != _DECODERS)]
        if len(shapes) == 1:
            shapes.append(shapes[0] if _is_of_tokens(main) else [shapes[0][0], 1])
    vocabulary = _vocabulary(config)
    by_name = {
        name: _random(shape, vocabulary if _is_of_tokens(name) else None)
        for name, shape in zip(order, shapes, strict=False)
    }
    last = max(names.index(name) for name in by_name)
    return tuple(by_name.get(name) for name in names[: last + 1])


_DECODERS = "decoder_input_ids"


def _is_of_tokens(name: str) -> bool:
    return not name.endswith(("_values", "_features", "_embeds"))


def _vocabulary(config: Any) -> int | None:
    """The vocabulary size of a transformers model; of its text part if it has other inputs."""
    parts = (config, *(getattr(config, name, None) for name in ("text_config", "decoder")))
    return next((size for part in parts if (size := getattr(part, "vocab_size", None))), None)


def _random(shape: Sequence[int], tokens: int | None) -> Tensor:
    return torch.randint(tokens, shape) if tokens else torch.randn(shape)


def mean_square(output: Any) -> Tensor:
    """A number that depends on all outputs of a model, to be differentiated."""
    from mishkit.surgery.watch import tensors_of

    parts = [t.float().square().mean() for t in tensors_of(output) if t.requires_grad]
    if not parts:
        raise LabError("no output of the model has a gradient")
    return torch.stack(parts).sum()
