"""Models with our activations in ONNX, and the activations of ONNX models."""

from __future__ import annotations

import copy
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
import torch.nn.functional as F
from torch import Tensor, nn

import mishkit as mk

onnx = pytest.importorskip("onnx")
ir = pytest.importorskip("onnx_ir")
helper = pytest.importorskip("onnx.helper")
ort = pytest.importorskip("onnxruntime")
pytest.importorskip("onnxscript")

from mishkit.surgery.onnx import sites  # noqa: E402

NAMES = mk.names()


def run(model: Any, *inputs: Tensor) -> list[Tensor]:
    """What ONNX Runtime computes."""
    proto = ir.to_proto(model) if isinstance(model, ir.Model) else model
    session = ort.InferenceSession(proto.SerializeToString(), providers=["CPUExecutionProvider"])
    named = {given.name: x.numpy() for given, x in zip(session.get_inputs(), inputs, strict=True)}
    return [torch.from_numpy(y) for y in session.run(None, named)]


def exported(model: nn.Module, x: Tensor, **options: Any) -> Any:
    """As a user exports it."""
    with torch.no_grad():
        return torch.onnx.export(model.eval(), (x,), dynamo=True, verbose=False, **options)


class Side(nn.Module):
    """Modules side by side, so that one export does for all."""

    def __init__(self, *modules: nn.Module) -> None:
        super().__init__()
        self.all = nn.ModuleList(modules)

    def forward(self, x: Tensor) -> tuple[Tensor, ...]:
        # Each with an offset, or the exporter joins what is common to them.
        return tuple(module(x + (i + 1)) for i, module in enumerate(self.all))


def operators(output: Any) -> list[str]:
    """The types of the nodes that an output comes from, without that of the offset."""
    node = output.producer()
    if node is None or (node.op_type == "Add" and node.inputs[0].is_graph_input()):
        return []
    types = [type_ for value in node.inputs if value is not None for type_ in operators(value)]
    return [*types, node.op_type]


# ---- export ----

STANDARD = {
    "relu": "Relu",
    "relu6": "Clip",
    "leaky_relu": "LeakyRelu",
    "elu": "Elu",
    "softplus": "Greater Softplus Where",
    "silu": "Sigmoid Mul",
    "gelu": "Gelu",
    "gelu_tanh": "Gelu",
    "mish": "Mish",
    "h_mish": "Mul Add Clip Mul",
    "hard_mish": "Add Clip Div Mul",
    "hardswish": "HardSwish",
    "swish": "Sigmoid Mul",
    "piecewise_swish": "Greater Mul Where Sigmoid Mul",
    "linear_swish": "Greater Mul Mul Sigmoid Mul Where",
    "aptx": "Tanh Add Mul Mul",
}
OTHERS: dict[str, Callable[[], nn.Module]] = {
    "hard_mish, k=6": lambda: mk.HardMish(6),
    "hard_mish, k=3": lambda: mk.HardMish(3),
    "softplus, beta=2": lambda: mk.Softplus(2),
    "gelu, tanh": lambda: mk.GELU(approximate="tanh"),
    "swish, trained": lambda: mk.Swish(1.3, trainable=True),
    "swish, trained by channel": lambda: mk.Swish(1.3, trainable=True, num_parameters=4),
    "aptx, trained": lambda: mk.APTx(trainable=True),
    "aptx, trained by channel": lambda: mk.APTx(1.1, trainable=True, num_parameters=4),
    "mish, from the output": lambda: mk.Mish(save="output"),
    "aptx, from the output": lambda: mk.APTx(save="output"),
    "mish, in place": lambda: mk.Mish(inplace=True),
    "aptx, in place": lambda: mk.APTx(inplace=True),
    "aptx layer": lambda: mk.APTxLayer(5, 7, init="scaled"),
    "aptx neuron": lambda: mk.APTxNeuron(5, init="scaled"),
}


