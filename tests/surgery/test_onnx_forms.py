"""ONNX files as they are: forms for runtimes, other people's operators, casts and near misses."""

from __future__ import annotations

import copy
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from torch import Tensor, nn

import mishkit as mk

onnx = pytest.importorskip("onnx")
ir = pytest.importorskip("onnx_ir")
ort = pytest.importorskip("onnxruntime")

from onnx import TensorProto, helper  # noqa: E402

from mishkit.export import RUNTIMES  # noqa: E402
from mishkit.forms import STANDARD  # noqa: E402
from mishkit.functions import ACTIVATIONS  # noqa: E402
from mishkit.functions._fastest import FASTEST  # noqa: E402
from mishkit.surgery.onnx import survey  # noqa: E402
from mishkit.surgery.onnx.write import Writer  # noqa: E402

FLOAT, HALF = TensorProto.FLOAT, TensorProto.FLOAT16
MISH = "s = Softplus(x) t = Tanh(s) y = Mul(x, t)"
SIGMOID_FORM = ["Sigmoid", "Sub", "Mul", "Mul", "Sub", "Div"]


def parsed(body: str, *, opset: int = 18, kind: str = "float", constants: str = "") -> Any:
    return onnx.parser.parse_model(
        f'<ir_version: 8, opset_import: ["" : {opset}, "com.microsoft" : 1]> '
        f"model ({kind}[N, 4] x) => ({kind}[N, 4] y) {constants} {{ {body} }}"
    )


def run(model: Any, x: Tensor) -> Tensor:
    session = ort.InferenceSession(model.SerializeToString(), providers=["CPUExecutionProvider"])
    return torch.from_numpy(session.run(None, {session.get_inputs()[0].name: x.numpy()})[0])


def types(model: Any) -> list[str]:
    return [node.op_type for node in model.graph.node if node.op_type != "Constant"]


# ---- forms ----


@pytest.mark.parametrize("opset", [9, 14, 18, 20])
@pytest.mark.parametrize("kind", ["float", "float16"])
def test_mish_is_fast_and_finite_in_standard_operators(opset: int, kind: str) -> None:
    # The one operator where there is one, and what exporters write for older opsets.
    for body in ["y = Mish(x)"] * (opset >= 18) + [MISH]:
        model = parsed(body, opset=opset, kind=kind)
        (done,) = mk.swap(model, {"mish": "mish"}, form="fast")
        assert sorted(types(model)) == sorted(SIGMOID_FORM) and done.new.startswith("mish (")
        onnx.checker.check_model(model)
        assert mk.swap(model, {"mish": "mish"}, form="fast") == []
    if kind == "float":
        x = torch.linspace(-90, 30, 1 << 16).reshape(-1, 4)
        want = mk.mish(x.double())
        assert (run(model, x).double() - want).abs().max() <= 4e-6
    else:
        x = torch.arange(2**16, dtype=torch.int32).to(torch.int16).view(torch.float16)
        x = torch.where(x.isfinite(), x, 0).reshape(-1, 4)
        y = run(model, x)
        assert y.isfinite().all()
        torch.testing.assert_close(y, mk.mish(x), rtol=3e-3, atol=3e-3)


@pytest.mark.parametrize("opset", [0, 9, 11, 18, 20, 24])
def test_every_form_is_valid_in_every_opset(opset: int) -> None:
    x = torch.linspace(-9, 9, 997).reshape(-1, 1)
    for a in ACTIVATIONS.values():
        for form in a.forms:
            for limit in {9, opset or 9}:
                value = ir.Value(
                    name="x", type=ir.TensorType(ir.DataType.FLOAT), shape=ir.Shape(["N", 1])
                )
                writer = Writer(value, opset, ir.DataType.FLOAT, limit)
                result = form.write(writer, *a.defaults)
                graph = ir.Graph(
                    [value], [result], nodes=writer.nodes, opset_imports={"": opset or 9}
                )
                result.name, result.type, result.shape = "y", value.type, value.shape
                graph.name = a.name
                for i, node in enumerate(writer.nodes):
                    if node.outputs[0] is not result:
                        node.outputs[0].name = f"v{i}"
                model = ir.to_proto(ir.Model(graph, ir_version=8 if opset < 24 else 10))
                onnx.checker.check_model(model)
                if limit == 9:  # then other opsets have them too
                    for node in model.graph.node:
                        assert onnx.defs.get_schema(node.op_type, 9, "")
                y = run(model, x)
                torch.testing.assert_close(
                    y, getattr(mk, a.name)(x), rtol=1e-5, atol=4e-6, msg=f"{a.name} {form.name}"
                )


