"""Malformed, truncated and hostile ONNX files: one clear line or a right result, and no more."""

from __future__ import annotations

import os
import random
import resource
import sys
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np
import pytest

import mishkit as mk

onnx = pytest.importorskip("onnx")
ort = pytest.importorskip("onnxruntime")

from mishkit.surgery.onnx import survey  # noqa: E402

RULES = dict.fromkeys(mk.names(), "h_mish") | {"tanh": "mish", "sigmoid": "aptx"}
BODY = """<ir_version: 9, opset_import: ["" : 18, "local" : 1, "com.microsoft" : 1]>
model (float[N, 4] x, bool c) => (float[N, 4] y, float[N, 4] last)
<float r = {1.4142135}, float one = {1}, float half = {0.5}, float[4] b = {1, 2, 3, 4}>
{
    [mish] p = Softplus(x) t = Tanh(p) m = Mul(x, t)
    d = Div(m, r) e = Erf(d) a = Add(e, one) h = Mul(m, a) g = Mul(h, half)
    z = If (c) <
        then_branch = yes () => (float[N, 4] u) { s = Sigmoid(g) u = Mul(g, s) },
        else_branch = no () => (float[N, 4] v) { v = local.Act(g) }
    >
    k = HardSigmoid <alpha = 0.5, beta = 1.0> (z)
    y = Mul(z, k)
    q = com.microsoft.BiasGelu(y, b)
    f = Cast <to = 10> (q) w = Relu(f) last = Cast <to = 1> (w)
}
<domain: "local", opset_import: ["" : 17]>
Act (u) => (v) { p = Softplus(u) q = Tanh(p) v = Mul(q, u) }
"""
COUNT = 240


