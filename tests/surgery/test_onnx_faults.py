"""ONNX: what is not the same function everywhere stays, and files outside stay unread."""

from __future__ import annotations

import os
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest

import mishkit as mk

onnx = pytest.importorskip("onnx")
ir = pytest.importorskip("onnx_ir")
ort = pytest.importorskip("onnxruntime")

from mishkit.surgery.onnx import sites  # noqa: E402

SAME = {name: name for name in mk.names()}
TINY = np.float32([0, 1e-38, 1e-20, 1e-7, 1e-3, 0.5, 1, 2, 5, 7, 20, 31, 49, 50, 51, 79, 80, 81])
FAR = np.float32([99, 100, 101, 1e3, 1e6, 1e7, 1e30, 3e38])
EXTREME = np.concatenate([TINY, FAR, -TINY, -FAR])


def model_of(body: str, opset: int = 20) -> Any:
    """Numbers in the body are written `#100`, and become constants."""
    constants = sorted({word for word in body.replace(",", " ").replace(")", " ").split()
                        if word.startswith("#")})  # fmt: skip
    nodes = ""
    for i, word in enumerate(constants):
        nodes += f"c{i} = Constant <value_float = {float(word[1:])!r}> () "
    for i, word in sorted(enumerate(constants), key=lambda pair: -len(pair[1])):
        body = body.replace(word, f"c{i}")
    return onnx.parser.parse_model(
        f'<ir_version: 9, opset_import: ["" : {opset}]> '
        f"model (float[N] x) => (float[N] y) {{ {nodes} {body} }}"
    )


def run(model: Any) -> Any:
    session = ort.InferenceSession(model.SerializeToString(), providers=["CPUExecutionProvider"])
    return session.run(None, {"x": EXTREME})[0]


def check_the_same(before: Any, after: Any) -> None:
    """But where there was an infinity or NaN."""
    finite = np.isfinite(before)
    np.testing.assert_allclose(after[finite], before[finite], rtol=2e-5, atol=2e-6)
    assert np.isfinite(after).all()


# ---- bounds, slopes and constants ----

BOUNDED = {
    "relu, clip": "r = Relu(x) y = Clip(r, #0, #100)",
    "relu, min": "r = Relu(x) y = Min(r, #50)",
    "clip alone": "y = Clip(x, #0, #100)",
    "clip at a million": "y = Clip(x, #0, #1000000)",
    "clip near the end of float32": "y = Clip(x, #0, #3.3e38)",
    "max and min": "m = Min(x, #1000) y = Max(m, #0)",
    "where": "b = Less(x, #500) r = Relu(x) y = Where(b, r, #500)",
    "a threshold of 2x + 1": (
        "m = Mul(x, #2) a = Add(m, #1) b = Greater(a, #99.5) r = Relu(x) y = Where(b, #0, r)"
    ),
    "far below": "b = Less(x, #-1000) r = Relu(x) y = Where(b, #-5, r)",
    "shrunk near 0": "b = Less(x, #0.001) r = Relu(x) y = Where(b, #0, r)",
    "softplus of a bounded input": "m = Min(x, #80) y = Softplus(m)",
    "softplus, bounded": "s = Softplus(x) y = Min(s, #80)",
    "silu of a bounded input": "m = Clip(x, #-1e9, #60) s = Sigmoid(m) y = Mul(m, s)",
    "mish, clipped": "s = Softplus(x) t = Tanh(s) m = Mul(x, t) y = Clip(m, #-1, #40)",
    "gelu, min": "e = Gelu(x) y = Min(e, #100)",
    "leaky, then not": "l = LeakyRelu <alpha = 0.1> (x) y = Max(l, #-50)",
}


@pytest.mark.parametrize("body", BOUNDED.values(), ids=list(BOUNDED))
def test_a_bound_far_out_is_part_of_the_function(body: str) -> None:
    model = model_of(body)
    spans = [(site.input.name, site.output.name) for site in sites(ir.from_proto(model))]
    assert ("x", "y") not in spans
    before = run(model)
    mk.swap(model, SAME)
    check_the_same(before, run(model))


