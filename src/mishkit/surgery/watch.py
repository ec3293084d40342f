"""Observe one forward pass: every activation in it, and every tensor that autograd keeps.

A dispatch mode sees the operators, and a function mode sees the functions that call them. Hooks on
saved tensors see what is kept, and hooks on modules tell where. Autograd's sequence numbers connect
these: an operator's node is created just before the operator runs, so the latest number is the
operator's own and belongs to whatever it saves. Other threads are not observed.
"""

from __future__ import annotations

import functools
import gc
import inspect
import sys
import weakref
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import ExitStack, contextmanager
from dataclasses import dataclass, field
from threading import get_ident
from types import FrameType, FunctionType
from typing import Any

import torch
import torch.nn.modules.module as torch_module
from torch import Tensor, nn
from torch.autograd.function import Function, FunctionCtx
from torch.multiprocessing.reductions import StorageWeakRef
from torch.overrides import TorchFunctionMode

from .._calls import unsuited
from .._checkpoint import in_checkpoint
from .._torch_private import TorchDispatchMode, sequence_number
from ..functions import ACTIVATIONS
from ..memory import parts_of, storages_of
from ..ops.gate import NUMBERS, split
from ._state import Region, Storage, arguments_of, region_of, storage_of, undisturbed, written_by
from .deferred import Deferred
from .known import Known, identify, identify_function
from .slots import Slot, slots


@dataclass(frozen=True)
class Place:
    """Where in the model something happens."""

    module: str
    """The path of the innermost module."""
    line: str = ""
    """The line of code, as file:line, for anything that isn't a module by itself."""


@dataclass(frozen=True)
class Use:
    """An operator that reads or writes a tensor."""

    operator: str
    module: str
    node: int | None
    """The operator's number in autograd's sequence; None if it has no gradient."""


BY_HAND, FUNCTION, SCRIPTED = "by hand", "autograd.Function", "scripted"
GATE = "gate"


@dataclass(eq=False)
class Call:
    """One application of an activation function."""

    known: Known
    """For someone else's autograd.Function, its name."""
    place: Place
    owner: nn.Module | None
    """The innermost enclosing module; None outside all modules."""
    module: nn.Module | Slot | None
    """The module that does nothing but this, or the slot of a function held as an attribute."""
    kind: str
    """`BY_HAND` if it is composed of other functions, `FUNCTION` for someone else's
    autograd.Function that contains activations, `SCRIPTED` inside TorchScript, `GATE` if it is
    `mishkit.gate`, otherwise empty.
    """
    function: str
    """The torch function that is called, as `lean_functional` sees it; empty if it doesn't see it.
    """
    shape: tuple[int, ...]
    """A dimension whose size varies between items, as in nested tensors, is −1."""
    elements: int
    dtype: torch.dtype
    x: Region
    y: Region
    version: int
    """How often the input had been written to."""
    nodes: set[int]
    """Its numbers in autograd's sequence."""
    wants_grad: bool
    """Whether a gradient flows through it."""
    unsuited: str
    """The kind of input, if our kernels don't support it; otherwise empty."""
    only: bool = False
    """Whether the enclosing module does nothing else, so that it can be swapped."""
    y_uses: list[Use] = field(default_factory=list)
    """Operators that later read the output's storage."""
    method: str = ""
    """The method of the owner, other than `forward`, that calls the function."""
    products: int = 0
    """How many of `y_uses` multiply the whole output by another tensor of its shape."""
    overwritten: Use | None = None
    """The operator that overwrites the output."""
    alone: bool = False
    """Whether nothing else needs its input: see `_Fresh`."""

    @property
    def gates(self) -> bool:
        """Whether its output is a factor of one product, and nothing else reads it."""
        return self.products == 1 == len(self.y_uses) and not self.unsuited

    @property
    def output(self) -> Storage:
        """The storage of the result."""
        storage: Storage = self.y[0]
        return storage


@dataclass(frozen=True)
class Saved:
    """A tensor that autograd keeps."""

    node: int
    storage: Storage
    nbytes: int
    """The size of the storage."""
    module: str
    number: int
    """Its place among all tensors that autograd wanted to keep."""


