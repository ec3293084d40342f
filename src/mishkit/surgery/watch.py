"""One forward pass, observed: every activation in it, and every tensor that autograd keeps.

A dispatch mode sees the operators, hooks on saved tensors see what is kept, hooks on modules say
where. What belongs together is known by autograd's sequence numbers: an operator's node is made
just before the operator runs, so that the latest number is its own, and that of what it keeps.
"""

from __future__ import annotations

import functools
import gc
import sys
import weakref
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from contextlib import ExitStack, contextmanager
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn.modules.module import (
    register_module_forward_hook,
    register_module_forward_pre_hook,
)
from torch.utils._python_dispatch import TorchDispatchMode

from ..functions import ACTIVATIONS
from .known import Known, identify
from .slots import Slot, slots

Storage = int
"""The address of a storage that is alive, by which it is told from the others."""


def storage_of(tensor: Tensor) -> Storage:
    """Which storage a tensor lies in."""
    return tensor.untyped_storage()._cdata


@dataclass(frozen=True)
class Place:
    """Where in the model something happens."""

    module: str
    """The path of the innermost module."""
    line: str = ""
    """The line of code, as file:number, for what is no module's affair."""


@dataclass(frozen=True)
class Use:
    """An operator that reads or writes a tensor."""

    operator: str
    module: str
    node: int | None
    """Its number in autograd's sequence; None without a gradient."""


@dataclass(eq=False)
class Call:
    """One application of an activation function."""

    known: Known
    place: Place
    module: nn.Module | Slot | None
    """The module that does nothing but this, or the place of a function held as an attribute."""
    by_hand: bool
    """Whether it is put together from other functions."""
    shape: torch.Size
    dtype: torch.dtype
    x: Storage
    y: Storage
    nodes: set[int]
    """Its numbers in autograd's sequence."""
    wants_grad: bool
    """Whether a gradient flows through it."""
    whole: bool
    """Whether its input is a whole storage, no view and no leaf."""
    x_uses: list[Use] = field(default_factory=list)
    """What reads the input's storage later on."""
    y_uses: list[Use] = field(default_factory=list)
    """What reads the output's storage later on."""
    overwritten: Use | None = None
    """What writes over the output."""

    @property
    def elements(self) -> int:
        """How many there are."""
        return self.shape.numel()


@dataclass(frozen=True)
class Saved:
    """A tensor that autograd keeps."""

    node: int
    storage: Storage
    nbytes: int
    """Of the storage."""
    module: str


@dataclass
class Trace:
    """What was seen."""

    calls: list[Call]
    saved: list[Saved]
    """All that is kept after the pass, but for parameters, buffers and inputs."""
    outputs: set[Storage]
    given: set[Storage]
    """Storages of parameters, buffers and inputs."""
    operators: dict[int, str]
    """The operator of each node."""
    kinds: dict[str, str]
    """The classes of the modules without submodules, by path."""
    held: list[Any]
    """What must live on for storages to keep their addresses."""

    @functools.cached_property
    def sizes(self) -> dict[Storage, int]:
        """The bytes of each storage that is kept."""
        return {one.storage: one.nbytes for one in self.saved}

    @property
    def kept(self) -> int:
        """Bytes kept, by distinct storage."""
        return sum(self.sizes.values())


def watch(model: nn.Module, args: Sequence[Any], kwargs: Mapping[str, Any]) -> Trace:
    """Run the model once, with gradients, and leave it as it was: no buffer and no state of a
    generator of random numbers changes."""
    observer = _Observer(model)
    given = [*model.parameters(), *model.buffers(), *tensors_of((args, kwargs))]
    with _only_young_garbage(), undisturbed(model), torch.enable_grad(), observer:
        output = model(*args, **kwargs)
    return observer.trace({storage_of(t) for t in given}, output, given)


@contextmanager
def _only_young_garbage() -> Iterator[None]:
    """Afterwards nothing of what was made within lives on in dropped cycles."""
    enabled = gc.isenabled()
    gc.disable()
    try:
        yield
        gc.collect(0)  # where all of it still is
    finally:
        if enabled:
            gc.enable()


