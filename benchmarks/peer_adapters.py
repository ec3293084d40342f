"""Everything that computes mishkit's functions on a CPU, behind one small interface.

An adapter makes calls for one piece of work: a function, a dtype, a pass and a size. It raises
`Lacks` if its package does not offer that. Results into existing memory all go into the same
buffer, and inputs are shared without copies, so that no peer owns warmer memory than another. A
backward pass is (grad, input) -> grad_input in every peer.
"""

from __future__ import annotations

import ctypes
import importlib
import importlib.metadata
import importlib.util
import math
import sys
import tempfile
import warnings
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from functools import cached_property, lru_cache, partial
from pathlib import Path
from typing import Any, ClassVar, NamedTuple

import torch
from torch import Tensor

import mishkit as mk
from mishkit.functions import ACTIVATIONS
from mishkit.lab.bench.cases import PEERS, normal
from mishkit.lab.common.timing import Call

FORWARD, BACKWARD = "forward", "backward"
FRESH, EXISTING = "fresh", "existing"
OURS, OURS_FROM_OUTPUT = "mishkit", "mishkit, from output"
FLOORS = ("torch ReLU", "copy")
"""They compute less, and show what the memory costs."""
FUNCTIONS = (
    "mish", "silu", "gelu", "gelu_tanh", "hardswish", "softplus", "relu", "h_mish",
)  # fmt: skip
"""Ours that at least one peer has."""
ONE_EXPONENTIAL = "1 exp"
NEAR, JUMP = 1e-6, 1e-2
"""A derivative jumps where it changes by more than JUMP within NEAR."""


class Lacks(Exception):
    """The peer does not offer this, and why."""


@dataclass(frozen=True)
class Work:
    """What to compute, and the memory for it."""

    function: str
    direction: str
    """forward or backward"""
    x: Tensor
    grad: Tensor
    out: Tensor
    """The existing memory."""
    threads: int

    @staticmethod
    def of(function: str, dtype: torch.dtype, direction: str, size: int, threads: int) -> Work:
        """Inputs N(0, 2), the same for everyone."""
        x, grad = (normal(size, dtype, seed) for seed in (0, 1))
        return Work(function, direction, x, grad, _buffer(size, dtype), threads)

    @property
    def is_backward(self) -> bool:
        return self.direction == BACKWARD

    @property
    def inputs(self) -> tuple[Tensor, ...]:
        return (self.grad, self.x) if self.is_backward else (self.x,)

    def exact(self, part: slice) -> Tensor:
        """The result in float64."""
        a = ACTIVATIONS[self.function]
        x = self.x[part].double()
        if not self.is_backward:
            return a.f(x, *a.defaults)
        left, slope, right = (a.df(x + step, *a.defaults) for step in (-NEAR, 0.0, NEAR))
        # Where the derivative jumps, conventions differ. NaN accepts any result.
        slope = slope.where((right - left).abs() < JUMP, math.nan)
        return self.grad[part].double() * slope


@lru_cache(maxsize=1)
def _buffer(size: int, dtype: torch.dtype) -> Tensor:
    return torch.zeros(size, dtype=dtype)


class Made(NamedTuple):
    """A call, and its result as a tensor."""

    call: Call
    tensor: Callable[[], Tensor]


Calls = Iterator[tuple[str, Made]]
"""By memory: fresh or existing."""


class Adapter:
    """A peer."""

    package = "torch"
    """What must be installed, by its name on PyPI."""
    module = "torch"

    def __init__(self, name: str) -> None:
        self.name = name

    @property
    def version(self) -> str:
        return importlib.metadata.version(self.package)

    def load(self) -> None:
        """Raises ImportError or OSError if the package is absent."""
        importlib.import_module(self.module)

    def calls(self, work: Work) -> Calls:
        """The calls that it offers; raises Lacks if there are none."""
        raise NotImplementedError


def _made(run: Callable[[], Any], convert: Callable[[Any], Tensor] = lambda result: result) -> Made:
    return Made(Call(run), lambda: convert(run()))


def _into(work: Work, run: Callable[[], Any]) -> Made:
    def tensor() -> Tensor:
        work.out.fill_(math.nan)  # shows what is not written
        run()
        return work.out

    return Made(Call(run), tensor)