@pytest.mark.parametrize("runtime", RUNTIMES)
def test_the_fastest_form_of_a_runtime_is_taken(runtime: str) -> None:
    x = torch.linspace(-9, 9, 400).reshape(-1, 4)
    for name, a in ACTIVATIONS.items():
        model, other = parsed("y = Tanh(x)", opset=20), parsed("y = Tanh(x)", opset=20)
        mk.swap(model, {"tanh": name}, form=f"fast:{runtime}")
        value = ir.Value(name="x", type=ir.TensorType(ir.DataType.FLOAT))
        writer = Writer(value, 20, ir.DataType.FLOAT, 20)
        a.form(FASTEST[runtime].get(name, STANDARD)).write(writer, *a.defaults)
        assert types(model) == [n.op_type for n in writer.nodes if n.op_type != "Constant"]
        torch.testing.assert_close(run(model, x), getattr(mk, name)(x), rtol=1e-5, atol=4e-6)
        if runtime == RUNTIMES[0]:
            mk.swap(other, {"tanh": name}, form="fast")
            assert types(other) == types(model)


@pytest.mark.parametrize(("op", "rule", "opset", "to"), [
    ("Gelu", "gelu", 20, 17), ("Mish", "mish", 18, 17), ("HardSwish", "hardswish", 14, 13),
])  # fmt: skip
def test_a_model_is_lowered_for_an_older_opset(op: str, rule: str, opset: int, to: int) -> None:
    model = parsed(f"y = {op}(x)", opset=opset)
    del model.opset_import[1]
    x = torch.linspace(-9, 9, 400).reshape(-1, 4)
    want = run(model, x)
    assert mk.swap(model, {rule: rule}) == []
    assert mk.swap(model, {rule: rule}, form=f"opset:{opset}") == []
    (done,) = mk.swap(model, {rule: rule}, form=f"opset:{to}")
    assert done.old == f"{rule} ({op})" and op not in types(model)
    if op == "HardSwish":  # onnx has no way from Mul 14 to Mul 13
        return
    older = onnx.version_converter.convert_version(model, to)
    onnx.checker.check_model(older)
    torch.testing.assert_close(run(older, x), want, rtol=1e-5, atol=4e-6)
    assert mk.swap(model, {rule: rule}, form=f"opset:{to}") == []


@pytest.mark.parametrize(("op", "rule", "opset"), [
    ("Mish", "mish", 9), ("Mish", "mish", 17), ("Gelu", "gelu", 19), ("HardSwish", "hardswish", 13),
    ("Swish", "silu", 23),
])  # fmt: skip
def test_what_the_opset_lacks_is_lowered(op: str, rule: str, opset: int) -> None:
    model = helper.make_model(
        helper.make_graph(
            [helper.make_node(op, ["x"], ["y"])],
            "g",
            [helper.make_tensor_value_info("x", FLOAT, ["N", 4])],
            [helper.make_tensor_value_info("y", FLOAT, ["N", 4])],
        ),
        opset_imports=[helper.make_opsetid("", opset)],
        ir_version=8,
    )
    assert len(mk.swap(model, {rule: rule})) == 1 and op not in types(model)
    onnx.checker.check_model(model)
    x = torch.linspace(-9, 9, 400).reshape(-1, 4)
    torch.testing.assert_close(run(model, x), getattr(mk, rule)(x), rtol=1e-5, atol=4e-6)