@dataclass
class Trace:
    """What was observed. It holds no reference to any tensor of the pass."""

    calls: list[Call]
    saved: list[Saved]
    """All that is kept after the pass, except parameters, buffers and inputs."""
    given: set[Storage]
    """Storages of parameters, buffers and inputs."""
    operators: dict[int, str]
    """The operator of each node."""
    kinds: dict[str, str]
    """The classes of the modules without submodules, by path."""

    @functools.cached_property
    def sizes(self) -> dict[Storage, int]:
        """The size in bytes of each storage that is kept."""
        return {saved.storage: saved.nbytes for saved in self.saved}

    @property
    def kept(self) -> int:
        """Bytes kept, by distinct storage."""
        return sum(self.sizes.values())


def watch(
    model: nn.Module,
    args: Sequence[Any],
    kwargs: Mapping[str, Any],
    *,
    inplace: bool = False,
) -> Trace:
    """Run the model once with gradients, and leave it as it was: see `undisturbed`.

    With `inplace`, also find out which inputs nothing else needs. This keeps the outputs of layers
    alive for the whole pass.
    """
    observer = _Observer(model, inplace)
    tensors = (*model.parameters(), *model.buffers(), *tensors_of((args, kwargs)))
    given = {storage._cdata for tensor in tensors for storage in storages_of(tensor)}
    with _only_young_garbage(), undisturbed(model, args, kwargs), torch.enable_grad():
        with observer:
            output = model(*args, **kwargs)
        trace = observer.trace(given, output)
        del output
        observer.release()
    return trace


@contextmanager
def _only_young_garbage() -> Iterator[None]:
    """Disable automatic collection, so that collecting generation 0 finds all new garbage."""
    enabled = gc.isenabled()
    gc.disable()
    try:
        yield
    finally:
        gc.collect(0)
        if enabled:
            gc.enable()


def tensors_of(value: Any) -> list[Tensor]:
    """The tensors in lists, mappings and objects with attributes, in order."""
    tensors: list[Tensor] = []
    met: dict[int, Any] = {}
    todo = [value]
    while todo:
        value = todo.pop()
        if isinstance(value, Tensor):
            tensors.append(value)
        elif id(value) not in met:
            met[id(value)] = value
            if isinstance(value, Mapping):
                todo += reversed(list(value.values()))
            elif isinstance(value, (list, tuple, set)):
                todo += reversed(list(value))
            elif hasattr(value, "__dict__") and not isinstance(value, (nn.Module, type)):
                todo += reversed(list(vars(value).values()))
    return tensors


class _Kept:
    """Stands for a saved tensor in the autograd graph, and dies with it."""

    def __init__(self, tensor: Tensor, node: int, module: str, number: int) -> None:
        self.tensor, self.node, self.module, self.number = tensor, node, module, number


@dataclass(eq=False)
class _Frame:
    """A module call that has not returned yet."""

    module: nn.Module
    name: str
    scripted: bool
    calls: list[Call] = field(default_factory=list)
    """Activations called directly in its `forward`."""


@dataclass(eq=False)
class _Fresh:
    """A tensor that an activation may be able to overwrite.

    A layer has just made it, and makes a new tensor in every mode, dtype and layout. Then exactly
    one activation, called by the same `forward`, must take this very tensor. Nothing else may even
    look at it, since that could create an alias elsewhere, and the tensor must be dead after the
    pass.
    """

    tensor: Tensor
    caller: _Frame | None
    taken: Call | None = None
    seen_elsewhere: bool = False
    """Whether anything else has seen it."""


@dataclass(eq=False)
class _Running:
    """A call of a known module, or of a function held as an attribute, that is still running."""

    module: nn.Module | Slot
    known: Known
    place: Place
    first: int
    """The latest sequence number when the call began."""
    input: Tensor
    region: Region
    version: int
    wants_grad: bool
    fresh: _Fresh | None