@contextmanager
def undisturbed(model: nn.Module) -> Iterator[None]:
    """Put buffers and generators of random numbers back afterwards."""
    devices = {p.device.index or 0 for p in model.parameters() if p.device.type == "cuda"}
    with torch.random.fork_rng(devices=sorted(devices)), unwritten(model):
        yield


@contextmanager
def unwritten(model: nn.Module) -> Iterator[None]:
    """Put buffers back afterwards."""
    buffers = [(buffer, buffer.detach().clone()) for buffer in model.buffers()]
    try:
        yield
    finally:
        with torch.no_grad():
            for buffer, was in buffers:
                if not torch.equal(buffer, was):
                    buffer.copy_(was)


def tensors_of(value: Any) -> Iterator[Tensor]:
    """The tensors within lists, mappings and objects with attributes."""
    if isinstance(value, Tensor):
        yield value
    elif isinstance(value, Mapping):
        for one in value.values():
            yield from tensors_of(one)
    elif isinstance(value, (list, tuple, set)):
        for one in value:
            yield from tensors_of(one)
    elif hasattr(value, "__dict__") and not isinstance(value, (nn.Module, type)):
        for one in vars(value).values():
            yield from tensors_of(one)


class _Kept:
    """What stands for a tensor in autograd's graph, and dies with it."""

    def __init__(self, tensor: Tensor, node: int, module: str) -> None:
        self.tensor, self.node, self.module = tensor, node, module


@dataclass(eq=False)
class _Running:
    """A call of a known module, or of a function held as an attribute, that has not returned."""

    module: nn.Module | Slot
    known: Known
    place: Place
    first: int
    """The latest sequence number when it began."""
    input: Tensor
    wants_grad: bool