def _numpy(*tensors: Tensor) -> list[Any]:
    if tensors[0].dtype == torch.bfloat16:
        raise Lacks("no bfloat16")
    return [tensor.numpy() for tensor in tensors]


# ---- torch and what is built on it ----


class Mishkit(Adapter):
    """Ours: the public function, and the operator of the backward pass."""

    package = module = "mishkit"

    @property
    def version(self) -> str:
        return mk.__version__

    def calls(self, work: Work) -> Calls:
        a = ACTIVATIONS[work.function]
        if work.is_backward:
            operator = getattr(torch.ops.mishkit, f"{a.name}_backward").default
            yield FRESH, _made(partial(operator, *work.inputs, *a.defaults))
            return
        function = mk.functional.FUNCTIONS[a.name]
        yield FRESH, _made(partial(function, work.x))
        yield EXISTING, _into(work, partial(function, work.x, out=work.out))


class FromOutput(Mishkit):
    """Ours, as `save="output"` does it."""

    def calls(self, work: Work) -> Calls:
        a = ACTIVATIONS[work.function]
        if not work.is_backward:
            raise Lacks("the forward pass is that of mishkit")
        y, side = getattr(torch.ops.mishkit, f"{a.name}_packed").default(work.x, *a.defaults)
        operator = getattr(torch.ops.mishkit, f"{a.name}_backward_packed").default
        yield FRESH, _made(partial(operator, work.grad, y, side, *a.defaults))


_BACKWARD_OUT: dict[str, Callable[[Work, Tensor], Any]] = {
    "silu": lambda w, y: partial(
        torch.ops.aten.silu_backward.grad_input, w.grad, w.x, grad_input=w.out
    ),
    "gelu": lambda w, y: partial(
        torch.ops.aten.gelu_backward.grad_input, w.grad, w.x, grad_input=w.out
    ),
    "gelu_tanh": lambda w, y: partial(
        torch.ops.aten.gelu_backward.grad_input,
        w.grad,
        w.x,
        approximate="tanh",
        grad_input=w.out,
    ),
    "softplus": lambda w, y: partial(
        torch.ops.aten.softplus_backward.grad_input, w.grad, w.x, 1.0, 20.0, grad_input=w.out
    ),
    "relu": lambda w, y: partial(
        torch.ops.aten.threshold_backward.grad_input, w.grad, y, 0, grad_input=w.out
    ),
}
"""Torch has no such form for the others."""


class Torch(Adapter):
    """torch's own function, eager."""

    def calls(self, work: Work) -> Calls:
        return self.eager(work, work.function)

    def eager(self, work: Work, function: str) -> Calls:
        peer = PEERS.get(function)
        if peer is None:
            raise Lacks("no such function")
        if not work.is_backward:
            yield FRESH, _made(partial(peer.forward, work.x))
            if peer.out is not None:
                yield EXISTING, _into(work, partial(peer.out, work.x, out=work.out))
            return
        y = peer.forward(work.x)
        yield FRESH, _made(partial(peer.backward, *work.inputs, y))
        if function in _BACKWARD_OUT:
            yield EXISTING, _into(work, _BACKWARD_OUT[function](work, y))


class ReLU(Torch):
    """The floor: torch's ReLU in place of the function."""

    def calls(self, work: Work) -> Calls:
        if work.function == "relu":
            raise Lacks("torch's ReLU is a peer here")
        return self.eager(work, "relu")


class Copy(Adapter):
    """The floor: a copy from memory to memory; of two inputs, their sum."""

    def calls(self, work: Work) -> Calls:
        if work.is_backward:
            yield FRESH, _made(partial(torch.mul, *work.inputs))
            yield EXISTING, _into(work, partial(torch.mul, *work.inputs, out=work.out))
        else:
            yield FRESH, _made(work.x.clone)
            yield EXISTING, _into(work, partial(work.out.copy_, work.x))


def mish_of_one_exponential(x: Tensor) -> Tensor:
    """x·n/(n + 2) with n = eˣ(eˣ + 2)."""
    e = torch.exp(x.clamp_max(20))
    n = e * (e + 2)
    return x * (n / (n + 2))