@pytest.mark.parametrize(
    "form", ["slow", "fast:abacus", "opset:8", "opset:x", "opset:", "", "opset:²"]
)
def test_other_forms_are_refused(form: str) -> None:
    model = parsed(MISH)
    with pytest.raises(
        ValueError, match=r'^mishkit\.swap: a form is "standard", "fast", "opset:N"'
    ):
        mk.swap(model, {"mish": "mish"}, form=form)
    assert types(model) == ["Softplus", "Tanh", "Mul"]
    if not form.startswith("opset"):
        with (
            pytest.raises(
                ValueError, match=r'^mishkit\.export_form: a form is "standard", "fast" '
            ),
            mk.export_form(form),
        ):
            pass
    with pytest.raises(ValueError, match="form= is for ONNX models"):
        mk.swap(nn.Sequential(nn.Mish()), {"mish": "mish"}, form="fast")


def test_models_are_exported_in_a_form(monkeypatch: pytest.MonkeyPatch) -> None:
    pytest.importorskip("onnxscript")
    # No runtime prefers it, but trained parameters must do in every form.
    monkeypatch.setitem(FASTEST[RUNTIMES[0]], "aptx", "sigmoid")
    model = nn.Sequential(mk.Mish(), mk.Softplus(), mk.APTx(0.9, trainable=True)).eval()
    x = torch.randn(3, 4)
    with mk.export_form("fast"):
        program = torch.onnx.export(model, (x,), dynamo=True, verbose=False)
        exported = torch.export.export(model, (x,), strict=True)
    written = [node.op_type for node in program.model.graph]
    assert written[:6] == SIGMOID_FORM and {"Tanh", "Mish", "Softplus"}.isdisjoint(written)
    y = run(ir.to_proto(program.model), x)
    with torch.no_grad():
        torch.testing.assert_close(y, model(x), rtol=1e-5, atol=4e-6)
        torch.testing.assert_close(exported.module()(x), model(x), rtol=1e-5, atol=4e-6)
    with pytest.raises(RuntimeError, match="stop"), mk.export_form("fast"):
        raise RuntimeError("stop")
    program = torch.onnx.export(model[:1].eval(), (x,), dynamo=True, verbose=False)
    assert [node.op_type for node in program.model.graph] == ["Mish"]


# ---- files as they are ----


@pytest.mark.parametrize(("domain", "imports"), [
    ("TRT", [("TRT", 1)]), ("TRT", []), ("", []),
], ids=["imported", "not imported", "in the default domain"])  # fmt: skip
def test_a_plugin_is_left_as_it_is(
    domain: str, imports: list[tuple[str, int]], tmp_path: Path
) -> None:
    kinds = (("n", TensorProto.INT32), ("b", FLOAT), ("s", FLOAT), ("c", TensorProto.INT32))
    plugin = helper.make_node(
        "EfficientNMS_TRT", ["y", "y"], [name for name, _ in kinds], "plugin", domain=domain,
        plugin_version="1",
    )  # fmt: skip
    nodes = [helper.make_node("Sigmoid", ["x"], ["g"]), helper.make_node("Mul", ["x", "g"], ["y"])]
    model = helper.make_model(
        helper.make_graph(
            [*nodes, plugin],
            "g",
            [helper.make_tensor_value_info("x", FLOAT, (1, 8, 4))],
            [helper.make_tensor_value_info(name, kind, None) for name, kind in kinds],
        ),
        opset_imports=[helper.make_opsetid("", 12), *(helper.make_opsetid(*i) for i in imports)],
        ir_version=7,
    )
    path, new = tmp_path / "old.onnx", tmp_path / "new.onnx"
    path.write_bytes(model.SerializeToString())
    (done,) = mk.swap(path, {"silu": "hardswish"}, output=new)
    assert done.new == "hardswish (HardSigmoid, Mul)"
    after = onnx.load(new)
    assert types(after) == ["HardSigmoid", "Mul", "EfficientNMS_TRT"]
    # Everything but the two nodes is what it was, byte for byte.
    assert after.graph.node[2].SerializeToString() == plugin.SerializeToString()
    for proto in (model, after):
        del proto.graph.node[:]
        del proto.graph.value_info[:]
    assert after.SerializeToString() == model.SerializeToString()


