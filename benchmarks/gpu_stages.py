"""The stages of `make gpu`: what is measured, item by item.

A stage is a function that yields items, each with a name and something to run that returns what is
written down. Whatever an item raises is written down, too, and the next one begins.
"""

from __future__ import annotations

import math
import os
import time
from collections.abc import Callable, Iterator
from contextlib import AbstractContextManager, nullcontext
from functools import partial
from statistics import median
from typing import Any

import torch
from gpu_machine import Machine, first_line, seconds_of
from gpu_networks import NETWORKS, Bottleneck, GatedBlock, GELUBlock, Inverted, Network
from torch import Tensor, nn
from torch.utils.checkpoint import (
    CheckpointPolicy,
    checkpoint,
    create_selective_checkpoint_contexts,
)

import mishkit as mk
from mishkit.activation import Activation
from mishkit.backends import triton
from mishkit.functions import ACTIVATIONS

Items = Iterator[tuple[str, Callable[[], Any]]]
DTYPES = {"float32": torch.float32, "bfloat16": torch.bfloat16, "float16": torch.float16}

DRY_FUNCTIONS, DRY_NETWORKS = ("relu", "mish", "aptx"), ("resnet50, Mish", "Llama")
"""What a dry run takes: each kind once."""


def functions(on: Machine) -> tuple[str, ...]:
    """The names of the functions to measure."""
    return DRY_FUNCTIONS if on.is_dry else tuple(ACTIVATIONS)


def networks(on: Machine) -> dict[str, Network]:
    """The networks to train."""
    return {name: NETWORKS[name] for name in (DRY_NETWORKS if on.is_dry else NETWORKS)}


# ---- the machine ---------------------------------------------------------------------------------


def machine(on: Machine) -> Items:
    """What results depend on, and whether Triton compiles here."""
    yield "facts", partial(_facts, on)
    yield "first call", partial(_first_call, on)


def _facts(on: Machine) -> dict[str, Any]:
    try:
        import triton as package

        version = package.__version__
    except ImportError:
        version = None
    more = {"torch": torch.__version__, "triton": version, "mishkit": mk.__version__}
    return {**on.facts(), **more, "cores": os.cpu_count(), "date": time.strftime("%Y-%m-%d")}


def _first_call(on: Machine) -> dict[str, float]:
    """Seconds of the first call, which compiles unless the code is in Triton's cache, and of the
    second.
    """
    a, x = ACTIVATIONS["mish"], torch.randn(1 << 12, device=on.device)
    calls = {
        "forward": partial(triton.forward, a, x),
        "backward": partial(triton.backward, a, x, x),
    }
    seconds = {}
    for name, call in calls.items():
        seconds[f"{name}, first"] = seconds_of(call, on)
        seconds[f"{name}, second"] = seconds_of(call, on)
    return seconds


# ---- accuracy ------------------------------------------------------------------------------------

STRIDE = 1021
"""Every so many float32, by bit pattern: four million."""
DRY_STRIDE = 1_000_003


def accuracy(on: Machine) -> Items:
    """The errors of every function, over all 16-bit inputs and a sample of float32."""
    for dtype in DTYPES:
        for name in functions(on):
            yield f"{name}, {dtype}", partial(errors_of, on, ACTIVATIONS[name], DTYPES[dtype])


def inputs(on: Machine, dtype: torch.dtype) -> Tensor:
    """The finite inputs, by bit pattern."""
    if dtype == torch.float32:
        stride = DRY_STRIDE if on.is_dry else STRIDE
        bits = torch.arange(-(1 << 31), 1 << 31, stride, device=on.device).to(torch.int32)
    else:
        step = 61 if on.is_dry else 1
        bits = torch.arange(-(1 << 15), 1 << 15, step, device=on.device).to(torch.int16)
    x = bits.view(dtype)
    return x[x.isfinite()]


def spacing(exact: Tensor, dtype: torch.dtype) -> Tensor:
    """The distance of neighbours in the dtype, but no finer than at the smallest normal number."""
    info = torch.finfo(dtype)
    exponent = torch.frexp(exact.abs().clamp_min(info.tiny)).exponent - 1
    return torch.ldexp(torch.full_like(exact, info.eps), exponent)