class Compiled(Adapter):
    """torch.compile, of torch's function or of the formula with one exponential.

    The size is left open (`dynamic=True`), since compiling for each size would take longer than
    the timing. Gradients are those that AOTAutograd derives.
    """

    def __init__(self, name: str, is_one_exponential: bool = False) -> None:
        super().__init__(name)
        self.is_one_exponential = is_one_exponential
        self._compiled: dict[tuple[str, str, str], Callable[..., Tensor]] = {}

    def calls(self, work: Work) -> Calls:
        # Compiling takes seconds, and the two differ only in page faults.
        for memory in (FRESH, EXISTING) if work.function == "mish" else (FRESH,):
            compiled = self._function(work, memory)
            if memory == FRESH:
                yield memory, _made(partial(compiled, *work.inputs))
            else:
                yield memory, _into(work, partial(compiled, work.out, *work.inputs))

    def _function(self, work: Work, memory: str) -> Callable[..., Tensor]:
        if self.is_one_exponential:
            if work.function != "mish":
                raise Lacks("only mish has another formula here")
            f: Any = mish_of_one_exponential
        elif work.function in PEERS:
            f = PEERS[work.function].forward
        else:
            raise Lacks("no such function")
        key = work.function, work.direction, memory
        if key not in self._compiled:

            def backward(grad: Tensor, x: Tensor) -> Tensor:
                return torch.func.vjp(f, x)[1](grad)[0]

            g = backward if work.is_backward else f

            def into(out: Tensor, *inputs: Tensor) -> Tensor:
                return out.copy_(g(*inputs))

            torch._dynamo.config.cache_size_limit = 64
            self._compiled[key] = torch.compile(
                g if memory == FRESH else into, dynamic=True, fullgraph=True
            )
        return self._compiled[key]


class Timm(Adapter):
    """timm's memory-efficient versions: scripted forward and backward."""

    package = module = "timm"
    _NAMES: ClassVar[dict[Any, Any]] = {
        "mish": "mish",
        "silu": "swish",
        "hardswish": "hard_swish",
        "h_mish": "hard_mish",
    }

    def load(self) -> None:
        from mishkit.lab.common.models import mend_torchvision

        self._mended = mend_torchvision()
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")  # torch has deprecated its JIT
            self._me = importlib.import_module("timm.layers.activations_me")

    def calls(self, work: Work) -> Calls:
        name = self._NAMES.get(work.function)
        if name is None:
            raise Lacks("no such function")
        if work.is_backward:
            yield FRESH, _made(partial(getattr(self._me, f"{name}_bwd"), work.x, work.grad))
        else:
            yield FRESH, _made(partial(getattr(self._me, f"{name}_fwd"), work.x))


# ---- runtimes ----


class OnnxRuntime(Adapter):
    """One node of the standard operator; x·sigmoid(x) for silu, as exporters write it."""

    package = module = "onnxruntime"
    _NODES: ClassVar[dict[str, tuple[tuple[str, tuple[str, ...], dict[str, Any]], ...]]] = {
        "mish": (("Mish", ("x",), {}),),
        "silu": (("Sigmoid", ("x",), {}), ("Mul", ("x", "t0"), {})),
        "gelu": (("Gelu", ("x",), {}),),
        "gelu_tanh": (("Gelu", ("x",), {"approximate": "tanh"}),),
        "hardswish": (("HardSwish", ("x",), {}),),
        "softplus": (("Softplus", ("x",), {}),),
        "relu": (("Relu", ("x",), {}),),
    }

    def load(self) -> None:
        super().load()
        importlib.import_module("onnx")

    def calls(self, work: Work) -> Calls:
        import numpy as np

        if work.is_backward:
            raise Lacks("inference only")
        if work.function not in self._NODES:
            raise Lacks("no such operator")
        session = self._session(work.function, work.x.dtype, work.threads)
        if work.x.dtype == torch.float32:
            (x,) = _numpy(work.x)
            yield (
                FRESH,
                _made(
                    partial(session.run, None, {"x": x}), lambda result: torch.from_numpy(result[0])
                ),
            )
        binding = session.io_binding()
        kind = np.float32 if work.x.dtype == torch.float32 else self._bfloat16()
        shape = tuple(work.x.shape)
        binding.bind_input("x", "cpu", 0, kind, shape, work.x.data_ptr())
        binding.bind_output("y", "cpu", 0, kind, shape, work.out.data_ptr())
        yield EXISTING, _into(work, partial(session.run_with_iobinding, binding))

    @staticmethod
    def _bfloat16() -> int:
        from onnx import TensorProto

        return TensorProto.BFLOAT16

    @lru_cache(maxsize=32)  # noqa: B019  (adapters live as long as the process)
    def _session(self, function: str, dtype: torch.dtype, threads: int) -> Any:
        import onnxruntime
        from onnx import TensorProto, helper

        nodes = self._NODES[function]
        operators = [
            helper.make_node(kind, inputs, ["y" if i == len(nodes) - 1 else f"t{i}"], **attributes)
            for i, (kind, inputs, attributes) in enumerate(nodes)
        ]
        kind = TensorProto.FLOAT if dtype == torch.float32 else TensorProto.BFLOAT16
        ends = [helper.make_tensor_value_info(name, kind, ["n"]) for name in ("x", "y")]
        graph = helper.make_graph(operators, function, ends[:1], ends[1:])
        opsets = [helper.make_opsetid("", 22)]
        model = helper.make_model(graph, opset_imports=opsets, ir_version=10)
        options = onnxruntime.SessionOptions()
        options.intra_op_num_threads, options.log_severity_level = threads, 4
        providers = ["CPUExecutionProvider"]
        try:
            return onnxruntime.InferenceSession(model.SerializeToString(), options, providers)
        except Exception as error:
            if dtype != torch.float32:
                raise Lacks("no bfloat16 kernel") from error
            raise