class _Observer(TorchDispatchMode):
    def __init__(self, model: nn.Module, inplace: bool) -> None:
        super().__init__()
        modules = dict(model.named_modules())
        self.names = {id(module): name for name, module in modules.items()}
        leaves = {name: m for name, m in modules.items() if not any(m.children())}
        self.kinds = {name: type(module).__name__ for name, module in leaves.items()}
        self.attributes = [s for s in slots(model) if not isinstance(s.value, nn.Module)]
        self.inplace = inplace and not _has_global_hooks()
        self.thread = get_ident()
        self.stack: list[_Frame] = []
        self.running: list[_Running] = []
        self.calls: list[Call] = []
        self.by_output: dict[Storage, list[Call]] = {}
        self.fresh: dict[Storage, _Fresh] = {}
        self.kept: list[weakref.ref[_Kept]] = []
        self.operators: dict[int, str] = {}
        self.held: list[Any] = []
        """Storages kept alive so that their addresses are not reused."""
        self.latest = _latest()
        self.called: tuple[str, str] = "", ""
        """The function being called, as `lean_functional` sees it, and its line."""
        self.applied: tuple[int, int] = 0, 0
        """The last application of an autograd.Function that was recorded: its frame and its node.
        """
        self.unfinished: dict[int, Call] = {}
        """Applications whose outputs have not been seen yet, by a node created in them."""
        self._stack = ExitStack()

    # ---- switching it on and off ----

    def __enter__(self) -> _Observer:
        hooks = torch.autograd.graph.saved_tensors_hooks(self._pack, lambda kept: kept.tensor)
        self._stack.enter_context(hooks)
        for slot in self.attributes:
            setattr(slot.owner, slot.attribute, self._marked(slot))
            self._stack.callback(setattr, slot.owner, slot.attribute, slot.value)
        for handle in on_modules(self._before, self._after):
            self._stack.callback(handle.remove)
        self._stack.enter_context(_Functions(self))
        self.latest = _latest()
        super().__enter__()
        return self

    def __exit__(self, *exc: Any) -> None:
        super().__exit__(*exc)
        self._stack.close()

    # ---- what it sees ----

    def _pack(self, tensor: Tensor) -> _Kept:
        kept = _Kept(tensor, _latest(), self._module, len(self.kept))
        self.kept.append(weakref.ref(kept))
        return kept

    def _before(self, module: nn.Module, args: Any) -> None:
        if get_ident() != self.thread:
            return
        name = self.names.get(id(module))
        outer = self.stack[-1] if self.stack else None
        scripted = isinstance(module, torch.jit.ScriptModule) or bool(outer and outer.scripted)
        self.stack.append(_Frame(module, self._module if name is None else name, scripted))
        self.latest = _latest()  # whatever began the call, e.g. a checkpoint, is no operator
        if args and not module._modules and getattr(module, "inplace", False) is True:
            self.note_writer(args[0], type(module).__name__)
        known = identify(module) if name is not None else None
        if known is not None and len(args) == 1:
            self._begin(module, known, name or "", args[0], outer)

    def _after(self, module: nn.Module, args: Any, output: Any) -> None:
        if get_ident() != self.thread or not self.stack or self.stack[-1].module is not module:
            return
        frame = self.stack.pop()
        for tensor in tensors_of(output) if self.unfinished else ():
            self._finish(tensor, _latest())
        self._end(module, output)
        if not isinstance(output, Tensor) or id(module) not in self.names:
            return
        is_bare = not (module._modules or module._parameters or module._buffers)
        if is_bare and len(frame.calls) == len(args) == 1:
            (call,), (x,) = frame.calls, args
            ends = isinstance(x, Tensor) and region_of(x) == call.x and region_of(output) == call.y
            call.only = ends and frame.name != ""
        ordinary = type(output) is Tensor and not unsuited(output)
        if self.inplace and makes_fresh(module) and ordinary:
            caller = self.stack[-1] if self.stack else None
            self.fresh.setdefault(storage_of(output), _Fresh(output, caller))

    def _marked(self, slot: Slot) -> Callable[..., Any]:
        """The function of a slot, wrapped so that its calls are attributed to the slot."""
        function: Any = slot.value

        def call(*args: Any, **kwargs: Any) -> Any:
            if get_ident() != self.thread:
                return function(*args, **kwargs)
            assert slot.known is not None
            caller = self.stack[-1] if self.stack else None
            self._begin(slot, slot.known, slot.name, args[0] if args else None, caller)
            output = function(*args, **kwargs)
            self._end(slot, output)
            return output

        return call

    def _begin(
        self, module: nn.Module | Slot, known: Known, name: str, x: Any, caller: _Frame | None
    ) -> None:
        if not isinstance(x, Tensor) or self.running:
            return
        self.held += storages_of(x)
        fresh = self.fresh.get(storage_of(x))
        hooked = isinstance(module, nn.Module) and has_hooks(module)
        if fresh is not None and (
            fresh.tensor is not x or fresh.caller is not caller or hooked or in_checkpoint()
        ):
            fresh.seen_elsewhere = True
        place, where = Place(name), (region_of(x), _version(x))
        wants_grad = x.requires_grad and torch.is_grad_enabled()
        self.running.append(_Running(module, known, place, _latest(), x, *where, wants_grad, fresh))

    def _end(self, module: nn.Module | Slot, output: Any) -> None:
        if not self.running or self.running[-1].module is not module:
            return
        running = self.running.pop()
        fresh = running.fresh
        if not isinstance(output, Tensor) or type(output) is Deferred:
            return  # what has not been computed will be seen when it is
        nodes = set(range(running.first + 1, _latest() + 1))
        call = self._add(
            running.known,
            running.place,
            running.input,
            output,
            nodes,
            running.wants_grad,
            module=module,
            region=running.region,
            version=running.version,
        )
        if fresh is not None:
            fresh.seen_elsewhere = fresh.seen_elsewhere or fresh.taken is not None
            fresh.taken = call

    def __torch_dispatch__(
        self, operator: Any, types: Any, args: Any = (), kwargs: Any = None
    ) -> Any:
        kwargs = kwargs or {}
        output = operator(*args, **kwargs)
        library, _, name = operator._schema.name.partition("::")
        if library == "prim":  # a question to a fake tensor, for instance for its device
            return output
        node = _latest()
        # Autograd may copy what an in-place operator overwrites, after the node was created.
        written = args[0] if name.endswith("_") and args and isinstance(args[0], Tensor) else None
        # Our gates first take views of the tensor that has both parts.
        has_views = name in ("gate", "gate_out") and self.operators.get(node, "") in VIEWS
        if has_views:
            self.operators[node] = name
        has_node = (
            node != self.latest or has_views or (written is not None and _wants_grad(written))
        )
        if written is not None and has_node:
            self.operators[node] = name
        self.operators.setdefault(node, name)
        self.latest = node
        use = Use(name, self._module, node if has_node else None)
        self._note_uses(operator, args, kwargs, use)
        if self.running:
            return output
        known = _called(operator, args, kwargs)
        if known is None:
            if name == "mul" and len(args) == 2 and all(isinstance(a, Tensor) for a in args):
                self._note_products(*args)
                self._put_together(args, output, node if has_node else None)
            return output
        application = _application()
        if application is not None:
            self._note_application(*application, node)
            return output
        # For in-place operators and with out=, the result is the argument that is written.
        result = output if isinstance(output, Tensor) else None
        if result is None:
            results = [t for t in tensors_of(output) if t.dtype == args[0].dtype]
            targets = [a for a in args[1:2] if isinstance(a, Tensor)]
            result = (results or targets or [args[0]])[0]
        # Our operators run with gradients disabled, inside an autograd.Function; others' don't.
        has_node &= torch.is_grad_enabled() or known.save is not None
        scripted = bool(self.stack and self.stack[-1].scripted)
        function, line = self.called
        line = "" if scripted else line or line_of_model()
        call = self._add(
            known,
            Place(self._module, line),
            args[0],
            result,
            {node} if has_node else set(),
            has_node,
            kind=SCRIPTED if scripted else GATE if name in ("gate", "gate_out") else "",
            function="" if scripted else function,
        )
        call.method = "" if scripted else _method_of_model(call.owner)
        return output

    def note_writer(self, tensor: Any, operator: str) -> None:
        """Record a writer that overwrites a tensor in some mode, though perhaps not in this one,
        such as an in-place dropout.
        """
        storage = storage_of(tensor) if isinstance(tensor, Tensor) else 0
        for call in self.by_output.get(storage, ()):
            if call.overwritten is None:
                call.overwritten = Use(operator, self._module, None)

    def _note_uses(self, operator: Any, args: Any, kwargs: Any, use: Use) -> None:
        if not (self.by_output or self.fresh or self.unfinished):
            return
        written = written_by(operator)
        taking = self.running[-1].fresh if self.running else None
        for argument, value in arguments_of(operator, args, kwargs).items():
            for tensor in tensors_of(value) if isinstance(value, (Tensor, list, tuple)) else ():
                self._finish(tensor, _latest() if use.node is None else use.node - 1)
                storage = storage_of(tensor)
                for call in self.by_output.get(storage, ()):
                    call.y_uses.append(use)
                    if argument in written and call.overwritten is None:
                        call.overwritten = use
                fresh = self.fresh.get(storage)
                if fresh is not None and fresh is not taking:
                    fresh.seen_elsewhere = True

    def _note_application(self, kind: type, forward: FrameType, node: int) -> None:
        """Record someone else's autograd.Function that contains an activation, once per call."""
        frame = id(forward)
        if self.applied[0] == frame and (torch.is_grad_enabled() or self.applied[1] == node):
            return
        self.applied = frame, node
        names, variadic, _, values = inspect.getargvalues(forward)
        arguments = [values.get(name) for name in names]
        arguments += values.get(variadic, ()) if variadic else ()
        context: Any = next((value for value in arguments if isinstance(value, FunctionCtx)), None)
        tensors = tensors_of([value for value in arguments if value is not context])
        if not tensors:
            return
        if context is None:
            wants_grad = any(tensor.requires_grad for tensor in tensors)
        else:  # arguments may be rebound by now, and a subclass may inherit `forward`
            wants_grad, kind = any(context.needs_input_grad), context._forward_cls
        call = self._add(
            Known(kind.__name__),
            Place(self._module, line_of_model(forward.f_back)),
            tensors[0],
            tensors[0],
            {node} if wants_grad else set(),
            wants_grad,
            kind=FUNCTION,
        )
        self._forget_output(call)
        self.unfinished[node] = call

    def _finish(self, tensor: Tensor, last: int) -> None:
        """Record the output of an autograd.Function, and the nodes created in it up to `last`."""
        kind = getattr(type(tensor.grad_fn), "_forward_cls", None) if self.unfinished else None
        if kind is None:
            return
        first = tensor.grad_fn._sequence_nr()  # type: ignore[union-attr]
        later = [number for number in self.unfinished if number >= first]
        call = self.unfinished[min(later)] if later else None
        if call is None or call.known.function != kind.__name__:
            return
        del self.unfinished[min(later)]
        call.nodes = set(range(first, last + 1))
        call.y, call.shape, call.dtype = region_of(tensor), _sizes(tensor), tensor.dtype
        call.elements = _count(tensor)
        self.held += storages_of(tensor)
        self.by_output.setdefault(call.output, []).append(call)

    def _note_products(self, first: Tensor, second: Tensor) -> None:
        """Count a product for each factor that is the whole output of an activation."""
        if first.shape != second.shape or first.dtype != second.dtype:
            return
        regions = region_of(first), region_of(second)
        for y in set(regions) if regions[0] != regions[1] else ():
            for call in self.by_output.get(y[0], ()):
                call.products += call.y == y

    def _put_together(self, factors: Sequence[Tensor], output: Tensor, node: int | None) -> None:
        """Recognise x·σ(x) and x·tanh(softplus(x)) composed by hand."""
        for x, gate in (factors, factors[::-1]):
            chain = [self._part(region_of(gate))]
            if chain[0] is not None and chain[0].known == Known("tanh"):
                chain.append(self._part(chain[0].x))
            parts = [part for part in chain if part is not None]
            functions: tuple[Any, ...] = tuple(
                (part.known.function, part.known.parameters.get("beta")) for part in parts
            )
            function = {
                (("sigmoid", None),): "silu",
                (("tanh", None), ("softplus", 1.0)): "mish",
            }.get(functions, "")
            # The same region, not just the same storage: in a·σ(b), both are often chunks of one
            # tensor.
            if not function or parts[-1].x != region_of(x) or parts[-1].version != _version(x):
                continue
            for part in parts:
                self._forget(part)
            nodes = {node} if node is not None else set()
            self._add(
                Known(function),
                parts[0].place,
                x,
                output,
                nodes.union(*(part.nodes for part in parts)),
                parts[0].wants_grad,
                kind=SCRIPTED if parts[0].kind else BY_HAND,
            )
            return

    def _part(self, region: Region) -> Call | None:
        """The function call whose result is exactly this region and was not overwritten since."""
        calls = [
            call
            for call in self.by_output.get(region[0], ())
            if call.y == region and call.module is None and call.overwritten is None
        ]
        return calls[-1] if calls and calls[-1].kind in ("", SCRIPTED) else None

    # ---- bookkeeping ----

    @property
    def _module(self) -> str:
        return self.stack[-1].name if self.stack else ""

    def _add(
        self,
        known: Known,
        place: Place,
        x: Tensor,
        y: Tensor,
        nodes: set[int],
        wants_grad: bool,
        *,
        module: nn.Module | Slot | None = None,
        kind: str = "",
        function: str = "",
        region: Region | None = None,
        version: int | None = None,
    ) -> Call:
        self.held += storages_of(x) + storages_of(y)
        frame = self.stack[-1] if self.stack else None
        call = Call(
            known=known,
            place=place,
            owner=frame.module if frame else None,
            module=module,
            kind=kind,
            function=function,
            shape=_sizes(y),
            elements=_count(y),
            dtype=y.dtype,
            x=region_of(x) if region is None else region,
            y=region_of(y),
            version=_version(x) if version is None else version,
            nodes=nodes,
            wants_grad=wants_grad,
            unsuited=unsuited(x),
        )
        self.calls.append(call)
        self.by_output.setdefault(call.output, []).append(call)
        if frame is not None:
            frame.calls.append(call)
        return call

    def _forget(self, call: Call) -> None:
        self.calls.remove(call)
        self._forget_output(call)
        for frame in self.stack:
            if call in frame.calls:
                frame.calls.remove(call)

    def _forget_output(self, call: Call) -> None:
        self.by_output[call.output].remove(call)

    def trace(self, given: set[Storage], output: Any) -> Trace:
        """What was observed, once the model has returned."""
        alive = [kept for kept in (reference() for reference in self.kept) if kept is not None]
        outputs = tensors_of(output)
        for tensor in outputs:
            self._finish(tensor, _latest())
        saved = [
            Saved(kept.node, storage._cdata, storage.nbytes(), kept.module, kept.number)
            for kept in alive
            for storage in storages_of(kept.tensor)
        ]
        self._judge({storage_of(tensor) for tensor in outputs}, saved)
        return Trace(
            calls=self.calls,
            saved=[kept for kept in saved if kept.storage not in given and kept.nbytes],
            given=given,
            operators=self.operators,
            kinds=self.kinds,
        )

    def _judge(self, outputs: set[Storage], saved: list[Saved]) -> None:
        """Find the calls whose input nothing else needs, so far as that shows before `release`."""
        keepers: dict[Storage, set[int]] = {}
        for kept in saved:
            keepers.setdefault(kept.storage, set()).add(kept.node)
        for storage, fresh in self.fresh.items():
            call, tensor = fresh.taken, fresh.tensor
            if call is not None:
                whole = tensor.numel() * tensor.element_size() == tensor.untyped_storage().nbytes()
                hooked = bool(tensor._backward_hooks) or tensor.retains_grad
                call.alone = (
                    whole
                    and not (fresh.seen_elsewhere or tensor._is_view() or tensor.is_leaf or hooked)
                    and storage not in outputs
                    and keepers.get(storage, set()) <= call.nodes
                )

    def release(self) -> None:
        """Release everything observed; an input that is still alive then is used elsewhere."""
        taken = [
            (fresh.taken, StorageWeakRef(fresh.tensor.untyped_storage()))
            for fresh in self.fresh.values()
            if fresh.taken is not None
        ]
        self.fresh.clear()
        self.held.clear()
        self.by_output.clear()
        gc.collect(0)
        for call, storage in taken:
            call.alone = call.alone and storage.expired()