def errors_of(on: Machine, a: Activation, dtype: torch.dtype) -> dict[str, Any]:
    """The largest errors of f in ULP, of the gradient from the input, and of the gradient from the
    output, against the formulas in float64 on the same device.
    """
    x, parameters = inputs(on, dtype), a.defaults
    wide, one = x.double(), torch.ones_like(x)
    y, side = triton.forward_packed(a, x, *parameters)
    f, df = a.f(wide, *parameters), a.df(wide, *parameters)
    info = torch.finfo(dtype)
    # Where f leaves the dtype's exponents, its absolute error is what counts.
    body = (f.abs() >= max(info.tiny, 1.7e-36)) & (f.abs() <= info.max)
    body &= f.abs() >= wide.abs() * (math.exp(-87) if dtype == torch.float32 else 0)
    plainly = triton.forward(a, x, *parameters).double()
    found = {
        "f, ULP": (plainly - f).abs()[body] / spacing(f, dtype)[body],
        "df": triton.backward(a, one, x, *parameters).double() - df,
        "df from the output": triton.backward_packed(a, one, y, side, *parameters).double() - df,
    }
    nan = torch.full((256,), math.nan, device=on.device, dtype=dtype)
    result: dict[str, Any] = {name: float(error.abs().max()) for name, error in found.items()}
    return result | {
        "count": x.numel(),
        "NaN stays": bool(triton.forward(a, nan, *parameters).isnan().all()),
    }


# ---- published tables ----------------------------------------------------------------------------


def tables(on: Machine) -> Items:
    """mish-cuda's table, and the errors and times of every function: see
    `mishkit.lab.bench.published_gpu`.
    """
    from mishkit.lab.bench import gpu_device, published_gpu
    from mishkit.lab.bench.results import Results
    from mishkit.lab.common import gpu_timing

    if on.is_dry:
        gpu_device.DEVICE, gpu_timing.FLUSH = on.device, 1 << 10
        published_gpu.SHAPE, published_gpu.SIZE = (2, 2, 8, 8), 1 << 10
        published_gpu.RUNS, published_gpu.WARM_RUNS = 5, 1
    published_gpu.compiled = on.compile
    stopwatch = gpu_timing.Stopwatch(on.device, on.facts()["cache"], on.event)

    def mish_cuda(dtype: str) -> Any:
        results = Results()
        published_gpu.time_mish_cuda(results, dtype, stopwatch, False)
        return {"lines": list(published_gpu.mish_cuda_lines(results, dtype))} | _rows(results)

    def errors(name: str, dtype: str) -> Any:
        results = Results()
        published_gpu.measure_errors(results, name, dtype, stopwatch)
        return _rows(results)

    for dtype in DTYPES:
        yield f"mish-cuda, {dtype}", partial(mish_cuda, dtype)
    for dtype in ("float32", "bfloat16"):
        for name in functions(on):
            yield f"errors, {name}, {dtype}", partial(errors, name, dtype)


def _rows(results: Any) -> dict[str, Any]:
    """Timings in microseconds and errors, by case and contender."""
    rows = []
    for key, timing in results.timings.items():
        error = results.errors.get(key)
        times = {"min": timing.min / 1e3, "median": timing.median / 1e3, "late": timing.is_late}
        rows.append({"case": key.case, "contender": key.contender, **times, "error": error})
    return {"rows": rows, "missing": results.missing}


# ---- lean ----------------------------------------------------------------------------------------

BLOCKS = Bottleneck, Inverted, GELUBlock, GatedBlock
TORCH, RECOMPUTE, LEAN = "torch", "mk.recompute()", "mk.lean"
SELECTIVE, COMPILED = "selective checkpoint", "torch.compile"
SAMPLES, SECONDS = 20, 4.0
"""A way is timed until it has so many samples, or for so long."""