class OpenVINO(Adapter):
    """A model of one operator on the CPU plugin."""

    package = module = "openvino"

    def calls(self, work: Work) -> Calls:
        import openvino as ov

        if work.is_backward:
            raise Lacks("inference only")
        kind = {torch.float32: ov.Type.f32, torch.bfloat16: ov.Type.bf16}[work.x.dtype]
        request = self._request(work, kind)
        shape = ov.Shape(list(work.x.shape))

        def shared(tensor: Tensor) -> Any:
            if kind == ov.Type.f32:
                return ov.Tensor(tensor.numpy(), shared_memory=True)
            return ov.Tensor(tensor.view(torch.int16).numpy(), shape, kind)

        request.set_input_tensor(shared(work.x))
        target = shared(work.out)

        def existing() -> None:
            request.set_output_tensor(target)
            request.infer()

        def fresh() -> Any:
            output = ov.Tensor(kind, shape)
            request.set_output_tensor(output)
            request.infer()
            return output

        def convert(output: Any) -> Tensor:
            if kind == ov.Type.f32:
                return torch.from_numpy(output.data.copy())
            row = ctypes.c_int16 * work.x.numel()
            data = row.from_address(torch.from_numpy(output.data.view("int16")).data_ptr())
            return torch.frombuffer(data, dtype=torch.bfloat16).clone()

        yield FRESH, _made(fresh, convert)
        yield EXISTING, _into(work, existing)

    def _request(self, work: Work, kind: Any) -> Any:
        import openvino as ov
        from openvino import opset13 as ops

        operators: dict[str, Callable[[Any], Any]] = {
            "mish": ops.mish,
            # Its swish wants a float32 beta. It turns this product into a swish by itself.
            "silu": lambda x: ops.multiply(x, ops.sigmoid(x)),
            "gelu": lambda x: ops.gelu(x, "ERF"),
            "gelu_tanh": lambda x: ops.gelu(x, "TANH"),
            "hardswish": ops.hswish,
            "softplus": ops.softplus,
            "relu": ops.relu,
        }
        if work.function not in operators:
            raise Lacks("no such operator")
        x = ops.parameter(list(work.x.shape), kind, name="x")
        model = ov.Model([operators[work.function](x)], [x], work.function)
        options = {
            "INFERENCE_NUM_THREADS": work.threads,
            "NUM_STREAMS": 1,
            "INFERENCE_PRECISION_HINT": kind,
        }
        return ov.Core().compile_model(model, "CPU", options).create_infer_request()