JOINED = {
    "softplus": "e = Exp(x) a = Add(e, #1) y = Log(a)",
    "mish": "e = Exp(x) a = Add(e, #1) s = Log(a) t = Tanh(s) y = Mul(x, t)",
    "silu": "n = Neg(x) e = Exp(n) a = Add(e, #1) y = Div(x, a)",
    "gelu": "d = Div(x, #1.4142135) e = Erf(d) a = Add(e, #1) m = Mul(x, a) y = Mul(m, #0.5)",
    "hardswish": "a = Add(x, #3) c = Clip(a, #0, #6) m = Mul(x, c) y = Div(m, #6)",
    "gelu_tanh": (
        "p = Pow(x, #3) c = Mul(p, #0.044715) a = Add(x, c) s = Mul(a, #0.7978845) t = Tanh(s) "
        "b = Add(t, #1) m = Mul(x, b) y = Mul(m, #0.5)"
    ),
}


@pytest.mark.parametrize("function", JOINED)
def test_what_exporters_write_is_still_joined(function: str) -> None:
    model = model_of(JOINED[function])
    before = run(model)
    (done,) = mk.swap(model, SAME)
    assert done.old.startswith(f"{function} (")
    check_the_same(before, run(model))


@pytest.mark.parametrize(
    ("body", "known"),
    [
        ("m = Mul(x, #1.0001) s = Sigmoid(m) y = Mul(x, s)", "swish(beta=1.0001)"),
        ("m = Mul(x, #1.7) s = Sigmoid(m) y = Mul(x, s)", "swish(beta=1.7)"),
        ("m = Mul(x, #1.702) s = Sigmoid(m) y = Mul(x, s)", "quick_gelu"),
        ("d = Div(x, #5.0001) a = Add(d, #0.599988) c = Clip(a, #0, #1) y = Mul(x, c)",
         "hard_mish(k=5.0001)"),
        ("y = LeakyRelu <alpha = 0.0101> (x)", "leaky_relu(negative_slope=0.0101)"),
        # Of slope 1.0001 far out, and of other constants than GELU has.
        ("s = Sigmoid(x) m = Mul(x, s) y = Mul(m, #1.0001)", None),
        ("d = Div(x, #1.414) e = Erf(d) a = Add(e, #1) m = Mul(x, a) y = Mul(m, #0.5)", None),
    ],
)  # fmt: skip
def test_constants_are_told_apart(body: str, known: str | None) -> None:
    model = model_of(body)
    last = [str(site) for site in sites(ir.from_proto(model)) if site.output.name == "y"]
    assert [site.split(" (")[0] for site in last] == ([] if known is None else [known])


# ---- external data ----


def save_with_data(folder: Path, location: str, **extent: Any) -> Path:
    """A model whose weight of 24 bytes lies elsewhere."""
    weight = onnx.TensorProto(name="w", data_type=onnx.TensorProto.UINT8, dims=[24])
    weight.data_location = onnx.TensorProto.EXTERNAL
    for key, value in {"location": location, **extent}.items():
        weight.external_data.add(key=key, value=str(value))
    model = model_of("s = Sigmoid(x) y = Mul(x, s)")
    model.graph.initializer.append(weight)
    model.graph.output.append(onnx.helper.make_tensor_value_info("w", 2, [24]))
    (folder / "old.onnx").write_bytes(model.SerializeToString())
    return folder / "old.onnx"