@pytest.mark.parametrize(
    ("dtype", "tolerance"), [(torch.float32, 3e-6), (torch.float16, 4e-3)], ids=str
)
def test_everything_exports_and_runs_in_onnx_runtime(dtype: torch.dtype, tolerance: float) -> None:
    plain = [mk.get(name) for name in NAMES]
    variants = [make() for make in OTHERS.values()]
    model = Side(*plain, *variants).to(dtype)
    batch = torch.export.Dim.DYNAMIC
    example = torch.randn(3, 4, 5, dtype=dtype)
    program = exported(model, example, dynamic_shapes=({0: batch},))
    assert set(program.model.opset_imports) == {""}
    outputs = program.model.graph.outputs
    names = [*NAMES, *OTHERS]
    if dtype == torch.float32:
        written = {n: " ".join(operators(y)) for n, y in zip(NAMES, outputs, strict=False)}
        assert {name: written[name] for name in STANDARD} == STANDARD
        assert operators(outputs[names.index("hard_mish, k=6")]) == ["HardSwish"]
    x = 2 * torch.randn(6, 4, 5, dtype=dtype) - len(names) / 2  # but for the offsets
    with torch.no_grad():
        want = model(x.clone())
    for name, y, right in zip(names, run(program.model, x), want, strict=True):
        torch.testing.assert_close(
            y, right, rtol=tolerance, atol=tolerance, msg=lambda m, n=name: n + m
        )


class Network(nn.Module):
    def __init__(self, act: Callable[[], nn.Module]) -> None:
        super().__init__()
        self.conv = nn.Sequential(nn.Conv2d(3, 8, 3), nn.BatchNorm2d(8), act(), nn.MaxPool2d(2))
        self.encoder = nn.TransformerEncoderLayer(8, 2, 16, activation=F.gelu, batch_first=True)
        self.head = nn.Sequential(nn.Linear(8, 8), act(), nn.Linear(8, 2))

    def forward(self, x: Tensor) -> Tensor:
        x = self.conv(x).flatten(2).mT
        return self.head(self.encoder(x).mean(1))


def test_a_network_is_swapped_exported_and_run_and_its_file_swapped_again(tmp_path: Path) -> None:
    model = Network(nn.SiLU).eval()
    mk.swap(model, {"silu": ("mish", {"save": "output"}), "gelu": "hard_mish:k=6"})
    x = torch.randn(2, 3, 8, 8)
    program = exported(model, x)
    types = [node.op_type for node in program.model.graph]
    assert types.count("Mish") == 2 and types.count("HardSwish") == 1
    with torch.no_grad():
        torch.testing.assert_close(run(program.model, x)[0], model(x), rtol=1e-4, atol=1e-5)
    program.save(tmp_path / "old.onnx")

    done = mk.swap(tmp_path / "old.onnx", {"mish": "h_mish"}, output=tmp_path / "new.onnx")
    assert [site.new for site in done] == ["h_mish (HardSigmoid, Mul)"] * 2
    mk.unswap(model)
    mk.swap(model, {"silu": "h_mish", "gelu": "hardswish"})
    got = run(onnx.load(tmp_path / "new.onnx"), x)[0]
    with torch.no_grad():
        torch.testing.assert_close(got, model(x), rtol=1e-4, atol=1e-5)


# ---- recognising ----


def parsed(body: str, *, opset: int = 18, constants: str = "", outputs: str = "y") -> Any:
    given = ", ".join(f"float[N, 4] {name}" for name in outputs.split())
    return onnx.parser.parse_model(
        f'<ir_version: 8, opset_import: ["" : {opset}]> '
        f"model (float[N, 4] x) => ({given}) {constants} {{ {body} }}"
    )


def named_sites(model: Any) -> list[str]:
    return [str(site) for site in sites(ir.from_proto(model))]


