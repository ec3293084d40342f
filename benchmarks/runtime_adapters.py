"""The runtimes that benchmarks/runtimes.py times: each runs an ONNX file on one thread."""

from __future__ import annotations

import importlib.metadata
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np

Run = Callable[[], Any]
"""Computes once; returns something that `np.array` takes."""


class Runtime:
    """One runtime."""

    key: str
    """Its name in `mishkit.export.RUNTIMES`."""
    title: str
    package: str
    """On PyPI."""
    takes_networks = True

    @property
    def version(self) -> str:
        """The installed version."""
        return importlib.metadata.version(self.package)

    def load(self, path: Path, x: np.ndarray) -> Run:
        """The model in a file, with its one input."""
        raise NotImplementedError


class OnnxRuntime(Runtime):
    """Microsoft's, with its CPU provider."""

    key, title, package = "onnxruntime", "ONNX Runtime", "onnxruntime"

    def load(self, path: Path, x: np.ndarray) -> Run:
        import onnxruntime

        options = onnxruntime.SessionOptions()
        options.intra_op_num_threads = options.inter_op_num_threads = 1
        options.log_severity_level = 3
        session = onnxruntime.InferenceSession(path, options, providers=["CPUExecutionProvider"])
        binding = session.io_binding()
        binding.bind_cpu_input(session.get_inputs()[0].name, x)
        binding.bind_output(session.get_outputs()[0].name)

        def run() -> Any:
            session.run_with_iobinding(binding)
            return binding

        return _Reading(run, lambda: binding.copy_outputs_to_cpu()[0])


class OpenVINO(Runtime):
    """Intel's."""

    key, title, package = "openvino", "OpenVINO", "openvino"

    def load(self, path: Path, x: np.ndarray) -> Run:
        import openvino

        precision = "f16" if x.dtype == np.float16 else "f32"
        settings = {"INFERENCE_NUM_THREADS": 1, "INFERENCE_PRECISION_HINT": precision}
        request = openvino.Core().compile_model(path, "CPU", settings).create_infer_request()
        request.set_input_tensor(openvino.Tensor(x))
        return _Reading(request.infer, lambda: request.get_output_tensor().data)


class OpenCV(Runtime):
    """The module dnn."""

    key, title, package = "opencv", "OpenCV", "opencv-python-headless"

    def load(self, path: Path, x: np.ndarray) -> Run:
        import cv2

        cv2.setNumThreads(1)
        net = cv2.dnn.readNetFromONNX(str(path))
        net.setInput(x)
        return net.forward


class Ncnn(Runtime):
    """Tencent's, by way of pnnx."""

    key, title, package = "ncnn", "ncnn", "ncnn"

    def load(self, path: Path, x: np.ndarray) -> Run:
        import ncnn

        tool = Path(sys.executable).parent / "pnnx"
        subprocess.run([tool, path.name], cwd=path.parent, capture_output=True, check=True)
        net = ncnn.Net()
        net.opt.num_threads = 1
        for option in ("fp16_packed", "fp16_storage", "fp16_arithmetic", "bf16_storage"):
            setattr(net.opt, f"use_{option}", x.dtype == np.float16)
        if net.load_param(str(path.with_suffix(".ncnn.param"))):
            raise ValueError("has an operator that ncnn lacks")
        net.load_model(str(path.with_suffix(".ncnn.bin")))
        values = x[0].astype(np.float32)
        source = ncnn.Mat(values).clone()  # aligned as its kernels expect

        def run() -> Any:
            with net.create_extractor() as extractor:
                extractor.input("in0", source)
                return extractor.extract("out0")[1]

        return run


class Mnn(Runtime):
    """Alibaba's, by way of its converter."""

    key, title, package = "mnn", "MNN", "MNN"

    def load(self, path: Path, x: np.ndarray) -> Run:
        import MNN.expr
        import MNN.nn

        tool, new = Path(sys.executable).parent / "mnnconvert", path.with_suffix(".mnn")
        command = ["-f", "ONNX", "--modelFile", path, "--MNNModel", new, "--bizCode", "mishkit"]
        conversion = subprocess.run([tool, *command], capture_output=True, text=True)
        if not new.exists():
            lacks = [line for line in conversion.stdout.splitlines() if "Not Support" in line]
            raise ValueError(f"lacks {lacks[0].split()[-1]}" if lacks else "can't be converted")
        precision = "low" if x.dtype == np.float16 else "high"
        settings = {"backend": 0, "numThread": 1, "precision": precision}
        manager = MNN.nn.create_runtime_manager((settings,))
        net = MNN.nn.load_module_from_file(str(new), ["x"], ["y"], runtime_manager=manager)
        tensor = MNN.expr.const(x.astype(np.float32), list(x.shape), MNN.expr.NCHW)
        return lambda: net.forward([tensor])[0].read()