class _Functions(TorchFunctionMode):
    """Tells the observer which calls `lean_functional` would see."""

    def __init__(self, observer: _Observer) -> None:
        super().__init__()
        self.observer = observer

    def __torch_function__(
        self, func: Any, types: Any, args: Any = (), kwargs: Mapping[str, Any] | None = None
    ) -> Any:
        kwargs = kwargs or {}
        if kwargs.get("inplace") is True and args:
            self.observer.note_writer(args[0], func.__name__)
        name = convertible(func, args, kwargs)
        if not name or self.observer.called[0] or in_checkpoint():
            return func(*args, **kwargs)
        self.observer.called = name, line_of_model()
        try:
            return func(*args, **kwargs)
        finally:
            self.observer.called = "", ""


# ---- shared with `lean_functional` ----


def on_modules(before: Callable[..., None], after: Callable[..., None]) -> Iterator[Any]:
    """Handles of hooks on all modules; `after` is also called if a module raises."""
    yield torch_module.register_module_forward_pre_hook(before)
    yield torch_module.register_module_forward_hook(after, always_call=True)


def convertible(func: Any, args: Sequence[Any], kwargs: Mapping[str, Any]) -> str:
    """Our name for a torch function that keeps its input and is called in a way that ours can
    replace; empty for other functions and calls.
    """
    known = identify_function(func)
    if known is None or known.function not in _WORTH or known.save is not None or "out" in kwargs:
        return ""
    if len(args) != 1 or not isinstance(args[0], Tensor) or not _wants_grad(args[0]):
        return ""
    if unsuited(args[0]):
        return ""
    activation = ACTIVATIONS[known.function]
    values = [kwargs.get(p.name, p.default) for p in activation.parameters]
    try:
        activation.turn_at(*values)
    except (TypeError, ValueError):  # the output does not determine the gradient
        return ""
    return known.function