def test_a_model_without_its_data_is_rewritten(tmp_path: Path) -> None:
    model = parsed(MISH.replace("y =", "m =") + " y = MatMul(m, w)")
    weight = np.random.default_rng(0).normal(size=(4, 4)).astype("float32")
    model.graph.initializer.append(onnx.numpy_helper.from_array(weight, "w"))
    path = tmp_path / "m.onnx"
    onnx.save(model, path, save_as_external_data=True, location="w.data", size_threshold=0)
    bare = onnx.load(path, load_external_data=False)
    before = copy.deepcopy(bare)
    assert len(mk.swap(bare, {"mish": "h_mish"})) == 1
    assert types(bare) == ["HardSigmoid", "Mul", "MatMul"]
    assert bare.graph.initializer[0] == before.graph.initializer[0]
    (tmp_path / "w.data").unlink()
    assert len(mk.swap(path, {"mish": "h_mish"}, output=path)) == 1


def test_without_an_opset_operators_are_written_that_mean_the_same_in_all() -> None:
    model = parsed("y = Relu(x)")
    del model.opset_import[:]
    mk.swap(model, {"relu": "h_mish"}, form="fast")
    assert types(model) == ["HardSigmoid", "Mul"]


def test_a_function_of_an_old_opset_is_left_with_the_reason() -> None:
    model = onnx.parser.parse_model(
        '<ir_version: 9, opset_import: ["" : 18, "local" : 1]> m (float[N] x) => (float[N] y) '
        '{ r = local.Act(x) y = Relu(r) } <domain: "local", opset_import: ["" : 8]> '
        "Act (u) => (v) { v = Relu(u) }"
    )
    done = mk.swap(model, {"relu": "mish"})
    assert len(done) == 1 and done.left == {"v": "it is of opset 8, before 9"}
    assert [node.op_type for node in model.functions[0].node] == ["Relu"]


# ---- ONNX Runtime's operators ----


CONTRIB = {
    "y = com.microsoft.Gelu(x)": "gelu",
    "y = com.microsoft.FastGelu(x)": "gelu_tanh",
    "y = com.microsoft.QuickGelu(x)": "quick_gelu",
    "y = com.microsoft.QuickGelu<alpha = 1.0>(x)": "silu",
    "y = com.microsoft.BiasGelu(x, b)": "gelu",
    "y = com.microsoft.FastGelu(x, b)": "gelu_tanh",
}


@pytest.mark.parametrize(("body", "function"), CONTRIB.items())
def test_operators_of_onnx_runtime_are_read(body: str, function: str) -> None:
    model = parsed(body, constants="<float[4] b = {1, -1, 2, 0.5}>" if "b)" in body else "")
    x = torch.linspace(-6, 6, 400).reshape(-1, 4)
    want = run(model, x)
    name = function.partition("(")[0]
    (done,) = mk.swap(model, {name: name})
    assert done.old.startswith(f"{function} (")
    assert {node.domain for node in model.graph.node} == {""}
    assert [opset.domain for opset in model.opset_import] == [""]
    torch.testing.assert_close(run(model, x), want, rtol=1e-4, atol=1e-3)


# ---- casts, quantisation, thresholds ----