def _is_saved(name: str) -> bool:
    kinds = ("convolution", "addmm", "mm", "bmm", "_scaled_dot_product")
    return name.removeprefix("aten::").startswith(kinds)


def _policy(context: Any, operator: Any, *_: Any, **__: Any) -> CheckpointPolicy:
    saves = _is_saved(operator._schema.name) and "backward" not in operator._schema.name
    return CheckpointPolicy.MUST_SAVE if saves else CheckpointPolicy.PREFER_RECOMPUTE


def _selectively(model: nn.Module) -> nn.Module:
    """A checkpoint around each block that saves convolutions, matrix products and attention."""
    contexts = partial(create_selective_checkpoint_contexts, _policy)
    for block in [module for module in model.modules() if isinstance(module, BLOCKS)]:
        block.forward = partial(  # type: ignore[method-assign]
            checkpoint, block.forward, use_reentrant=False, context_fn=contexts
        )
    return model


def _changed(on: Machine, way: str, model: nn.Module, given: Tensor) -> nn.Module:
    if way == LEAN:
        with _precision(on):
            mk.lean(model, given[:2])
    elif way == SELECTIVE:
        _selectively(model)
    elif way == COMPILED:
        return on.compile(model)  # type: ignore[no-any-return]
    return model


def _precision(on: Machine, whole: bool = False) -> AbstractContextManager[Any]:
    return torch.autocast(on.device, torch.bfloat16, enabled=not whole)


def loss_of(model: nn.Module, given: Tensor) -> Tensor:
    """The mean square of the output."""
    return model(given).float().square().mean()


class Step:
    """A training step without the optimizer, of one network in one way."""

    def __init__(self, on: Machine, network: Network, way: str, batch: int) -> None:
        self.on, self.way = on, way
        self.model, self.given = network.made(on.device, batch, on.is_dry)
        self.model = _changed(on, way, self.model, self.given)

    def __call__(self) -> None:
        """Run it."""
        self.model.zero_grad(set_to_none=True)
        self.forward().backward()

    def forward(self) -> Tensor:
        """The loss."""
        within = mk.recompute() if self.way == RECOMPUTE else nullcontext()
        with _precision(self.on), within:
            return loss_of(self.model, self.given)

    def memory(self) -> dict[str, int]:
        """Bytes that a step allocates: those alive between its passes, and the most at a time."""
        on = self.on
        self.model.zero_grad(set_to_none=True)
        on.free()
        on.wait()
        before = on.allocated()
        on.start_peak()
        loss = self.forward()
        on.wait()
        alive = on.allocated() - before
        loss.backward()
        on.wait()
        return {"alive": alive, "peak": on.peak() - before}


def lean(on: Machine, ways: tuple[str, ...] = (LEAN, RECOMPUTE, SELECTIVE)) -> Items:
    """Whole networks, trained in several ways: memory, and time beside torch's."""
    yield "formulas", partial(formulas, on)
    for name, network in networks(on).items():
        yield f"{name}, the same gradient", partial(same_gradient, on, network)
    yield from _by_network(on, ways)


def compiling(on: Machine) -> Items:
    """Compile the networks, several at once, so that the code is in the compiler's cache."""
    for name, network in networks(on).items():
        yield name, partial(_compile, on, network)


def _compile(on: Machine, network: Network) -> float:
    batch = 2 if on.is_dry else network.batch
    return seconds_of(Step(on, network, COMPILED, batch), on)


def compiled(on: Machine) -> Items:
    """The networks trained by torch.compile."""
    yield from _by_network(on, (COMPILED,))


def _by_network(on: Machine, ways: tuple[str, ...]) -> Items:
    for way in ways:
        for name, network in networks(on).items():
            yield f"{name}, {way}", partial(beside_torch, on, network, way)


def beside_torch(on: Machine, network: Network, way: str) -> dict[str, Any]:
    """One way and torch's own, in turns; with half the batch if memory does not suffice."""
    batch = 2 if on.is_dry else network.batch
    while True:
        try:
            return _beside_torch(on, network, way, batch)
        except torch.OutOfMemoryError:
            if batch == 1:
                raise
        on.free()  # outside of the handler, which holds the tensors of the attempt
        batch //= 2