_WORTH = frozenset(a.torch_function for a in ACTIVATIONS.values()) - {None, "relu"}
"""Torch's functions that do not already keep their outputs."""


def line_of_model(frame: FrameType | None = None) -> str:
    """The line of the model's code that is running, or that led to this frame."""
    frame = _frame_of_model(frame or sys._getframe(1))
    return f"{frame.f_code.co_filename}:{frame.f_lineno}"


def _frame_of_model(frame: FrameType) -> FrameType:
    while frame.f_back is not None and _is_library(frame):
        frame = frame.f_back
    return frame


def _method_of_model(owner: nn.Module | None) -> str:
    """The name of the owner's method that is running, if a tensor is its only argument."""
    frame = _frame_of_model(sys._getframe(1))
    code = frame.f_code
    method = getattr(type(owner), code.co_name, None)
    if code.co_name == "forward" or getattr(method, "__code__", None) is not code:
        return ""
    takes_one = code.co_argcount == 2 and not code.co_kwonlyargcount and not code.co_flags & 0x0C
    is_its_own = takes_one and frame.f_locals.get(code.co_varnames[0]) is owner
    return code.co_name if is_its_own else ""


def _is_library(frame: FrameType) -> bool:
    # Code made by exec, such as functions with parameters, has only a package name.
    names = frame.f_globals
    return _is_of_library(names.get("__name__") or names.get("__package__") or "")