HALVES = "<float16 one = {1}, float16 half = {0.5}>"
WITHIN = {
    "Softplus in float32": (
        "f = Cast<to = 1>(x) p = Softplus(f) q = Cast<to = 10>(p) t = Tanh(q) y = Mul(x, t)",
        "float16", "", "mish"),
    "casts in another order": (
        "f = Cast<to = 1>(x) p = Softplus(f) t = Tanh(p) q = Cast<to = 10>(t) y = Mul(q, x)",
        "float16", "", "mish"),
    "a cast like the input": (
        "f = Cast<to = 1>(x) p = Sigmoid(f) q = CastLike(p, x) y = Mul(q, x)",
        "float16", "", "silu"),
    "a threshold by a mask": (
        "p = Softplus(x) g = Greater(x, c) m = Cast<to = 1>(g) a = Mul(m, x) n = Sub(o, m) "
        "b = Mul(n, p) s = Add(a, b) t = Tanh(s) y = Mul(x, t)",
        "float", "<float c = {20}, float o = {1}>", "mish"),
    "a threshold by Where": (
        "p = Softplus(x) g = Greater(x, c) s = Where(g, x, p) t = Tanh(s) y = Mul(t, x)",
        "float", "<float c = {20}>", "mish"),
    "a threshold by Not": (
        "p = Softplus(x) l = LessOrEqual(x, c) g = Not(l) s = Where(g, x, p) t = Tanh(s) "
        "y = Mul(t, x)",
        "float", "<float c = {20}>", "mish"),
    "quantised": (
        "s = Sigmoid(x) q = QuantizeLinear(s, d, z) e = DequantizeLinear(q, d, z) y = Mul(x, e)",
        "float", "<float d = {0.00392157}, uint8 z = {0}>", "silu"),
    "quantised, signed, one step short": (
        "s = Sigmoid(x) q = QuantizeLinear(s, d, z) e = DequantizeLinear(q, d, z) y = Mul(x, e)",
        "float", "<float d = {0.00390625}, int8 z = {-128}>", "silu"),
}  # fmt: skip


@pytest.mark.parametrize("case", WITHIN)
def test_what_lies_within_a_site_is_evaluated(case: str) -> None:
    body, kind, constants, function = WITHIN[case]
    model = parsed(body, kind=kind, constants=constants)
    (done,) = mk.swap(model, {function: "h_mish"})
    assert done.old.startswith(f"{function} (") and types(model) == ["HardSigmoid", "Mul"]
    x = torch.linspace(-6, 6, 400).reshape(-1, 4)
    x = x.half() if kind == "float16" else x
    torch.testing.assert_close(run(model, x), mk.h_mish(x), rtol=2e-3, atol=2e-3)


NEAR = {
    "used elsewhere": (
        MISH.replace("y =", "m =") + " y = Add(m, t)", "float", "",
        ("mish", "mish, but what its Tanh gives is used elsewhere, too")),
    "another type": (
        "f = Cast<to = 1>(x) s = Sigmoid(f) g = Cast<to = 1>(x) m = Mul(g, s) y = Cast<to = 10>(m)",
        "float16", "", ("silu", "silu, but it gives FLOAT for FLOAT16")),
    "a number off": (
        "d = Div(x, r) e = Erf(d) a = Add(e, o) m = Mul(x, a) y = Mul(m, h)", "float",
        "<float r = {1.41}, float o = {1}, float h = {0.5}>",
        ("gelu", "gelu, but it is up to 0.0006 off, next to the input and the value")),
    "by channel": (
        "m = Mul(x, c) s = Sigmoid(m) y = Mul(x, s)", "float", "<float[4] c = {1, 1, 1, 1}>",
        ("silu", "silu, but its numbers differ by channel")),
    "quantised too narrowly": (
        "s = Sigmoid(x) q = QuantizeLinear(s, d, z) e = DequantizeLinear(q, d, z) y = Mul(x, e)",
        "float", "<float d = {0.00385}, uint8 z = {0}>",
        ("silu", "silu, but it is up to 0.009 off, next to the input and the value")),
}  # fmt: skip


@pytest.mark.parametrize("case", NEAR)
def test_near_misses_are_told_with_the_reason(case: str) -> None:
    body, kind, constants, (function, reason) = NEAR[case]
    model = parsed(body, kind=kind, constants=constants)
    before = model.SerializeToString()
    done = mk.swap(model, {function: "h_mish"})
    assert done == [] and reason in done.left.values() and "is left: " in str(done)
    assert model.SerializeToString() == before
    # Those that no rule is for are not this call's concern.
    assert mk.swap(model, {"elu": "h_mish"}).left == {}
    _, missed = survey(model)
    assert reason in map(str, missed)