class OneDNN(Adapter):
    """oneDNN's primitives through its C interface; the library that one of its packages brings."""

    package = "onednn-cpu-gomp"
    _FORWARD_TRAINING, _CPU, _IN_ORDER, _TAG = 64, 1, 1, 2
    _TYPES: ClassVar[dict[Any, Any]] = {torch.bfloat16: 2, torch.float32: 3}
    _SRC, _DST, _DIFF_SRC, _DIFF_DST = 1, 17, 129, 145
    # Names in dnnl_alg_kind_t, from dnnl_eltwise_relu on, in order.
    _KINDS = (
        "relu", "tanh", "elu", "square", "abs", "sqrt", "linear", "softplus", "hardsigmoid",
        "logistic", "exp", "gelu_tanh", "silu", "log", "clip", "clip_v2", "pow", "gelu", "round",
        "mish", "hardswish",
    )  # fmt: skip
    _FIRST_KIND = 0x20
    _CONSTANTS: ClassVar[dict[Any, Any]] = {
        "silu": (1.0, 0.0),
        "softplus": (1.0, 0.0),
        "hardswish": (1 / 6, 0.5),
    }

    def load(self) -> None:
        importlib.metadata.version(self.package)
        libraries = sorted(Path(sys.prefix, "lib").glob("libdnnl.so.*"))
        if not libraries:
            raise ImportError("libdnnl.so is not in the environment")
        # torch has loaded its OpenMP by now, which this library then shares.
        self._library = ctypes.CDLL(str(libraries[0]))

    def _call(self, name: str, *arguments: Any) -> None:
        status = getattr(self._library, name)(*arguments)
        if status:
            word = {1: "out of memory", 2: "invalid arguments", 3: "unimplemented"}.get(status)
            raise Lacks(f"{name}: {word or status}")

    @cached_property
    def _engine(self) -> ctypes.c_void_p:
        return self._new("dnnl_engine_create", ctypes.c_int(self._CPU), ctypes.c_size_t(0))

    @cached_property
    def _stream(self) -> ctypes.c_void_p:
        return self._new("dnnl_stream_create", self._engine, ctypes.c_uint(self._IN_ORDER))

    def _new(self, name: str, *arguments: Any) -> ctypes.c_void_p:
        handle = ctypes.c_void_p()
        self._call(name, ctypes.byref(handle), *arguments)
        return handle

    def calls(self, work: Work) -> Calls:
        if work.function not in self._KINDS:
            raise Lacks("no such primitive")
        kind = ctypes.c_int(self._FIRST_KIND + self._KINDS.index(work.function))
        constants = [ctypes.c_float(c) for c in self._CONSTANTS.get(work.function, (0.0, 0.0))]
        dims = (ctypes.c_int64 * 1)(work.x.numel())
        layout = self._new(
            "dnnl_memory_desc_create_with_tag", ctypes.c_int(1), dims,
            ctypes.c_int(self._TYPES[work.x.dtype]), ctypes.c_int(self._TAG),
        )  # fmt: skip
        primitive = self._new(
            "dnnl_eltwise_forward_primitive_desc_create", self._engine,
            ctypes.c_int(self._FORWARD_TRAINING), kind, layout, layout, *constants, None,
        )  # fmt: skip
        names = [self._SRC, self._DST]
        tensors = [work.x, work.out]
        if work.is_backward:
            primitive = self._new(
                "dnnl_eltwise_backward_primitive_desc_create", self._engine, kind, layout, layout,
                layout, *constants, primitive, None,
            )  # fmt: skip
            names = [self._SRC, self._DIFF_DST, self._DIFF_SRC]
            tensors = [work.x, work.grad, work.out]
        self._implementation(primitive)
        run = self._new("dnnl_primitive_create", primitive)
        memories = [
            self._new("dnnl_memory_create", layout, self._engine, ctypes.c_void_p(t.data_ptr()))
            for t in tensors
        ]

        class Argument(ctypes.Structure):
            _fields_ = (("name", ctypes.c_int), ("memory", ctypes.c_void_p))

        arguments = (Argument * len(names))(
            *(Argument(name, memory.value) for name, memory in zip(names, memories, strict=True))
        )
        count = ctypes.c_int(len(names))
        execute = self._library.dnnl_primitive_execute
        wait, handle = self._library.dnnl_stream_wait, self._library.dnnl_memory_set_data_handle
        stream, result = self._stream, memories[-1]

        def existing() -> None:
            handle(result, ctypes.c_void_p(work.out.data_ptr()))
            execute(run, stream, count, arguments)
            wait(stream)

        def fresh() -> Tensor:
            output = torch.empty_like(work.x)
            handle(result, ctypes.c_void_p(output.data_ptr()))
            execute(run, stream, count, arguments)
            wait(stream)
            return output

        yield FRESH, _made(fresh)
        yield EXISTING, _into(work, existing)

    def _implementation(self, primitive: ctypes.c_void_p) -> None:
        """Refuse oneDNN's reference code, which is not meant to be fast."""
        text = ctypes.c_char_p()
        query = ctypes.c_int(8)  # dnnl_query_impl_info_str
        self._call(
            "dnnl_primitive_desc_query", primitive, query, ctypes.c_int(0), ctypes.byref(text)
        )
        if text.value and text.value.startswith(b"ref"):
            raise Lacks(f"reference code only ({text.value.decode()})")