class _Observer(TorchDispatchMode):
    def __init__(self, model: nn.Module) -> None:
        super().__init__()
        modules = dict(model.named_modules())
        self.names = {id(module): name for name, module in modules.items()}
        leaves = {name: one for name, one in modules.items() if not any(one.children())}
        self.kinds = {name: type(module).__name__ for name, module in leaves.items()}
        self.functions = [s for s in slots(model) if not isinstance(s.value, nn.Module)]
        self.path: list[str] = []
        self.running: list[_Running] = []
        self.calls: list[Call] = []
        self.by_storage: dict[Storage, list[tuple[Call, bool]]] = {}
        self.kept: list[weakref.ref[_Kept]] = []
        self.operators: dict[int, str] = {}
        self.held: list[Any] = []
        self.latest = _latest()
        self.function: int | None = None
        self._stack = ExitStack()

    # ---- what is switched on and off ----

    def __enter__(self) -> _Observer:
        hooks = torch.autograd.graph.saved_tensors_hooks(self._pack, lambda kept: kept.tensor)
        self._stack.enter_context(hooks)
        for slot in self.functions:
            setattr(slot.owner, slot.attribute, self._marked(slot))
            self._stack.callback(setattr, slot.owner, slot.attribute, slot.value)
        for handle in (
            register_module_forward_pre_hook(self._before),
            register_module_forward_hook(self._after),
        ):
            self._stack.callback(handle.remove)
        self.latest = _latest()
        super().__enter__()
        return self

    def __exit__(self, *exc: Any) -> None:
        super().__exit__(*exc)
        self._stack.close()

    # ---- what is seen ----

    def _pack(self, tensor: Tensor) -> _Kept:
        kept = _Kept(tensor, _latest(), self._module)
        self.kept.append(weakref.ref(kept))
        return kept

    def _before(self, module: nn.Module, args: Any) -> None:
        name = self.names.get(id(module))
        if name is None:
            return
        self.path.append(name)
        known = identify(module)
        if known is not None and len(args) == 1:
            self._begin(module, known, name, args[0])

    def _after(self, module: nn.Module, args: Any, output: Any) -> None:
        if id(module) in self.names:
            self.path.pop()
            self._end(module, output)

    def _marked(self, slot: Slot) -> Callable[..., Any]:
        """The function of a slot, whose calls are known to be the slot's."""
        function: Any = slot.value

        def call(*args: Any, **kwargs: Any) -> Any:
            assert slot.known is not None
            self._begin(slot, slot.known, slot.name, args[0] if args else None)
            output = function(*args, **kwargs)
            self._end(slot, output)
            return output

        return call

    def _begin(self, module: nn.Module | Slot, known: Known, name: str, x: Any) -> None:
        if isinstance(x, Tensor) and not self.running:
            self.held.append(x.untyped_storage())
            self.running.append(_Running(module, known, Place(name), _latest(), x, _wants_grad(x)))

    def _end(self, module: nn.Module | Slot, output: Any) -> None:
        if self.running and self.running[-1].module is module:
            running = self.running.pop()
            if isinstance(output, Tensor):
                nodes = set(range(running.first + 1, _latest() + 1))
                x, place = running.input, running.place
                self._add(running.known, place, module, x, output, nodes, running.wants_grad)

    def __torch_dispatch__(
        self, operator: Any, types: Any, args: Any = (), kwargs: Any = None
    ) -> Any:
        kwargs = kwargs or {}
        output = operator(*args, **kwargs)
        node = _latest()
        is_new = node != self.latest
        self.latest = node
        name = operator._schema.name.partition("::")[2]
        self.operators.setdefault(node, name)
        # An autograd.Function is one node: its further operators are no calls of their own.
        inside = not torch.is_grad_enabled() and node == self.function
        if is_new:
            self.function = None if torch.is_grad_enabled() else node
        self._note_uses(operator, args, kwargs, Use(name, self._module, node if is_new else None))
        if self.running:
            return output
        known = _called(operator, args, kwargs)
        if known is not None and not inside:
            # In place and with out= the result is the argument that is written.
            result = output if isinstance(output, Tensor) else None
            if result is None:
                results = [t for t in tensors_of(output) if t.dtype == args[0].dtype]
                written = [a for a in args[1:2] if isinstance(a, Tensor)]
                result = (results or written or [args[0]])[0]
            place = Place(self._module, line_of_model())
            nodes = {node} if is_new else set()
            self._add(known, place, None, args[0], result, nodes, is_new)
        elif name == "mul" and len(args) == 2 and all(isinstance(a, Tensor) for a in args):
            self._put_together(args, output, node if is_new else None)
        return output

    def _note_uses(self, operator: Any, args: Any, kwargs: Any, use: Use) -> None:
        if not self.by_storage:
            return
        values = {**dict(zip(_argument_names(operator), args, strict=False)), **kwargs}
        written = _written(operator)
        for argument, value in values.items():
            for tensor in tensors_of(value) if isinstance(value, (Tensor, list, tuple)) else ():
                for call, is_output in self.by_storage.get(storage_of(tensor), ()):
                    if is_output:
                        call.y_uses.append(use)
                        if argument in written and call.overwritten is None:
                            call.overwritten = use
                    else:
                        call.x_uses.append(use)

    def _put_together(self, factors: Sequence[Tensor], output: Tensor, node: int | None) -> None:
        """Recognise x·σ(x) and x·tanh(softplus(x))."""
        for x, gate in (factors, factors[::-1]):
            found = [call for call, _ in self.by_storage.get(storage_of(gate), ())]
            parts = [call for call in found if call.y == storage_of(gate) and call.module is None]
            if not parts or x.shape != gate.shape:
                continue
            last = parts[-1]
            chain = [last]
            if last.known == Known("tanh"):
                before = [call for call, _ in self.by_storage.get(last.x, ()) if call.y == last.x]
                chain += [call for call in before if call.known.function == "softplus"][-1:]
            function = {1: "silu", 2: "mish"}.get(len(chain), "")
            if (function, last.known.function) not in (("silu", "sigmoid"), ("mish", "tanh")):
                continue
            if chain[-1].x != storage_of(x) or (
                function == "mish" and chain[-1].known.parameters["beta"] != 1
            ):
                continue
            for call in chain:
                self._forget(call)
            nodes = {node} if node is not None else set()
            nodes = nodes.union(*(call.nodes for call in chain))
            self._add(
                Known(function), last.place, None, x, output, nodes, last.wants_grad, by_hand=True
            )
            return

    # ---- keeping the books ----

    @property
    def _module(self) -> str:
        return self.path[-1] if self.path else ""

    def _add(
        self,
        known: Known,
        place: Place,
        module: nn.Module | Slot | None,
        x: Tensor,
        y: Tensor,
        nodes: set[int],
        wants_grad: bool,
        by_hand: bool = False,
    ) -> None:
        self.held += [x.untyped_storage(), y.untyped_storage()]
        fills = x.numel() * x.element_size() == x.untyped_storage().nbytes()
        whole = fills and not x._is_view() and not x.is_leaf
        ends = storage_of(x), storage_of(y)
        call = Call(
            known, place, module, by_hand, y.shape, y.dtype, *ends, nodes, wants_grad, whole
        )
        self.calls.append(call)
        for storage in dict.fromkeys(ends):
            self.by_storage.setdefault(storage, []).append((call, storage == call.y))

    def _forget(self, call: Call) -> None:
        self.calls.remove(call)
        for storage in {call.x, call.y}:
            self.by_storage[storage] = [e for e in self.by_storage[storage] if e[0] is not call]

    def trace(self, given: set[Storage], output: Any, held: Iterable[Any]) -> Trace:
        alive = [kept for kept in (reference() for reference in self.kept) if kept is not None]
        saved = [
            Saved(
                kept.node,
                storage_of(kept.tensor),
                kept.tensor.untyped_storage().nbytes(),
                kept.module,
            )
            for kept in alive
        ]
        outputs = list(tensors_of(output))
        return Trace(
            calls=self.calls,
            saved=[one for one in saved if one.storage not in given and one.nbytes],
            outputs={storage_of(t) for t in outputs},
            given=given,
            operators=self.operators,
            kinds=self.kinds,
            held=[*self.held, *held, *alive, output],
        )