def _is_of_library(module: str) -> bool:
    return module.partition(".")[0] in ("torch", _PACKAGE)


_PACKAGE = __package__.partition(".")[0]


# ---- facts about operators and modules ----

VIEWS = frozenset(
    (
        *("alias", "as_strided", "chunk", "detach", "expand", "permute", "select", "slice"),
        *("split", "split_with_sizes", "squeeze", "t", "transpose", "unbind", "unsqueeze", "view"),
        "_unsafe_view",
    )
)
"""Operators that only return a different view of a tensor."""

_MAKERS = frozenset(
    (
        *(nn.Conv1d, nn.Conv2d, nn.Conv3d, nn.Linear, nn.LayerNorm, nn.GroupNorm, nn.RMSNorm),
        *(nn.ConvTranspose1d, nn.ConvTranspose2d, nn.ConvTranspose3d),
        *(nn.BatchNorm1d, nn.BatchNorm2d, nn.BatchNorm3d),
    )
)
"""Layers whose output, in every mode, dtype and layout, is a new tensor that they do not keep."""


def makes_fresh(module: nn.Module) -> bool:
    """Whether the module is such a layer, and no hook can get hold of its output."""
    return type(module) in _MAKERS and "forward" not in vars(module) and not has_hooks(module)


def has_hooks(module: nn.Module) -> bool:
    """Whether there are hooks of any kind on its calls or gradients."""
    own = vars(module)
    return any(own[name] for name in own if name.endswith("_hooks") and "ward" in name)