def _beside_torch(on: Machine, network: Network, way: str, batch: int) -> dict[str, Any]:
    if way == COMPILED:
        torch.compiler.reset()
    steps = {TORCH: Step(on, network, TORCH, batch), way: Step(on, network, way, batch)}
    first = {name: seconds_of(step, on) for name, step in steps.items()}
    for step in steps.values():
        step()
    memory = {}
    for name, step in steps.items():
        memory[name] = step.memory()
        step.model.zero_grad(set_to_none=True)
    samples: dict[str, list[float]] = {name: [] for name in steps}
    end = time.monotonic() + (0.1 if on.is_dry else SECONDS)
    while len(samples[way]) < 3 or (len(samples[way]) < SAMPLES and time.monotonic() < end):
        for name, step in steps.items():
            start, stop = on.event(), on.event()
            start.record()
            step()
            stop.record()
            stop.synchronize()
            samples[name].append(start.elapsed_time(stop))
    times = {n: {"min": min(s), "median": median(s)} for n, s in samples.items()}
    return {"batch": batch, "memory": memory, "milliseconds": times, "first step": first}


def same_gradient(on: Machine, network: Network) -> dict[str, Any]:
    """How far gradients are apart in float32: within `mk.recompute` from torch's, and torch's from
    those of a second run, which is not 0 where a kernel adds in no fixed order.
    """
    model, given = network.made(on.device, 2, on.is_dry)

    def gradients(within: AbstractContextManager[Any]) -> tuple[list[Tensor], int]:
        torch.manual_seed(1)
        model.zero_grad(set_to_none=True)
        exclude = [*model.parameters(), *model.buffers(), given]
        with mk.KeptBytes(exclude) as kept, within:
            loss = loss_of(model, given)
        loss.backward()
        return [p.grad for p in model.parameters() if p.grad is not None], kept.total

    with torch.backends.cudnn.flags(deterministic=True, allow_tf32=True):
        first, whole = gradients(nullcontext())
        again, _ = gradients(nullcontext())
        ours, part = gradients(mk.recompute())
    return {
        "same bits": all(map(torch.equal, first, ours)),
        "difference": _farthest(first, ours),
        "difference of torch": _farthest(first, again),
        "kept": {TORCH: whole, RECOMPUTE: part},
    }


def _farthest(some: list[Tensor], others: list[Tensor]) -> float:
    pairs = zip(some, others, strict=True)
    return max(float((a - b).abs().max()) for a, b in pairs)


def formulas(on: Machine) -> dict[str, Any]:
    """Which formulas of `mk.recompute` give the bits of torch's kernels on this device. Where one
    does not, what it could make again is kept.
    """
    from mishkit.recompute import recipes

    kinds = {"batch norm": "_again_batch", "frozen batch norm": "_again_frozen_batch"}
    kinds |= {"group norm": "_again_group", "layer norm": "_again_layer"}
    kinds |= {"dropout": "_again_dropout", "batch norm of cuDNN": "_again_cudnn_batch"}
    kinds |= {"RMS norm": "_again_rms"}
    answers: dict[str, Any] = {}
    for kind, name in kinds.items():
        for dtype in (torch.float32, torch.bfloat16, torch.float16):
            for weights in {dtype, torch.float32}:
                key = f"{kind}, {_short(dtype)}, weights {_short(weights)}"
                try:
                    again = getattr(recipes, name)
                    answers[key] = recipes._rounds_alike(again, dtype, weights, on.device)
                except Exception as error:  # each kernel has its own reasons
                    answers[key] = first_line(error)
    return answers


def _short(dtype: torch.dtype) -> str:
    return str(dtype).removeprefix("torch.")


STAGES: dict[str, Callable[[Machine], Items]] = {
    "machine": machine,
    "accuracy": accuracy,
    "lean": lean,
    "tables": tables,
    "compiling": compiling,
    "compiled": compiled,
}
"""All stages but the tests, which pytest runs: see `gpu_tests`."""