ERF = "r = Constant <value_float = 1.41421356> () d = Div(x, r) e = Erf(d) "
ONE = "one = Constant <value = float {1}> () half = Constant <value = float {0.5}> () "
FORMS = {
    "mish (Softplus, Tanh, Mul)": "s = Softplus(x) t = Tanh(s) y = Mul(x, t)",
    "mish (Exp, Add, Log, Tanh, Mul)": (
        ONE + "e = Exp(x) a = Add(one, e) s = Log(a) t = Tanh(s) y = Mul(t, x)"
    ),
    "mish (Mish)": "y = Mish(x)",
    "silu (Sigmoid, Mul)": "s = Sigmoid(x) y = Mul(s, x)",
    "hardswish (HardSwish)": "y = HardSwish(x)",
    "hardswish (HardSigmoid, Mul)": (
        "s = HardSigmoid <alpha = 0.16666667, beta = 0.5> (x) y = Mul(x, s)"
    ),
    "relu (Relu)": "y = Relu(x)",
    "softplus (Softplus)": "y = Softplus(x)",
    "softplus(beta=2) (Mul, Softplus, Mul)": (
        "two = Constant <value = float {2}> () half = Constant <value_float = 0.5> ()"
        "m = Mul(two, x) s = Softplus(m) y = Mul(s, half)"
    ),
    "gelu (Div, Erf, Add, Mul, Mul)": ONE + ERF + "a = Add(e, one) h = Mul(a, half) y = Mul(x, h)",
    "swish(beta=1.7) (Mul, Sigmoid, Mul)": (
        "c = Constant <value_float = 1.7> () m = Mul(x, c) s = Sigmoid(m) y = Mul(x, s)"
    ),
    "quick_gelu (Mul, Sigmoid, Mul)": (
        "c = Constant <value_float = 1.702> () m = Mul(x, c) s = Sigmoid(m) y = Mul(x, s)"
    ),
    "relu2 (Relu, Mul)": "r = Relu(x) y = Mul(r, r)",
    "relu2 (Relu, Pow)": "two = Constant <value_float = 2.0> () r = Relu(x) y = Pow(r, two)",
    "hard_mish(k=3) (HardSigmoid, Mul)": (
        "s = HardSigmoid <alpha = 0.33333333, beta = 1.0> (x) y = Mul(x, s)"
    ),
    "h_mish (HardSigmoid, Mul)": "s = HardSigmoid <alpha = 0.5, beta = 1.0> (x) y = Mul(x, s)",
    "leaky_relu(negative_slope=0.2) (LeakyRelu)": "y = LeakyRelu <alpha = 0.2> (x)",
    "elu(alpha=0.7) (Elu)": "y = Elu <alpha = 0.7> (x)",
    "tanh (Tanh)": "y = Tanh(x)",
    "selu (Selu)": "y = Selu(x)",
}


@pytest.mark.parametrize(("form", "body"), FORMS.items(), ids=list(FORMS))
def test_a_site_is_known_by_what_it_computes(form: str, body: str) -> None:
    assert named_sites(parsed(body)) == [form]


GELU_ORDERS = [
    "a = Add(one, e) m = Mul(x, a) y = Mul(m, half)",
    "a = Add(e, one) m = Mul(a, x) y = Mul(half, m)",
    "h = Mul(x, half) a = Add(e, one) y = Mul(h, a)",
    "a = Add(e, one) h = Mul(half, x) y = Mul(a, h)",
    "m = Mul(e, half) a = Add(m, half) y = Mul(a, x)",
]


@pytest.mark.parametrize("order", GELU_ORDERS)
def test_gelu_is_known_in_every_order(order: str) -> None:
    (site,) = named_sites(parsed(ONE + ERF + order))
    assert site.startswith("gelu (")
    # And with the constants as initialisers, one of them with a dimension.
    constants = "<float r = {1.4142135}, float[1] one = {1}, float half = {0.5}>"
    (site,) = named_sites(parsed("d = Div(x, r) e = Erf(d) " + order, constants=constants))
    assert site.startswith("gelu (")


def test_gelu_s_two_forms_are_told_apart_with_constants_in_float16() -> None:
    body = (
        "q = Pow(x, three) c = Mul(q, slope) a = Add(x, c) s = Mul(a, root) t = Tanh(s) "
        "b = Add(t, one) m = Mul(x, b) y = Mul(m, half)"
    )
    constants = (
        "<float three = {3}, float slope = {0.044715}, float root = {0.797884}, "
        "float one = {1}, float half = {0.5}, float r = {1.4142135}>"
    )
    erf = "d = Div(x, r) e = Erf(d) b = Add(e, one) m = Mul(x, b) y = Mul(m, half)"
    for text, form in ((body, "gelu_tanh"), (erf, "gelu")):
        model = parsed(text, constants=constants)
        for constant in model.graph.initializer:
            value = onnx.numpy_helper.to_array(constant).astype("float16")
            constant.CopyFrom(onnx.numpy_helper.from_array(value, constant.name))
        (site,) = named_sites(model)
        assert site.startswith(f"{form} (")


def test_gelu_s_two_nodes_are_told_apart() -> None:
    assert named_sites(parsed("y = Gelu(x)", opset=20)) == ["gelu (Gelu)"]
    tanh = 'y = Gelu <approximate = "tanh"> (x)'
    assert named_sites(parsed(tanh, opset=20)) == ["gelu_tanh (Gelu)"]