def _has_global_hooks() -> bool:
    kinds = ("forward_pre", "forward", "backward_pre", "backward")
    return any(vars(torch_module)[f"_global_{kind}_hooks"] for kind in kinds)


def _application() -> tuple[type, FrameType] | None:
    """The innermost of others' autograd.Functions that is running, and the frame of its `forward`.
    (`apply` itself has had no frame since torch 2.14.)
    """
    codes = {forward.__code__: kind for kind, forward in _forwards(Function)}
    frame: FrameType | None = sys._getframe(2) if codes else None
    while frame is not None:
        if frame.f_code in codes:
            return codes[frame.f_code], frame
        frame = frame.f_back
    return None


def _forwards(base: type) -> Iterator[tuple[type, FunctionType]]:
    """Others' subclasses that define `forward`, and that function without its decorators."""
    kind: type
    for kind in base.__subclasses__():
        yield from _forwards(kind)
        own = vars(kind).get("forward")
        if isinstance(own, staticmethod) and not _is_of_library(kind.__module__):
            forward = inspect.unwrap(own.__func__)
            if isinstance(forward, FunctionType):
                yield kind, forward


def _latest() -> int:
    """The sequence number of the newest autograd node on this thread."""
    return sequence_number() - 1


def _wants_grad(tensor: Tensor) -> bool:
    return tensor.requires_grad and torch.is_grad_enabled()