def _latest() -> int:
    """The number of the newest node of autograd's graph, on this thread."""
    return torch.autograd._get_sequence_nr() - 1  # type: ignore[attr-defined]


def _wants_grad(tensor: Tensor) -> bool:
    return tensor.requires_grad and torch.is_grad_enabled()


def _argument_names(operator: Any) -> list[str]:
    return [argument.name for argument in operator._schema.arguments]


def _written(operator: Any) -> set[str]:
    return {a.name for a in operator._schema.arguments if a.alias_info and a.alias_info.is_write}


_TORCHS = {
    name: name
    for name in (
        *("celu", "elu", "gelu", "hardshrink", "hardsigmoid", "hardswish", "hardtanh"),
        *("leaky_relu", "mish", "relu", "sigmoid", "silu", "softplus", "softshrink", "tanh"),
    )
} | {"log_sigmoid_forward": "logsigmoid", "_prelu_kernel": "prelu", "rrelu_with_noise": "rrelu"}
"""Operators of torch, and the functions that they are."""

_OURS = {
    name + ending: name
    for name in ACTIVATIONS
    for ending in ("", "_out", "_packed", "_packed_out", "_trained")
}


def _called(operator: Any, args: Sequence[Any], kwargs: Mapping[str, Any]) -> Known | None:
    """The activation that an operator of torch's or ours is."""
    library, _, name = operator._schema.name.partition("::")
    if library == "mishkit" and name in _OURS:
        function = _OURS[name]
        numbers = [v for v in args[1:] if not isinstance(v, Tensor)]
        names = [p.name for p in ACTIVATIONS[function].parameters]
        save = "output" if "packed" in name else "input"
        trained = name.endswith("_trained")
        parameters = {} if trained else dict(zip(names, numbers, strict=True))
        return Known(function, parameters, name.endswith("_out"), save, trained)
    if library != "aten" or name.removesuffix("_") not in _TORCHS:
        return None
    function = _TORCHS[name.removesuffix("_")]
    values = dict(zip(_argument_names(operator), args, strict=False)) | dict(kwargs)
    if function == "gelu" and values.get("approximate") == "tanh":
        function = "gelu_tanh"
    parameters = {}
    if function == "softplus":
        parameters = {
            "beta": float(values.get("beta", 1)),
            "threshold": float(values.get("threshold", 20)),
        }
    return Known(function, parameters, name.endswith("_"))


_LIBRARIES = tuple(
    str(Path(module.__file__ or "").parent)
    for module in (torch, sys.modules[__package__.partition(".")[0]])
)


def line_of_model() -> str:
    """The line of the model's code that is being executed."""
    frame = sys._getframe(2)
    while frame.f_back is not None and frame.f_code.co_filename.startswith(_LIBRARIES):
        frame = frame.f_back
    return f"{frame.f_code.co_filename}:{frame.f_lineno}"