MISH = "s = Softplus(x) t = Tanh(s) y = Mul(x, t)"


@pytest.mark.parametrize(
    ("body", "options", "left"),
    [
        (MISH + " z = Exp(s)", {"outputs": "y z"}, ["softplus (Softplus)", "tanh (Tanh)"]),
        (MISH, {"outputs": "y t"}, ["softplus (Softplus)", "tanh (Tanh)"]),
        ("s = Sigmoid(x) z = Exp(x) y = Mul(z, s)", {}, ["sigmoid (Sigmoid)"]),
        # What may be given at each run is no constant; nor is one value a channel.
        ("m = Mul(x, c) s = Sigmoid(m) y = Mul(x, s)",
         {"constants": "<float[4] c = {1, 1, 1, 1}>"}, ["sigmoid (Sigmoid)"]),
        # 2·silu and a line are nothing we know.
        ("c = Constant <value_float = 2.0> () s = Sigmoid(x) m = Mul(c, x) y = Mul(s, m)", {},
         ["sigmoid (Sigmoid)"]),
        ("c = Constant <value_float = 2.0> () y = Mul(c, x)", {}, []),
    ],
)  # fmt: skip
def test_what_others_see_or_is_no_function_of_one_value_is_left(
    body: str, options: dict[str, Any], left: list[str]
) -> None:
    assert named_sites(parsed(body, **options)) == left
    model = parsed(body, **options)
    assert mk.swap(model, {"mish": "hardswish", "silu": "mish"}) == []
    assert model == parsed(body, **options)


def test_a_default_of_an_input_is_no_constant() -> None:
    model = onnx.parser.parse_model(
        '<ir_version: 8, opset_import: ["" : 18]> model (float[N, 4] x, float c = {1}) '
        "=> (float[N, 4] y) { m = Mul(x, c) s = Sigmoid(m) y = Mul(x, s) }"
    )
    assert named_sites(model) == ["sigmoid (Sigmoid)"]


# ---- writing ----


@pytest.mark.parametrize("opset", [9, 11, 14, 18, 20, 24])
def test_everything_can_be_written_in_every_opset(opset: int) -> None:
    rules = {**{name: name for name in NAMES}, "more": "hard_mish:k=3", "swish_2": mk.Swish(2.7)}
    rules |= {"aptx_2": ("aptx", {"alpha": 0.75, "beta": 1.25}), "softplus_2": "softplus:beta=2"}
    # Two in a row, so that what one gives is what the other takes.
    model = helper.make_model(
        helper.make_graph(
            [
                node
                for name in rules
                for node in (
                    helper.make_node("Relu", ["x"], [f"m_{name}"], f"first_{name}"),
                    helper.make_node("Neg", ["x"], [f"n_{name}"]),
                    helper.make_node("Add", [f"m_{name}", f"n_{name}"], [f"a_{name}"]),
                    helper.make_node("Relu", [f"a_{name}"], [f"b_{name}"], f"second_{name}"),
                    helper.make_node("Relu", [f"b_{name}"], [f"y_{name}"], f"third_{name}"),
                )
            ],
            "chains",
            [helper.make_tensor_value_info("x", 1, ["N"])],
            [helper.make_tensor_value_info(f"y_{name}", 1, ["N"]) for name in rules],
        ),
        opset_imports=[helper.make_opsetid("", opset)],
        ir_version=8 if opset < 24 else 10,
    )
    done = mk.swap(
        model,
        {
            f"{place}_{name}": value
            for name, value in rules.items()
            for place in ("second", "third")
        },
    )
    changed = [name for name in rules if name != "relu"]
    assert [site.name for site in done] == [
        f"{place}_{name}" for name in changed for place in ("second", "third")
    ]
    has = {node.op_type for node in model.graph.node}
    assert ("Mish" in has, "HardSwish" in has) == (opset >= 18, opset >= 14)
    assert ("Gelu" in has, "Swish" in has, "Erf" in has) == (opset >= 20, opset >= 24, opset < 20)
    # Nothing is any shorter; parameters stay as they are.
    assert mk.swap(model, {name: name for name in NAMES}) == []
    x = torch.linspace(-9, 9, 997)
    for (name, value), y in zip(rules.items(), run(model, x), strict=True):
        act = value if isinstance(value, nn.Module) else _module(value)
        want = act(act(torch.relu(x) - x))
        torch.testing.assert_close(y, want, rtol=1e-5, atol=2e-6, msg=lambda m, n=name: n + m)