class Jax(Adapter):
    """jax.jit; the result into existing memory goes into a donated buffer."""

    package = module = "jax"

    def __init__(self, name: str, is_one_exponential: bool = False) -> None:
        super().__init__(name)
        self.is_one_exponential = is_one_exponential

    def calls(self, work: Work) -> Calls:
        import jax

        f = self._function(work.function)

        def backward(grad: Any, x: Any) -> Any:
            return jax.vjp(f, x)[1](grad)[0]

        g = backward if work.is_backward else f
        inputs = [jax.dlpack.from_dlpack(tensor) for tensor in work.inputs]
        fresh = jax.jit(g)
        overwriting = jax.jit(lambda out, *inputs: g(*inputs), donate_argnums=0, keep_unused=True)
        buffer = [jax.numpy.zeros_like(inputs[0])]

        def existing() -> Any:
            buffer[0] = overwriting(buffer[0], *inputs)
            return buffer[0].block_until_ready()

        yield FRESH, _made(lambda: fresh(*inputs).block_until_ready(), torch.from_dlpack)
        address = buffer[0].unsafe_buffer_pointer()
        existing()
        if buffer[0].unsafe_buffer_pointer() == address:
            yield EXISTING, _made(existing, lambda result: torch.from_dlpack(result).clone())

    def _function(self, name: str) -> Any:
        import jax

        if self.is_one_exponential:
            if name != "mish":
                raise Lacks("only mish has another formula here")

            def mish(x: Any) -> Any:
                e = jax.numpy.exp(jax.numpy.minimum(x, 20))
                n = e * (e + 2)
                return x * (n / (n + 2))

            return mish
        functions: dict[str, Any] = {
            "mish": jax.nn.mish,
            "silu": jax.nn.silu,
            "gelu": partial(jax.nn.gelu, approximate=False),
            "gelu_tanh": partial(jax.nn.gelu, approximate=True),
            "hardswish": jax.nn.hard_swish,
            "softplus": jax.nn.softplus,
            "relu": jax.nn.relu,
        }
        if name not in functions:
            raise Lacks("no such function")
        return functions[name]


class Numba(Adapter):
    """A loop compiled by Numba, over all threads; with one exponential, as one would write it."""

    package = module = "numba"

    def calls(self, work: Work) -> Calls:
        import numba
        import numpy as np

        inputs = _numpy(*work.inputs)
        (out,) = _numpy(work.out)
        loop = self._loop(work.function, work.direction)
        numba.set_num_threads(work.threads)

        def fresh() -> Any:
            output = np.empty_like(inputs[0])
            loop(*inputs, output)
            return output

        yield FRESH, _made(fresh, torch.from_numpy)
        yield EXISTING, _into(work, partial(loop, *inputs, out))

    @lru_cache(maxsize=8)  # noqa: B019  (adapters live as long as the process)
    def _loop(self, function: str, direction: str) -> Any:
        import numba
        import numpy as np

        one, two, four, most = (np.float32(c) for c in (1, 2, 4, 20))

        def mish(x: Any) -> Any:
            e = math.exp(min(x, most))
            n = e * (e + two)
            return x * (n / (n + two))

        def mish_gradient(x: Any) -> Any:
            c = min(x, most)
            e = math.exp(c)
            r = one / (e * (e + two) + two)
            return r * (e * (e + two) + four * c * (e * e + e) * r)

        def silu(x: Any) -> Any:
            return x / (one + math.exp(-x))

        def silu_gradient(x: Any) -> Any:
            s = one / (one + math.exp(-x))
            return s * (one + x * (one - s))

        formulas = {"mish": (mish, mish_gradient), "silu": (silu, silu_gradient)}
        if function not in formulas:
            raise Lacks("nothing of its own; mish and silu are written for it")
        compiled = numba.njit(fastmath=True)(formulas[function][direction == BACKWARD])
        if direction == BACKWARD:

            @numba.njit(parallel=True, fastmath=True)
            def backward(grad: Any, x: Any, out: Any) -> None:
                for i in numba.prange(x.size):
                    out[i] = grad[i] * compiled(x[i])

            return backward

        @numba.njit(parallel=True, fastmath=True)
        def forward(x: Any, out: Any) -> None:
            for i in numba.prange(x.size):
                out[i] = compiled(x[i])

        return forward