class Tract(Runtime):
    """Sonos's, in Rust."""

    key, title, package = "tract", "tract", "tract"

    def load(self, path: Path, x: np.ndarray) -> Run:
        import tract

        runnable = tract.onnx().load(str(path)).into_model().into_runnable()
        return lambda: runnable.run([x])[0].to_numpy()


class LiteRT(Runtime):
    """Google's, which reads no ONNX: the forms are given to it in TensorFlow's operators."""

    key, title, package = "litert", "LiteRT", "ai-edge-litert"
    takes_networks = False

    def load_form(self, write: Callable[..., Any], parameters: Any, x: np.ndarray) -> Run:
        """A form as a separate model."""
        import tensorflow as tf
        from ai_edge_litert.interpreter import Interpreter

        @tf.function(input_signature=[tf.TensorSpec(x.shape, x.dtype)])
        def function(tensor: Any) -> Any:
            return write(_TensorFlow(tf, tensor), *parameters)

        concrete = function.get_concrete_function()
        converter = tf.lite.TFLiteConverter.from_concrete_functions([concrete])
        interpreter = Interpreter(model_content=converter.convert(), num_threads=1)
        interpreter.allocate_tensors()
        interpreter.set_tensor(interpreter.get_input_details()[0]["index"], x)
        output = interpreter.get_output_details()[0]["index"]
        return _Reading(interpreter.invoke, lambda: interpreter.get_tensor(output))


class _Reading:
    """A call whose result is read separately, so that the copy is not timed."""

    def __init__(self, run: Run, read: Run) -> None:
        self._run, self.read = run, read

    def __call__(self) -> Any:
        return self._run()


def result(run: Run) -> np.ndarray:
    """What a call computes."""
    if isinstance(run, _Reading):
        run()
        return np.array(run.read())
    return np.array(run())


class _TensorFlow:
    """Writes a form in TensorFlow's operators; see `mishkit.activation.OnnxWriter`."""

    def __init__(self, tf: Any, x: Any) -> None:
        self.x = x
        self._operators: dict[str, Callable[..., Any]] = {
            "Abs": tf.abs, "Add": tf.add, "Div": tf.divide, "Erf": tf.math.erf,
            "Elu": lambda x, alpha=1.0: tf.nn.elu(x)
            if alpha == 1
            else tf.where(x > 0, x, alpha * tf.nn.elu(x)),
            "Exp": tf.exp,
            "Gelu": lambda x, approximate="none": tf.nn.gelu(x, approximate == "tanh"),
            "Greater": tf.greater, "Log": tf.math.log, "Max": tf.maximum, "Min": tf.minimum,
            "LeakyRelu": lambda x, alpha=0.01: tf.nn.leaky_relu(x, alpha),
            "Mul": tf.multiply, "Relu": tf.nn.relu, "Sigmoid": tf.sigmoid,
            "Softplus": tf.math.softplus, "Sub": tf.subtract, "Tanh": tf.tanh, "Where": tf.where,
        }  # fmt: skip

    def __call__(self, operator: str, *inputs: Any, **attributes: Any) -> Any:
        return self._operators[operator](*inputs, **attributes)

    def has(self, operator: str) -> bool:
        return operator in self._operators

    def scaled(self, x: Any, factor: float) -> Any:
        return x if factor == 1 else x * factor

    def clip(self, x: Any, low: float, high: float) -> Any:
        return self("Min", self("Max", x, low), high)

    def swish(self, beta: float) -> Any:
        return self.x * self("Sigmoid", self.scaled(self.x, beta))

    def hard(self, slope: float, middle: float) -> Any:
        return self.x * self.clip(self.x * slope + middle, 0.0, 1.0)


RUNTIMES = (OnnxRuntime(), OpenVINO(), OpenCV(), Ncnn(), Mnn(), Tract(), LiteRT())
"""All runtimes; those that are not installed are left out."""