def _module(value: Any) -> nn.Module:
    if isinstance(value, tuple):
        return mk.get(value[0], **value[1])
    name, _, assignment = value.partition(":")
    parameter, _, number = assignment.partition("=")
    return mk.get(name, **{parameter: float(number)} if assignment else {})


def test_float64_has_no_hard_sigmoid_and_keeps_its_type() -> None:
    x = torch.linspace(-5, 5, 101, dtype=torch.float64)
    model = onnx.parser.parse_model(
        '<ir_version: 8, opset_import: ["" : 22]> model (double[N] x) => (double[N] y) '
        "{ y = Relu(x) }"
    )
    mk.swap(model, {"relu": "h_mish"})
    torch.testing.assert_close(run(model, x)[0], mk.h_mish(x))


# ---- replacing ----


def test_what_an_exporter_took_apart_is_joined_once_and_names_stay() -> None:
    body = "[first] r = Neg(x) s = Softplus(r) t = Tanh(s) [last] m = Mul(r, t) [n] y = Neg(m)"
    model = parsed(body)
    done = mk.swap(model, {"mish": "mish", "gelu": "gelu"})
    assert [(site.name, site.old, site.new) for site in done] == [
        ("last", "mish (Softplus, Tanh, Mul)", "mish (Mish)")
    ]
    assert done.unused == ("gelu",)
    (mish,) = (node for node in model.graph.node if node.op_type == "Mish")
    assert (mish.name, list(mish.input), list(mish.output)) == ("last", ["r"], ["m"])
    x = torch.randn(3, 4)
    torch.testing.assert_close(run(model, x)[0], -F.mish(-x))
    assert mk.swap(model, {"mish": "mish"}) == []
    # In an older opset there is nothing shorter than what is there.
    assert mk.swap(parsed(body, opset=17), {"mish": "mish"}) == []


def test_constants_go_where_nothing_else_uses_them() -> None:
    body = "d = Div(x, r) e = Erf(d) a = Add(e, one) m = Mul(x, a) h = Mul(m, half) y = Add(h, one)"
    model = parsed(body, constants="<float r = {1.4142135}, float one = {1}, float half = {0.5}>")
    x = torch.randn(3, 4)
    want = run(model, x)[0]
    mk.swap(model, {"gelu": "gelu_tanh"})
    assert {constant.name for constant in model.graph.initializer} == {"one"}
    torch.testing.assert_close(run(model, x)[0], want, rtol=0, atol=1e-3)


NESTED = """<ir_version: 9, opset_import: ["" : 18, "local" : 1]>
model (float[N, 4] x, bool c) => (float[N, 4] y)
{
    r = Neg(x)
    z = If (c) <
        then_branch = yes () => (float[N, 4] a) { s = Sigmoid(r) a = Mul(r, s) },
        else_branch = no () => (float[N, 4] b) { b = local.Act(r) }
    >
    y = Relu(z)
}
<domain: "local", opset_import: ["" : 17]>
Act (u) => (v) { p = Softplus(u) q = Tanh(p) v = Mul(q, u) }
"""


def test_subgraphs_and_functions_are_rewritten_in_their_own_opset() -> None:
    model = onnx.parser.parse_model(NESTED)
    assert sorted(named_sites(model)) == [
        "mish (Softplus, Tanh, Mul)", "relu (Relu)", "silu (Sigmoid, Mul)"
    ]  # fmt: skip
    rules = {"silu": "mish", "mish": "linear_swish", "relu": "mish"}
    assert len(mk.swap(model, rules)) == 3
    assert "Mish" not in {node.op_type for node in model.functions[0].node}
    x = torch.randn(3, 4)
    for condition, act in ((True, mk.mish), (False, mk.linear_swish)):
        (y,) = run(model, x, torch.tensor(condition))
        torch.testing.assert_close(y, mk.mish(act(-x)), rtol=1e-5, atol=1e-6)