def _count(tensor: Tensor) -> int:
    """The number of values held here; for a distributed tensor, those of the local part."""
    parts = parts_of(tensor)
    return parts[0].numel() if parts else tensor.numel()


def _sizes(tensor: Tensor) -> tuple[int, ...]:
    """The tensor's shape; a dimension whose size varies between items is −1."""
    if not tensor.is_nested:
        return tuple(tensor.shape)
    sizes = []
    for dimension in range(tensor.dim()):
        try:
            size = tensor.size(dimension)
        except RuntimeError:
            size = -1
        sizes.append(size if isinstance(size, int) else -1)
    return tuple(sizes)


def _version(tensor: Tensor) -> int:
    """How often the tensor was written to; inference tensors have no counter."""
    return 0 if tensor.is_inference() else tensor._version


_TORCHS = {
    name: name
    for name in (
        *("celu", "elu", "gelu", "hardshrink", "hardsigmoid", "hardswish", "hardtanh"),
        *("leaky_relu", "mish", "relu", "sigmoid", "silu", "softplus", "softshrink", "tanh"),
    )
} | {"log_sigmoid_forward": "logsigmoid", "_prelu_kernel": "prelu", "rrelu_with_noise": "rrelu"}
"""Torch's operators, and the functions that they compute."""

_OURS = {
    name + ending: name
    for name in ACTIVATIONS
    for ending in ("", "_out", "_packed", "_packed_out", "_trained")
}


def _called(operator: Any, args: Sequence[Any], kwargs: Mapping[str, Any]) -> Known | None:
    """The activation that one of torch's or our operators computes, if any."""
    library, _, name = operator._schema.name.partition("::")
    if library == "mishkit" and name in ("gate", "gate_out"):
        a, numbers_of_gate, *_ = split(tuple(args[-NUMBERS:]))
        named = zip((p.name for p in a.parameters), numbers_of_gate, strict=True)
        return Known(a.name, dict(named), save="input")
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
    values = arguments_of(operator, args, kwargs)
    if function == "gelu" and values.get("approximate") == "tanh":
        function = "gelu_tanh"
    if function == "hardtanh" and (values.get("min_val"), values.get("max_val")) == (0, 6):
        function = "relu6"
    if function == "elu" and values.get("scale", 1) != 1:
        function = "selu"
    known = ACTIVATIONS[function].parameters if function in ACTIVATIONS else ()
    parameters = {p.name: float(values.get(p.name, p.default)) for p in known}
    return Known(function, parameters, name.endswith("_"))