@pytest.fixture
def folder(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    inside = tmp_path / "models"
    inside.mkdir()
    (tmp_path / "secret").write_bytes(b"S" * 64)
    monkeypatch.chdir(inside)
    return inside


def whole() -> bytes:
    model = onnx.parser.parse_model(BODY)
    weight = onnx.numpy_helper.from_array(np.arange(6, dtype=np.float32), "data")
    weight.ClearField("raw_data")
    weight.data_location = onnx.TensorProto.EXTERNAL
    for key, value in (("location", "m.data"), ("offset", "0"), ("length", "24")):
        weight.external_data.add(key=key, value=value)
    model.graph.initializer.append(weight)
    serialized: bytes = model.SerializeToString()
    return serialized


def mutations(count: int) -> Iterator[tuple[str, bytes]]:
    """The same files each time: bytes and what they stand for, cut, changed, lost and doubled."""
    source, chance = whole(), random.Random(0)
    for i in range(count):
        if i % 2:
            yield f"{i} bytes", _changed_bytes(bytearray(source), chance)
        else:
            yield f"{i} fields", _changed_fields(source, chance)


def _changed_bytes(data: bytearray, chance: random.Random) -> bytes:
    kind = chance.choice(("cut", "byte", "lost", "doubled", "number"))
    at, size = chance.randrange(len(data)), chance.randint(1, 40)
    if kind == "cut":
        del data[at:]
    elif kind == "byte":
        data[at] = chance.randrange(256)
    elif kind == "lost":
        del data[at : at + size]
    elif kind == "doubled":
        data[at:at] = data[at : at + size]
    else:
        data[at : at + 1] = b"\xff" * 9 + b"\x01"
    return bytes(data)


def _changed_fields(source: bytes, chance: random.Random) -> bytes:
    model = onnx.ModelProto.FromString(source)
    graph = model.graph
    for _ in range(chance.randint(1, 3)):
        node, other = chance.choice(graph.node), chance.choice(graph.node)
        weight = chance.choice(graph.initializer)
        kind = chance.randrange(10)
        if kind == 0:
            node.op_type = other.op_type
        elif kind == 1:  # another input: circles, shared values
            node.input[0] = chance.choice([*other.output, *other.input, "nobody's"])
        elif kind == 2:  # two of the same name
            node.output[0] = other.output[0]
        elif kind == 3:
            graph.node.remove(node)
        elif kind == 4:
            graph.node.insert(0, node)
        elif kind == 5:
            weight.dims[:] = chance.choice([[0], [1], [4], [1, 1, 1], [-1], [1 << 40]])
        elif kind == 6:
            weight.data_type = chance.choice([0, 1, 2, 7, 8, 10, 16, 22, 99])
        elif kind == 7:
            model.opset_import[0].version = chance.choice([-1, 0, 1, 7, 9, 13, 22, 1 << 40])
        elif kind == 8:
            del model.opset_import[chance.randrange(len(model.opset_import))]
            model.opset_import.add(domain="else", version=1)
        else:
            node.attribute.add(name="alpha", type=chance.randrange(15), f=2.0, i=3)
    return model.SerializeToString()


def check_one_line(error: BaseException) -> None:
    message = str(error)
    assert message.startswith("mishkit.swap: ") and "\n" not in message and len(message) < 500


def test_a_mutated_file_gives_a_line_or_a_right_result(folder: Path) -> None:
    Path("m.data").write_bytes(bytes(64))
    results: dict[str, int] = dict.fromkeys(("line", "result", "run"), 0)
    for name, data in [("whole", whole()), *mutations(COUNT)]:
        Path("old.onnx").write_bytes(data)
        Path("new.onnx").write_bytes(b"before")
        try:
            done = mk.swap("old.onnx", RULES, output="new.onnx", form="fast")
        except ValueError as error:
            check_one_line(error)
            results["line"] += 1
            assert Path("new.onnx").read_bytes() == b"before", name
        else:
            results["result"] += 1
            assert name != "whole" or len(done) == 6
            results["run"] += runs_alike(data, Path("new.onnx").read_bytes())
        assert Path("old.onnx").read_bytes() == data, name
        assert sorted(os.listdir()) == ["m.data", "new.onnx", "old.onnx"], name
    assert min(results["line"], results["result"], 5 * results["run"]) >= 50, results


def runs_alike(old: bytes, new: bytes) -> bool:
    """Whether the old model runs; then the new one must, in the same shapes and dtypes."""
    x, condition = np.linspace(-4, 4, 20, dtype=np.float32).reshape(5, 4), np.array(True)
    outputs = []
    for data in (old, new):
        options = ort.SessionOptions()
        options.log_severity_level = 4
        try:
            session = ort.InferenceSession(data, options, providers=["CPUExecutionProvider"])
            outputs.append(session.run(None, {"x": x, "c": condition}))
        except Exception:
            if not outputs:
                return False
            raise
    for before, after in zip(*outputs, strict=True):
        assert before.shape == after.shape and before.dtype == after.dtype
    return True


# ---- files that someone made on purpose ----


def model_of(nodes: list[Any], initializers: tuple[Any, ...] = ()) -> Any:
    return onnx.helper.make_model(
        onnx.helper.make_graph(
            nodes,
            "g",
            [onnx.helper.make_tensor_value_info("x", 1, ["N"])],
            [onnx.helper.make_tensor_value_info("y", 1, ["N"])],
            list(initializers),
        ),
        opset_imports=[onnx.helper.make_opsetid("", 18)],
        ir_version=9,
    )


def circle() -> Any:
    node = onnx.helper.make_node
    return model_of([node("Mul", ["x", "b"], ["a"]), node("Tanh", ["a"], ["b"]),
                     node("Mul", ["x", "b"], ["y"])])  # fmt: skip


def own_circle() -> Any:
    return model_of([onnx.helper.make_node("Mul", ["x", "y"], ["y"])])


def huge() -> Any:
    """A constant that says it has a million million numbers, and one that has none."""
    big = onnx.TensorProto(name="big", data_type=1, dims=[1 << 20, 1 << 20])
    none = onnx.TensorProto(name="none", data_type=1, dims=[1])
    node = onnx.helper.make_node
    return model_of([node("Mul", ["x", "big"], ["a"]), node("Sigmoid", ["a"], ["s"]),
                     node("Mul", ["s", "none"], ["y"])], (big, none))  # fmt: skip


def negative() -> Any:
    return model_of(
        [onnx.helper.make_node("Mul", ["x", "c"], ["y"])],
        (onnx.TensorProto(name="c", data_type=1, dims=[-1, -1]),),
    )


def long_chain() -> Any:
    node = onnx.helper.make_node
    links = [node("Tanh", [f"v{i}" if i else "x"], [f"v{i + 1}"]) for i in range(1200)]
    return model_of([*links, node("Tanh", ["v1200"], ["y"])])


def deep_note() -> Any:
    model = model_of([onnx.helper.make_node("Sigmoid", ["x"], ["y"])])
    entry = model.graph.node[0].metadata_props.add()
    entry.key, entry.value = "pkg.torch.onnx.name_scopes", "[" * 9000
    return model


def odd_attributes() -> Any:
    node = onnx.helper.make_node
    return model_of([
        node("LeakyRelu", ["x"], ["a"], alpha="high"), node("Elu", ["a"], ["b"], beta=[1, 2]),
        node("Cast", ["b"], ["c"], to=999), node("Constant", [], ["n"], value_string="text"),
        node("Mul", ["c", "n"], ["d"]), node("Clip", ["d", "", "n"], ["e"]),
        node("QuantizeLinear", ["e", "n", "n"], ["q"]), node("DequantizeLinear", ["q"], ["y"]),
    ])  # fmt: skip


HOSTILE = [circle, own_circle, huge, negative, long_chain, deep_note, odd_attributes]


@pytest.mark.parametrize("make", HOSTILE, ids=[make.__name__ for make in HOSTILE])
def test_hostile_graphs_take_no_memory_and_no_depth(make: Any, folder: Path) -> None:
    Path("old.onnx").write_bytes(make().SerializeToString())
    before = peak_memory()
    try:
        mk.swap("old.onnx", RULES, output="new.onnx")
        survey("old.onnx")
    except ValueError as error:
        check_one_line(error)
    assert peak_memory() - before < 300 << 20


def peak_memory() -> int:
    """The most bytes that this process ever had."""
    return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * (
        1 if sys.platform == "darwin" else 1024
    )


def nested(levels: int) -> bytes:
    """Graphs in graphs, written by hand, as onnx refuses to write them."""

    def field(number: int, data: bytes) -> bytes:
        size, digits = len(data), b""
        while size > 127:
            digits, size = digits + bytes([size & 127 | 128]), size >> 7
        return bytes([number << 3 | 2]) + digits + bytes([size]) + data

    graph = b""
    for _ in range(levels):
        attribute = field(1, b"then_branch") + field(6, graph) + b"\xa0\x01\x05"
        graph = field(1, field(2, b"y") + field(4, b"If") + field(5, attribute))
    return b"\x08\x09" + field(7, graph) + field(8, b"\x10\x12")


@pytest.mark.parametrize("data", [
    b"", b"\x08", b"not a model at all", b"\0" * 1000, whole()[:40], nested(60), nested(5000),
], ids=["empty", "one byte", "text", "zeros", "cut", "nested", "nested far"])  # fmt: skip
def test_what_is_no_model_is_told_in_one_line(data: bytes, folder: Path) -> None:
    Path("old.onnx").write_bytes(data)
    try:
        done = mk.swap("old.onnx", RULES, output="new.onnx")
    except ValueError as error:
        check_one_line(error)
        assert os.listdir() == ["old.onnx"]
    else:
        assert done == [] and 50 < len(data) < 5000


@pytest.mark.parametrize("name", ["m.json", "m.textproto", "m.onnxtxt"])
def test_text_that_is_no_model_is_told_in_one_line(name: str, folder: Path) -> None:
    Path(name).write_text('{"graph": [1, 2\nnode {{{')
    with pytest.raises(
        ValueError, match=r"^mishkit\.swap: the ONNX model can't be read: "
    ) as error:
        mk.swap(name, RULES, output=f"new_{name}")
    check_one_line(error.value)


def test_a_pipe_is_no_model(folder: Path) -> None:
    os.mkfifo("pipe.onnx")
    with pytest.raises(ValueError, match="is not a file"):
        mk.swap("pipe.onnx", RULES, output="new.onnx")