def test_files_and_models_of_every_kind(tmp_path: Path) -> None:
    weight = torch.randn(4, 4)
    model = parsed(MISH.replace("y =", "m =") + " y = MatMul(m, w)")
    model.graph.initializer.append(onnx.numpy_helper.from_array(weight.numpy(), "w"))
    x = torch.randn(3, 4)
    want = mk.hardswish(x) @ weight
    path, data = tmp_path / "old.onnx", {"save_as_external_data": True, "size_threshold": 0}
    onnx.save(copy.deepcopy(model), path, location="old.data", **data)
    before = path.read_bytes()

    intermediate = ir.from_proto(model)
    mk.swap(intermediate, {"mish": "hardswish"})
    torch.testing.assert_close(run(intermediate, x)[0], want)
    (tmp_path / "elsewhere").mkdir()
    for output in (tmp_path / "new.onnx", tmp_path / "elsewhere" / "new.onnx"):
        mk.swap(str(path), {"mish": "hardswish"}, output=output)
        (y,) = ort.InferenceSession(output, providers=["CPUExecutionProvider"]).run(
            None, {"x": x.numpy()}
        )
        torch.testing.assert_close(torch.from_numpy(y), want)
    assert path.read_bytes() == before
    mk.swap(path, {"mish": "hardswish"}, output=path)
    assert named_sites(onnx.load(path)) == ["hardswish (HardSwish)"]
    mk.swap(model, {"mish": "hardswish"}, output=str(tmp_path / "whole.onnx"))
    for swapped in (model, onnx.load(tmp_path / "whole.onnx")):
        torch.testing.assert_close(run(swapped, x)[0], want)


def test_a_pattern_is_for_the_name_of_a_node_or_the_path_of_its_module() -> None:
    model = nn.Sequential(nn.Sequential(nn.ReLU()), nn.Linear(4, 4), nn.Sequential(nn.ReLU()))
    program = exported(model, torch.randn(2, 4))
    names = [node.name for node in program.model.graph if node.op_type == "Relu"]
    (done,) = mk.swap(program, {"0.*": "mish"})
    assert (done.name, done.old, done.new) == (names[0], "relu (Relu)", "mish (Mish)")
    (done,) = mk.swap(program, {names[1]: "mish", "relu": "h_mish"})
    assert done.name == names[1] and done.new == "mish (Mish)"


@pytest.mark.parametrize(
    ("rules", "options", "message"),
    [
        ({"mish": "mash"}, {}, 'no activation "mash"; did you mean "mish"'),
        ({"mush": "mish"}, {}, "did you mean 'mish'"),
        ({"nothing.*": "mish"}, {}, "nor does any site"),
        ({nn.Mish: "mish"}, {}, "has no classes such as Mish"),
        ({"mish": nn.Tanh}, {}, "one of mishkit's activations"),
        ({"mish": lambda old: old}, {}, "one of mishkit's activations"),
        ({"mish": ("swish", {"trainable": True})}, {}, "numbers for parameters"),
        ({"mish": "silu"}, {"opset": 8}, "must be of 9 or later"),
    ],
)
def test_what_is_refused_leaves_the_model_as_it_is(
    rules: dict[Any, Any], options: dict[str, Any], message: str
) -> None:
    model = parsed(MISH, **options)
    with pytest.raises(ValueError, match=r"^mishkit\.swap: ") as caught:
        mk.swap(model, {"tanh": "mish", "mish": "silu", **rules})
    assert message in str(caught.value)
    assert model == parsed(MISH, **options)


def test_a_file_needs_an_output_and_other_things_are_no_models(tmp_path: Path) -> None:
    with pytest.raises(ValueError, match="needs output="):
        mk.swap(tmp_path / "model.onnx", {"mish": "silu"})
    with pytest.raises(TypeError, match="an ONNX model is needed, not GraphProto"):
        mk.swap(parsed(MISH).graph, {"mish": "silu"})
    with pytest.raises(FileNotFoundError):
        mk.swap(tmp_path / "none.onnx", {"mish": "silu"}, output=tmp_path / "new.onnx")


def test_without_the_extra_it_says_so(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    monkeypatch.setitem(sys.modules, "onnx", None)
    for name in [name for name in sys.modules if name.startswith("mishkit.surgery.onnx")]:
        monkeypatch.delitem(sys.modules, name)
    with pytest.raises(ModuleNotFoundError, match=r"needs onnx.* for this: pip install .*onnx"):
        mk.swap(tmp_path / "model.onnx", {"mish": "silu"}, output=tmp_path / "new.onnx")