@pytest.fixture
def folder(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """A model's folder, with a file outside of it; the working directory, too."""
    inside = tmp_path / "models"
    inside.mkdir()
    (tmp_path / "secret").write_bytes(b"S" * 1000)
    (inside / "old.data").write_bytes(b"D" * 1000)
    monkeypatch.chdir(inside)
    return inside


OUTSIDE: dict[str, tuple[Callable[[Path], Any], str]] = {
    "..": (lambda folder: "../secret", "outside of the model's folder"),
    ".. within": (lambda folder: "a/../../secret", "outside of the model's folder"),
    "absolute": (lambda folder: str(folder.parent / "secret"), "outside of the model's folder"),
    "..\\": (lambda folder: "..\\secret", "outside of the model's folder"),
    "C:\\": (lambda folder: "C:\\secret", "outside of the model's folder"),
    "a link": (
        lambda folder: os.symlink("../secret", folder / "link") or "link",
        "a link to outside",
    ),
    "a folder's link": (
        lambda folder: os.symlink("..", folder / "up") or "up/secret",
        "a link to outside",
    ),
    "a hard link": (lambda folder: os.link("../secret", folder / "hard") or "hard", "a hard link"),
    "empty": (lambda folder: "", "that is no path"),
    "NUL": (lambda folder: "old.data\0", "that is no path"),
    "a folder": (lambda folder: ".", "where there is no file"),
}


@pytest.mark.parametrize("relative", [True, False], ids=["relative", "absolute"])
@pytest.mark.parametrize("kind", OUTSIDE)
def test_data_outside_of_the_folder_is_refused(kind: str, relative: bool, folder: Path) -> None:
    make, message = OUTSIDE[kind]
    path = save_with_data(folder, make(folder))
    given = Path(path.name) if relative else path
    before = sorted(os.listdir(folder))
    with pytest.raises(ValueError, match=r"^mishkit\.swap: .*'w' can't be read from") as caught:
        mk.swap(given, {"silu": "mish"}, output="new.onnx")
    assert message in str(caught.value) and "\n" not in str(caught.value)
    assert sorted(os.listdir(folder)) == before


def test_data_is_checked_wherever_it_stands(folder: Path) -> None:
    model = onnx.load(save_with_data(folder, "../secret"), load_external_data=False)
    weight = onnx.TensorProto()
    weight.CopyFrom(model.graph.initializer[0])
    places = {
        "sparse": lambda proto: proto.graph.sparse_initializer.add().values.CopyFrom(weight),
        "training": lambda proto: proto.training_info.add().algorithm.initializer.append(weight),
        "attribute": lambda proto: (
            proto.graph.node[0].attribute.add(name="a", type=4).t.CopyFrom(weight)
        ),
        "function": lambda proto: (
            proto.functions.add(name="f", domain="d")
            .node.add(op_type="Constant")
            .attribute.add(name="value", type=4)
            .t.CopyFrom(weight)
        ),
    }
    os.mkdir("other")
    del model.graph.initializer[:]
    for put in places.values():
        hostile = onnx.ModelProto()
        hostile.CopyFrom(model)
        put(hostile)
        Path("old.onnx").write_bytes(hostile.SerializeToString())
        for output in ("new.onnx", "other/new.onnx"):
            with pytest.raises(ValueError, match=r"^mishkit\.swap: .* can't be read"):
                mk.swap("old.onnx", {"silu": "mish"}, output=output)
    assert sorted(os.listdir()) == ["old.data", "old.onnx", "other"] and not os.listdir("other")


@pytest.mark.parametrize(
    "extent", [{"offset": 980}, {"offset": 5000, "length": 24}, {"length": 5}, {"length": 2000},
               {"offset": -1}, {"length": "much"}]
)  # fmt: skip
def test_data_beyond_the_file_is_refused(extent: dict[str, Any], folder: Path) -> None:
    path = save_with_data(folder, "old.data", **extent)
    with pytest.raises(ValueError, match=r"^mishkit\.swap: [^\n]* can't be read[^\n]*$"):
        mk.swap(path, {"silu": "mish"}, output=folder / "new.onnx")
    assert sorted(os.listdir(folder)) == ["old.data", "old.onnx"]


@pytest.mark.parametrize("dims", [[-8], [-8, -2], [1 << 62, 4]])
def test_shapes_that_no_data_has_are_refused(dims: list[int], folder: Path) -> None:
    model = onnx.load(save_with_data(folder, "old.data"), load_external_data=False)
    model.graph.initializer[0].dims[:] = dims
    Path("old.onnx").write_bytes(model.SerializeToString())
    os.mkdir("other")
    with pytest.raises(ValueError, match=r"^mishkit\.swap: [^\n]* can't be read[^\n]*$"):
        mk.swap("old.onnx", {"silu": "mish"}, output="other/new.onnx")


def test_data_inside_is_read_by_a_link_too(folder: Path) -> None:
    os.symlink("old.data", "link")
    os.mkdir("other")
    mk.swap(save_with_data(folder, "link", offset=8), {"silu": "mish"}, output="other/new.onnx")
    (weight,) = onnx.load("other/new.onnx").graph.initializer
    assert onnx.numpy_helper.to_array(weight).tobytes() == b"D" * 24


def test_models_in_memory_read_nothing_outside(folder: Path) -> None:
    proto = onnx.load(save_with_data(folder, "../secret"), load_external_data=False)
    with pytest.raises(ValueError, match="in memory without its external data"):
        mk.swap(proto, {"silu": "mish"}, output="new.onnx")
    opened = ir.load("old.onnx")
    with pytest.raises(ValueError, match="outside of the model's folder"):
        mk.swap(opened, {"silu": "mish"}, output="new.onnx")
    assert sorted(os.listdir(folder)) == ["old.data", "old.onnx"]


def test_output_stays_in_its_folder_and_is_whole(
    folder: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    weights = np.arange(1000, dtype=np.float32)
    model = model_of("s = Sigmoid(x) y = Mul(x, s)")
    model.graph.initializer.append(onnx.numpy_helper.from_array(weights, "w"))
    model.graph.output.append(onnx.helper.make_tensor_value_info("w", 1, [1000]))
    onnx.save(model, "old.onnx", save_as_external_data=True, location="weights.data")
    # In its own folder, data stays where it is.
    mk.swap("old.onnx", {"silu": "mish"}, output="same.onnx")
    assert sorted(os.listdir(folder)) == ["old.data", "old.onnx", "same.onnx", "weights.data"]
    os.mkdir("other")
    # What lies where the data will be is replaced; what it links to stays.
    os.symlink("../../secret", "other/new.onnx.data")
    mk.swap("old.onnx", {"silu": "mish"}, output="other/new.onnx")
    assert Path("../secret").read_bytes() == b"S" * 1000
    assert not Path("other/new.onnx.data").is_symlink()
    mk.swap("other/new.onnx", {"mish": "relu"}, output="other/new.onnx")
    for name in ("same.onnx", "other/new.onnx"):
        (weight,) = onnx.load(name).graph.initializer
        np.testing.assert_array_equal(onnx.numpy_helper.to_array(weight), weights)

    before = Path("other/new.onnx").read_bytes(), Path("other/new.onnx.data").read_bytes()
    names = sorted(os.listdir("other"))

    def fail(*args: Any, **options: Any) -> None:
        Path(args[1]).write_bytes(b"half")
        raise OSError(28, "No space left on device")

    monkeypatch.setattr(onnx, "save_model", fail)
    with pytest.raises(OSError, match="No space left"):
        mk.swap("old.onnx", {"silu": "mish"}, output="other/new.onnx")
    after = Path("other/new.onnx").read_bytes(), Path("other/new.onnx.data").read_bytes()
    assert after == before and sorted(os.listdir("other")) == names
    with pytest.raises(ValueError, match="is not a file"):
        mk.swap("old.onnx", {"silu": "mish"}, output=folder)


def test_weights_beyond_what_a_file_takes_are_put_beside_it(
    folder: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    model = model_of("s = Sigmoid(x) y = Mul(x, s)")
    weights = np.arange(1000, dtype=np.float32)
    model.graph.initializer.append(onnx.numpy_helper.from_array(weights, "w"))
    monkeypatch.setattr("mishkit.surgery.onnx.files._LARGEST_FILE", 3000)
    mk.swap(ir.from_proto(model), {"silu": "mish"}, output="new.onnx")
    assert Path("new.onnx.data").stat().st_size >= 4000
    (weight,) = onnx.load("new.onnx").graph.initializer
    np.testing.assert_array_equal(onnx.numpy_helper.to_array(weight), weights)


def test_data_that_is_not_there_concerns_only_who_needs_it(folder: Path) -> None:
    path = save_with_data(folder, "lost.data")
    os.mkdir("other")
    assert mk.swap(path, {"silu": "mish"}, output="new.onnx").left == {}
    done = mk.swap(path, {"silu": "mish"}, output="other/new.onnx")
    assert len(done) == 1 and done.left == {"w": "its data in 'lost.data' is not there"}
    weights = [onnx.load(name, load_external_data=False).graph.initializer[0]
               for name in ("old.onnx", "new.onnx", "other/new.onnx")]  # fmt: skip
    assert weights[0] == weights[1] == weights[2]