class Numpy(Adapter):
    """Array operations, with one exponential; one thread, always."""

    package = module = "numpy"

    def calls(self, work: Work) -> Calls:
        import numpy as np

        if work.function != "mish" or work.is_backward:
            raise Lacks("nothing of its own; mish forward is written for it")
        if work.threads > 1:
            raise Lacks("one thread only")
        x, out = _numpy(work.x, work.out)
        two, most = np.float32(2), np.float32(20)

        def fresh() -> Any:
            e = np.exp(np.minimum(x, most))
            n = e * (e + two)
            return x * (n / (n + two))

        n = np.empty_like(x)

        def existing() -> None:
            np.minimum(x, most, out=out)
            np.exp(out, out=out)
            np.add(out, two, out=n)
            np.multiply(n, out, out=n)
            np.add(n, two, out=out)
            np.divide(n, out, out=out)
            np.multiply(out, x, out=out)

        yield FRESH, _made(fresh, torch.from_numpy)
        yield EXISTING, _into(work, existing)


class Ncnn(Adapter):
    """A network of one layer."""

    package = module = "ncnn"
    _LAYERS: ClassVar[dict[Any, Any]] = {
        "mish": "Mish", "silu": "Swish", "gelu": "GELU", "gelu_tanh": "GELU",
        "hardswish": "HardSwish", "softplus": "Softplus", "relu": "ReLU",
    }  # fmt: skip
    _OPTIONS: ClassVar[dict[Any, Any]] = {"gelu_tanh": "0=1", "hardswish": f"0={1 / 6:.8g} 1=0.5"}

    def calls(self, work: Work) -> Calls:
        import ncnn
        import numpy as np

        if work.is_backward:
            raise Lacks("inference only")
        if work.function not in self._LAYERS:
            raise Lacks("no such layer")
        (x,) = _numpy(work.x)
        net = ncnn.Net()
        net.opt.num_threads = work.threads
        layer = f"{self._LAYERS[work.function]} y 1 1 x y {self._OPTIONS.get(work.function, '')}"
        with tempfile.TemporaryDirectory() as folder:
            path = Path(folder, "net")
            path.write_text(f"7767517\n2 2\nInput x 0 1 x\n{layer}\n")
            net.load_param(str(path))
            path.write_text("")
            net.load_model(str(path))
        source = ncnn.Mat(x).clone()  # aligned as its kernels expect

        def fresh() -> Any:
            with net.create_extractor() as extractor:
                extractor.input("x", source)
                return extractor.extract("y")[1]

        yield FRESH, _made(fresh, lambda output: torch.from_numpy(np.array(output)))


def everyone() -> list[Adapter]:
    """Ours first, the floors last."""
    return [
        Mishkit(OURS),
        FromOutput(OURS_FROM_OUTPUT),
        Torch("torch"),
        Compiled("torch.compile"),
        Compiled(f"torch.compile, {ONE_EXPONENTIAL}", True),
        Timm("timm"),
        OneDNN("oneDNN"),
        OpenVINO("OpenVINO"),
        OnnxRuntime("ONNX Runtime"),
        Jax("JAX"),
        Jax(f"JAX, {ONE_EXPONENTIAL}", True),
        Numba("Numba"),
        Ncnn("ncnn"),
        Numpy("NumPy"),
        ReLU(FLOORS[0]),
        Copy(FLOORS[1]),
    ]
