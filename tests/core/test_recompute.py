"""What is not kept is made again, bit by bit, and nothing is held longer than before."""

from __future__ import annotations

import gc
import itertools
import threading
from collections.abc import Callable
from contextlib import nullcontext
from typing import Any

import pytest
import torch
import torch.nn.functional as F
from torch import Tensor, nn
from torch._subclasses.fake_tensor import FakeTensorMode
from torch.autograd.graph import saved_tensors_hooks
from torch.multiprocessing.reductions import StorageWeakRef
from torch.utils._python_dispatch import TorchDispatchMode
from torch.utils.checkpoint import checkpoint

import mishkit as mk
from mishkit.functional import FUNCTIONS
from mishkit.recompute import context, recipes, recompute
from mishkit.recompute.handles import Bits, Handle, Kept, Leaf

Step = Callable[[Tensor, "Weights"], Tensor]


def needs_gpu(test: Callable[..., None]) -> Callable[..., None]:
    return pytest.mark.gpu(pytest.mark.skipif(not torch.cuda.is_available(), reason="no GPU")(test))


class Weights:
    """Parameters that the examples may use."""

    def __init__(self, dtype: torch.dtype) -> None:
        def one(*shape: int) -> Tensor:
            return torch.randn(shape, dtype=dtype).requires_grad_()

        self.scale, self.shift, self.slope = one(8), one(8), one(8)
        self.other, self.row, self.rows = one(12, 8, 8, 8), one(8), one(8)
        self.divisor = (torch.rand(12, 8, 8, 8, dtype=dtype) + 1).requires_grad_()


EXAMPLES: dict[str, Step] = {
    "SiluBackward0": lambda x, w: F.silu(x),
    "GeluBackward0": lambda x, w: F.gelu(x, approximate="tanh"),
    "MishBackward0": lambda x, w: F.mish(x),
    "HardswishBackward0": lambda x, w: F.hardswish(x),
    "HardsigmoidBackward0": lambda x, w: F.hardsigmoid(x),
    "SoftplusBackward0": lambda x, w: F.softplus(x, 2.0, 3.0),
    "HardtanhBackward0": lambda x, w: F.relu6(x),
    "LeakyReluBackward0": lambda x, w: F.leaky_relu(x, 0.2),
    "LeakyReluBackward1": lambda x, w: F.leaky_relu_(x * 1, 0.2),
    "EluBackward0": lambda x, w: F.selu(x),
    "EluBackward1": lambda x, w: F.selu_(x * 1),
    "CeluBackward0": lambda x, w: F.celu(x, 1.5),
    "CeluBackward1": lambda x, w: F.celu_(x * 1, 1.5),
    "ClampMinBackward0": lambda x, w: x.clamp_min(0.1),
    "ClampMaxBackward0": lambda x, w: x.clamp_max(0.1),
    "PreluKernelBackward0": lambda x, w: F.prelu(x, w.slope),
    "GluBackward0": lambda x, w: F.glu(x, -1),
    "ReluBackward0": lambda x, w: F.relu(x),
    "SigmoidBackward0": lambda x, w: torch.sigmoid(x),
    "TanhBackward0": lambda x, w: torch.tanh(x),
    "ExpBackward0": lambda x, w: torch.exp(x),
    "SqrtBackward0": lambda x, w: torch.sqrt(x.clamp(0.5, 3)),
    "RsqrtBackward0": lambda x, w: torch.rsqrt(x.clamp(0.5, 3)),
    "MulBackward0": lambda x, w: x * w.other,
    "DivBackward0": lambda x, w: x / w.divisor,
    "AddBackward0": lambda x, w: torch.add(x, w.other, alpha=3),
    "SubBackward0": lambda x, w: x - w.other,
    "NegBackward0": lambda x, w: -x,
    "PowBackward0": lambda x, w: x**2,
    "ClampBackward1": lambda x, w: x.clamp(-1, 0.5),
    "WhereBackward0": lambda x, w: torch.where(x > 0, x, w.other),
    "NativeDropoutBackward0": lambda x, w: torch.native_dropout(x, 0.3, True)[0],
    "CatBackward0": lambda x, w: torch.cat([x, w.other], -2),
    "StackBackward0": lambda x, w: torch.stack([x, w.other], -2),
    "IndexBackward0": lambda x, w: x[:, torch.tensor([2, 0, 2])],
    "EmbeddingBackward0": lambda x, w: F.embedding(torch.tensor([5, 0, 5]), w.other.view(12, -1)),
    "MmBackward0": lambda x, w: x.view(-1, 64) @ w.other.view(64, -1),
    "AddmmBackward0": lambda x, w: torch.addmm(w.row, x.view(-1, 64), w.other.view(64, -1)[:, :8]),
    "ToCopyBackward0": lambda x, w: x.to(torch.float16),
    "NativeBatchNormBackward0": lambda x, w: F.batch_norm(
        x, None, None, w.scale, w.shift, training=True
    ),
    "NativeLayerNormBackward0": lambda x, w: F.layer_norm(x, (8,), w.row, w.rows),
    "NativeGroupNormBackward0": lambda x, w: F.group_norm(x, 2, w.scale, w.shift),
    "AliasBackward0": lambda x, w: torch.ops.aten.alias(x),
    "CloneBackward0": lambda x, w: x.transpose(0, 1).contiguous(),
    "ViewBackward0": lambda x, w: x.view(2, -1),
    "UnsafeViewBackward0": lambda x, w: torch.ops.aten._unsafe_view(x, (2, -1)),
    "ReshapeAliasBackward0": lambda x, w: torch.ops.aten._reshape_alias(x, (768, 8), (8, 1)),
    "UnsqueezeBackward0": lambda x, w: x.unsqueeze(-2),
    "SqueezeBackward0": lambda x, w: x.unsqueeze(0).squeeze(),
    "SqueezeBackward1": lambda x, w: x.unsqueeze(0).squeeze(0),
    "SqueezeBackward2": lambda x, w: x.unsqueeze(0).squeeze((0, 1)),
    "ExpandBackward0": lambda x, w: x.unsqueeze(0).expand(2, *x.shape),
    "TBackward0": lambda x, w: x.view(2, -1).t(),
    "TransposeBackward0": lambda x, w: x.transpose(1, -1),
    "PermuteBackward0": lambda x, w: x.permute(0, 2, -1, 1),
    "SelectBackward0": lambda x, w: x.select(-1, -1),
    "SliceBackward0": lambda x, w: x[:, 1:7:2],
    "SplitBackward0": lambda x, w: x.split(4, 1)[1],
    "SplitWithSizesBackward0": lambda x, w: x.split([2, 6], 1)[1],
    "UnbindBackward0": lambda x, w: x.unbind(1)[5],
}
"""A call for each recipe, whose result that recipe makes."""


@pytest.fixture(autouse=True)
def _small_tensors_count(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(context, "LEAST_BYTES", 1024)


def gradients(function: Step, dtype: torch.dtype, within: Callable[[], Any]) -> list[Tensor]:
    """Of the input and of all weights, where silu is before the function and a product behind."""
    torch.manual_seed(0)
    x = torch.randn(12, 8, 8, 8, dtype=dtype).requires_grad_()
    weights = Weights(dtype)
    with within():
        y = function(F.silu(x), weights)
        factor = torch.ones_like(y).requires_grad_()
        out = (y * factor).float().square().sum()
    out.backward()
    leaves = [x, factor, *vars(weights).values()]
    return [leaf.grad for leaf in leaves if leaf.grad is not None]


def packed(function: Step, dtype: torch.dtype) -> tuple[Tensor, Any]:
    """The result, and what is kept of it."""
    torch.manual_seed(0)
    x = torch.randn(12, 8, 8, 8, dtype=dtype).requires_grad_()
    weights = Weights(dtype)
    with recompute():
        y = function(F.silu(x), weights)
        packer = context._Packer(None)
        packer.products = True
        return y, packer.pack(y)


@pytest.mark.parametrize("dtype", [torch.float32, torch.float64, torch.bfloat16], ids=str)
@pytest.mark.parametrize("name", EXAMPLES)
def test_recipes(name: str, dtype: torch.dtype) -> None:
    """The node still has that name, its output is not kept, and is made again as it was."""
    function = EXAMPLES[name]
    y = function(F.silu(torch.ones(12, 8, 8, 8, dtype=dtype).requires_grad_()), Weights(dtype))
    assert y.grad_fn is not None and y.grad_fn.name() == name
    y, kept = packed(function, dtype)
    rounds_otherwise = "Norm" in name and isinstance(kept, Kept)
    if not rounds_otherwise:
        assert isinstance(kept, Handle)
        again = kept.tensor()
        assert again.stride() == y.stride() and torch.equal(again, y)
    plain, ours = (gradients(function, dtype, w) for w in (nullcontext, recompute))
    assert len(plain) == len(ours)
    assert all(torch.equal(a, b) for a, b in zip(plain, ours, strict=True))


ON_GPUS: dict[str, Step] = {
    "CudnnBatchNormBackward0": lambda x, w: F.batch_norm(
        x, None, None, w.scale, w.shift, training=True
    ),
    "FusedRmsNormBackward0": lambda x, w: F.rms_norm(x, (8,), w.row),
}
"""The same of nodes that only GPUs have."""


def test_every_recipe_has_an_example() -> None:
    assert EXAMPLES.keys() | ON_GPUS.keys() == recipes._RECIPES.keys()


@pytest.mark.skipif(torch.version.cuda is None, reason="torch is built without CUDA")
@pytest.mark.parametrize("rounds_alike", [True, False])
@pytest.mark.parametrize("name", ON_GPUS)
def test_nodes_of_gpus(name: str, rounds_alike: bool, monkeypatch: pytest.MonkeyPatch) -> None:
    """Fake tensors have the nodes of a GPU. Whether the formulas round as its kernels do is seen on
    the GPU alone: where they do not, the output is kept.
    """
    monkeypatch.setattr(recipes, "_rounds_alike", lambda *_: rounds_alike)
    with FakeTensorMode(), torch.device("cuda"):
        x, weights = torch.randn(12, 8, 8, 8, requires_grad=True), Weights(torch.float32)
        with recompute():
            y = ON_GPUS[name](F.silu(x), weights)
            kept = context._Packer(None).pack(y)
        assert y.grad_fn is not None and y.grad_fn.name() == name
        assert isinstance(kept, Handle) == rounds_alike
        if rounds_alike:
            assert (kept.tensor().shape, kept.tensor().dtype) == (y.shape, y.dtype)


@needs_gpu
@pytest.mark.parametrize("name", ON_GPUS)
def test_recipes_of_gpus(name: str) -> None:
    """What is made again has the same bits, if it is not kept."""
    torch.manual_seed(0)
    with torch.device("cuda"):
        x, weights = torch.randn(12, 8, 8, 8, requires_grad=True), Weights(torch.float32)
        with recompute():
            y = ON_GPUS[name](F.silu(x), weights)
            kept = context._Packer(None).pack(y)
    assert y.grad_fn is not None and y.grad_fn.name() == name
    assert isinstance(kept, Kept) or torch.equal(kept.tensor(), y)


def test_normalisations_round_as_torchs_kernels_do() -> None:
    """Where they don't, nothing is wrong, but more is kept than the documentation says."""
    norms = recipes._again_batch, recipes._again_layer, recipes._again_group
    for again in (*norms, recipes._again_frozen_batch):
        assert recipes._rounds_alike(again, torch.float32, torch.float32, "cpu")


@pytest.mark.parametrize(
    "laid_out",
    [
        lambda x: x.contiguous(memory_format=torch.channels_last),
        lambda x: x.contiguous(memory_format=torch.channels_last)[:, :, 2:3],
        lambda x: x.view(12, 8, 2, 4, 8).contiguous(memory_format=torch.channels_last_3d),
        lambda x: x.transpose(-1, -2),
        lambda x: x.view(12, 8, -1),
    ],
    ids=["channels_last", "one row", "channels_last_3d", "transposed", "sequence"],
)
def test_group_norms_of_every_layout(laid_out: Callable[[Tensor], Tensor]) -> None:
    """For some layouts torch has other kernels, which round otherwise."""
    function: Step = lambda x, w: F.group_norm(laid_out(x), 2, w.scale, w.shift)  # noqa: E731
    y, kept = packed(function, torch.float32)
    assert isinstance(kept, Handle) and torch.equal(kept.tensor(), y)


@pytest.mark.parametrize("training", [True, False], ids=["training", "frozen"])
@pytest.mark.parametrize("dtype", [torch.float32, torch.float64, torch.bfloat16], ids=str)
@pytest.mark.parametrize(
    "laid_out",
    [
        lambda x: x.contiguous(memory_format=torch.channels_last),
        lambda x: x.transpose(-1, -2),
        lambda x: x.transpose(0, 1).contiguous().transpose(0, 1),
        lambda x: x.flatten(2).transpose(1, 2).contiguous().transpose(1, 2),
        lambda x: x.view(12, 8, 2, 4, 8).contiguous(memory_format=torch.channels_last_3d),
        lambda x: x.view(12, 8, 2, 4, 8).transpose(-1, -2),
        lambda x: x.permute(2, 3, 0, 1).reshape(-1, 8).t().contiguous().t(),
    ],
    ids=["channels_last", "transposed", "channels first", "tokens", "3d", "3d transposed", "rows"],
)
def test_batch_norms_of_every_layout(
    laid_out: Callable[[Tensor], Tensor], dtype: torch.dtype, training: bool
) -> None:
    """For inputs in an order that is no memory format torch has another kernel."""

    def norm(x: Tensor, w: Weights) -> Tensor:
        statistics = (w.row.detach(), w.row.detach() ** 2 + 0.3)
        return F.batch_norm(laid_out(x), *statistics, w.scale, w.shift, training=training)

    y, kept = packed(norm, dtype)
    assert isinstance(kept, Handle) and torch.equal(kept.tensor(), y)


@pytest.mark.parametrize("name", FUNCTIONS)
def test_our_own_functions(name: str) -> None:
    function: Step = lambda x, w: FUNCTIONS[name](x)  # noqa: E731
    y, kept = packed(function, torch.float32)
    assert isinstance(kept, Handle) and torch.equal(kept.tensor(), y)
    plain, ours = (gradients(function, torch.float32, w) for w in (nullcontext, recompute))
    assert all(torch.equal(a, b) for a, b in zip(plain, ours, strict=True))


NORMS: dict[str, Step] = {
    "batch": EXAMPLES["NativeBatchNormBackward0"],
    "frozen batch": lambda x, w: F.batch_norm(
        x, w.row.detach(), w.rows.detach() ** 2, w.scale, w.shift
    ),
    "group": EXAMPLES["NativeGroupNormBackward0"],
    "layer": EXAMPLES["NativeLayerNormBackward0"],
}


class Operators(TorchDispatchMode):
    """The names of the operators of ours that run."""

    def __init__(self) -> None:
        super().__init__()
        self.names: list[str] = []

    def __torch_dispatch__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        if func.namespace == "mishkit":
            self.names.append(func._schema.name.removeprefix("mishkit::"))
        return func(*args, **kwargs or {})


@pytest.mark.parametrize("options", [{}, {"save": "copy", "inplace": True}], ids=["", "in place"])
@pytest.mark.parametrize("norm", ["batch", "frozen batch", "group"])
@pytest.mark.parametrize("name", FUNCTIONS)
def test_a_function_behind_a_norm_takes_one_pass(
    name: str, norm: str, options: dict[str, Any]
) -> None:
    """Forward again and backward, from the norm's input; its output is never made."""
    function: Step = lambda x, w: FUNCTIONS[name](NORMS[norm](x, w), **options)  # noqa: E731
    plain = gradients(function, torch.float32, nullcontext)
    with Operators() as operators:
        ours = gradients(function, torch.float32, recompute)
    assert all(torch.equal(a, b) for a, b in zip(plain, ours, strict=True))
    assert operators.names[-2:] == ["affine", "affine_backward"]


def test_a_norm_with_two_readers_is_made_once() -> None:
    def function(x: Tensor, w: Weights) -> Tensor:
        y = NORMS["batch"](x, w)
        return mk.mish(y) * y

    plain = gradients(function, torch.float32, nullcontext)
    with Operators() as operators:
        ours = gradients(function, torch.float32, recompute)
    assert all(torch.equal(a, b) for a, b in zip(plain, ours, strict=True))
    assert operators.names.count("affine") <= 2


@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16], ids=str)
@pytest.mark.parametrize("norm", NORMS)
def test_norms_of_16_bits_with_weights_of_32(norm: str, dtype: torch.dtype) -> None:
    """As under autocast."""

    def function(x: Tensor, w: Weights) -> Tensor:
        return NORMS[norm](x.to(dtype), w)

    y, kept = packed(function, torch.float32)
    assert y.dtype == dtype
    if norm != "layer":  # which torch rounds otherwise for 16 bits
        assert isinstance(kept, Handle)
    if isinstance(kept, Handle):
        assert torch.equal(kept.tensor(), y)
    plain, ours = (gradients(function, torch.float32, w) for w in (nullcontext, recompute))
    assert all(torch.equal(a, b) for a, b in zip(plain, ours, strict=True))


def test_views_of_weights_stay_as_they_are() -> None:
    """Their memory stays anyway."""
    weight = torch.randn(64, 64).requires_grad_()
    with recompute():
        kept = context._Packer(None).pack(weight.t())
    assert isinstance(kept, Leaf) and kept.value().data_ptr() == weight.data_ptr()


class Square(torch.autograd.Function):
    @staticmethod
    def forward(ctx: Any, x: Tensor) -> Tensor:
        ctx.save_for_backward(x)
        return x * x

    @staticmethod
    def backward(ctx: Any, grad: Tensor) -> Tensor:
        (x,) = ctx.saved_tensors
        return 2 * x * grad


def test_recipes_of_users(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(recipes, "_RECIPES", dict(recipes._RECIPES))
    monkeypatch.setattr(recipes, "_by_class", {})
    function: Step = lambda x, w: Square.apply(x)  # noqa: E731
    assert isinstance(packed(function, torch.float32)[1], Kept)

    @mk.recompute.recipe("SquareBackward")
    def square(node: Any) -> Tensor:
        (x,) = node.saved_tensors
        return x * x

    y, kept = packed(function, torch.float32)
    assert isinstance(kept, Handle) and torch.equal(kept.tensor(), y)
    plain, ours = (gradients(function, torch.float32, w) for w in (nullcontext, recompute))
    assert all(torch.equal(a, b) for a, b in zip(plain, ours, strict=True))
    with pytest.raises(ValueError, match="a recipe for SquareBackward already"):
        mk.recompute.recipe("SquareBackward")


@pytest.mark.parametrize("inplace", [False, True])
def test_a_copy_of_the_input_is_not_kept(inplace: bool) -> None:
    def function(x: Tensor, w: Weights) -> Tensor:
        return mk.mish(x, inplace=inplace, save="copy")

    y, kept = packed(function, torch.float32)
    assert isinstance(kept, Handle) and torch.equal(kept.tensor(), y)
    plain, ours = (gradients(function, torch.float32, w) for w in (nullcontext, recompute))
    assert all(torch.equal(a, b) for a, b in zip(plain, ours, strict=True))


def test_our_trained_functions() -> None:
    beta = torch.rand(8).requires_grad_()
    function: Step = lambda x, w: mk.swish(x, beta=beta)  # noqa: E731
    y, kept = packed(function, torch.float32)
    assert isinstance(kept, Handle) and torch.equal(kept.tensor(), y)


@pytest.mark.parametrize("before", [F.silu, lambda x: x @ x.mT], ids=["silu", "product"])
@pytest.mark.parametrize(
    "function",
    [
        *(F.relu, torch.sigmoid, torch.tanh, torch.exp, torch.sqrt, torch.rsqrt),
        lambda x: torch.softmax(x, -1),
        lambda x: torch.relu_(x),
        lambda x: F.leaky_relu_(x, 0.2),
        lambda x: F.elu_(x, 1.5),
        lambda x: F.celu_(x, 1.5),
        lambda x: mk.relu(x * 1, inplace=True),
        lambda x: mk.mish(x, save="output"),
    ],
)
def test_an_output_is_never_made_from_itself(
    function: Callable[[Tensor], Tensor], before: Callable[[Tensor], Tensor]
) -> None:
    """But from its input, where that can be made; a product of matrices can't."""
    results = []
    for within in (nullcontext, recompute):
        x = torch.linspace(0.1, 0.5, 1024).view(32, 32).requires_grad_()
        with within():
            y = function(before(x))
            z = (y * F.mish(y)).sum()
        z.backward()
        results.append(x.grad)
    assert torch.equal(*results)


@pytest.mark.parametrize(
    ("module", "inplace"),
    [
        *itertools.product([nn.ReLU, nn.LeakyReLU, nn.ELU, nn.SELU, nn.CELU], [False, True]),
        (nn.ReLU6, False),  # in place, torch keeps a copy of its input
    ],
)
def test_an_activation_keeps_nothing_behind_a_norm(module: type[nn.Module], inplace: bool) -> None:
    def network() -> tuple[nn.Module, Tensor]:
        activation = module(inplace=inplace)
        layers = nn.Conv2d(3, 8, 1), nn.BatchNorm2d(8), activation, nn.Conv2d(8, 1, 1)
        return nn.Sequential(*layers), torch.randn(2, 3, 16, 16)

    assert alive(network, recompute) == 2 * 8 * 16 * 16 * 4 + 2 * 8 * 4


# ---- networks -------------------------------------------------------------------------------


class Residual(nn.Module):
    """x + f(x)."""

    def __init__(self, *layers: nn.Module) -> None:
        super().__init__()
        self.body = nn.Sequential(*layers)

    def forward(self, x: Tensor) -> Tensor:
        return x + self.body(x)


def convolutions() -> tuple[nn.Module, Tensor]:
    """conv → BN → act, and residuals of them."""

    def layers() -> list[nn.Module]:
        conv = nn.Conv2d(8, 8, 3, padding=1, bias=False)
        return [conv, nn.BatchNorm2d(8), nn.Mish(), nn.Dropout(0.1)]

    blocks = [Residual(*layers()) for _ in range(5)]
    net = nn.Sequential(nn.Conv2d(3, 8, 3), *blocks, nn.Flatten(), nn.Linear(8 * 64, 4))
    return net, torch.randn(4, 3, 10, 10)


def transformer() -> tuple[nn.Module, Tensor]:
    """Norms, attention, GELU, dropout."""
    layer = nn.TransformerEncoderLayer(32, 4, 64, activation="gelu", batch_first=True)
    return nn.TransformerEncoder(layer, 2, enable_nested_tensor=False), torch.randn(4, 12, 32)


NETWORKS = {"convolutions": convolutions, "transformer": transformer}
every_network = pytest.mark.parametrize("network", NETWORKS.values(), ids=list(NETWORKS))
Network = Callable[[], tuple[nn.Module, Tensor]]


def step(network: Network, within: Callable[[], Any], *, autocast: bool = False) -> list[Tensor]:
    """Output, gradients and buffers of a training step."""
    torch.manual_seed(1)
    net, x = network()
    x.requires_grad_()
    with within(), torch.autocast("cpu", enabled=autocast):
        y = net(x)
        loss = y.float().square().mean()
    loss.backward()
    assert x.grad is not None
    return [y, x.grad, *(p.grad for p in net.parameters() if p.grad is not None), *net.buffers()]


@every_network
@pytest.mark.parametrize("autocast", [False, True])
@pytest.mark.parametrize("layout", [torch.contiguous_format, torch.channels_last], ids=str)
def test_networks(network: Network, autocast: bool, layout: torch.memory_format) -> None:
    """Outputs, gradients and running statistics are the same, bit by bit."""

    def laid_out() -> tuple[nn.Module, Tensor]:
        net, x = network()
        return (net.to(memory_format=layout), x) if x.dim() == 4 else (net, x)

    plain = step(laid_out, nullcontext, autocast=autocast)
    ours = step(laid_out, recompute, autocast=autocast)
    assert all(torch.equal(a, b) for a, b in zip(plain, ours, strict=True))


def alive(network: Network, within: Callable[[], Any]) -> int:
    """Bytes that live between the passes, beyond parameters, buffers and the input."""
    net, x = network()
    exclude = [*net.parameters(), *net.buffers(), x]
    with mk.KeptBytes(exclude=exclude) as kept, within():
        net(x)
    return kept.total


@every_network
def test_less_is_kept(network: Network) -> None:
    """Of a convolution, a norm, an activation and a dropout, the convolution's output, the
    dropout's mask, and one sum in three."""
    assert alive(network, recompute) < 0.8 * alive(network, nullcontext)


def test_of_three_sums_in_a_row_one_is_kept() -> None:
    """Otherwise all of a residual network would depend on its first sum."""

    def network() -> tuple[nn.Module, Tensor]:
        class Sums(nn.Module):
            def forward(self, x: Tensor) -> Tensor:
                for _ in range(6):
                    x = x + F.silu(x)
                return x.square()

        return nn.Sequential(nn.Linear(64, 64), Sums()), torch.randn(64, 64)

    size = 64 * 64 * 4
    # The Linear's output, the third sum and the sixth, which is kept as the result too.
    assert alive(network, recompute) == 3 * size


def test_one_tensor_is_kept_of_three() -> None:
    def network() -> tuple[nn.Module, Tensor]:
        layers = nn.Conv2d(3, 8, 1), nn.BatchNorm2d(8), nn.SiLU(), nn.Conv2d(8, 1, 1)
        return nn.Sequential(*layers), torch.randn(2, 3, 16, 16)

    unit, statistics = 2 * 8 * 16 * 16 * 4, 2 * 8 * 4
    assert alive(network, nullcontext) == 3 * unit + statistics
    assert alive(network, recompute) == unit + statistics


# ---- what may go wrong ----------------------------------------------------------------------


def chain(x: Tensor) -> Tensor:
    """Whose products keep what can be made again."""
    return (F.silu(F.mish(x.exp())) * F.gelu(x.sin())).square().sum()


def vector() -> Tensor:
    return torch.linspace(-3, 3, 1000).requires_grad_()


def test_written_over() -> None:
    """What is made again doesn't care; what is kept raises, as without."""
    x = vector()
    with recompute():
        kept = x * 2
        made = F.silu(kept)
        loss = (made * made).sum()
    with torch.no_grad():
        made.zero_()
    loss.backward(retain_graph=True)
    wanted = vector()
    F.silu(wanted * 2).square().sum().backward()
    torch.testing.assert_close(x.grad, wanted.grad)
    with torch.no_grad():
        kept.add_(1)
    with recompute(), pytest.raises(RuntimeError, match="modified by an inplace operation"):
        x = torch.randn(1000)
        w = vector()
        loss = (x * w).sum()
        x.add_(1)
        loss.backward()


def test_a_bias_that_is_written_over_raises() -> None:
    norm = nn.BatchNorm1d(8)
    x = torch.randn(64, 8).requires_grad_()
    with recompute():
        loss = F.silu(norm(x)).square().sum()
    with torch.no_grad():
        norm.bias.add_(1)
    with pytest.raises(RuntimeError, match="modified by an inplace operation"):
        loss.backward()


def test_an_embedding_that_is_written_over_raises() -> None:
    embedding = nn.Embedding(16, 64)
    with recompute():
        loss = embedding(torch.arange(16)).square().sum()
    with torch.no_grad():
        embedding.weight.add_(1)
    with pytest.raises(RuntimeError, match="modified by an inplace operation"):
        loss.backward()


def test_a_mask_is_looked_for_once(monkeypatch: pytest.MonkeyPatch) -> None:
    """A tensor that is none is not looked at again, nor are its views; another one is."""
    bits_of, looked_at = context.bits_of, []
    monkeypatch.setattr(context, "bits_of", lambda *a: looked_at.append(a[0]) or bits_of(*a))
    packer = context._Packer(None)
    angles = torch.randn(64, 128)
    for tensor in (angles, angles, angles[:32], angles.view(128, 64)):
        assert isinstance(packer.pack(tensor), Leaf)
    assert len(looked_at) == 1
    assert isinstance(packer.pack(angles.clone()), Leaf) and len(looked_at) == 2
    for _ in range(8):
        assert isinstance(packer.pack(torch.ones(64, 128)), Bits)


def test_layers_with_one_input_share_a_handle() -> None:
    with recompute():
        y = F.silu(torch.randn(64, 128, requires_grad=True))
    packer = context._Packer(None)
    handle = packer.pack(y.view(128, 64))
    assert isinstance(handle, Handle) and packer.pack(y.view(128, 64)) is handle
    assert handle.tensor() is handle.tensor() and torch.equal(handle.tensor(), y.view(128, 64))
    for other in (y, y.view(2, 64, 64), y.t()):
        packed = packer.pack(other)
        assert packed is not handle and torch.equal(packed.tensor(), other)
        assert packed.tensor().stride() == other.stride()


@pytest.mark.parametrize("frozen", ["bias", "weight", "both"])
def test_a_frozen_bias_is_not_guessed(frozen: str) -> None:
    """The node does not keep it, so the norm's output is kept."""

    def network() -> tuple[nn.Module, Tensor]:
        norm = nn.BatchNorm2d(8)
        nn.init.uniform_(norm.bias)
        for name in ("bias", "weight"):
            if frozen in (name, "both"):
                getattr(norm, name).requires_grad_(False)
        layers = nn.Conv2d(3, 8, 1), norm, nn.SiLU(), nn.Conv2d(8, 4, 1)
        return nn.Sequential(*layers), torch.randn(2, 3, 16, 16)

    plain, ours = step(network, nullcontext), step(network, recompute)
    assert all(torch.equal(a, b) for a, b in zip(plain, ours, strict=True))


def test_evaluation_mode() -> None:
    def network() -> tuple[nn.Module, Tensor]:
        net, x = convolutions()
        return net.eval(), x

    plain, ours = step(network, nullcontext), step(network, recompute)
    assert all(torch.equal(a, b) for a, b in zip(plain, ours, strict=True))


@pytest.mark.parametrize("ends", [(-3, None), (None, -2), (-5, -1), (2, 100)], ids=str)
def test_ends_of_slices_may_be_negative(ends: tuple[int | None, int | None]) -> None:
    function: Step = lambda x, w: x[:, slice(*ends)]  # noqa: E731
    y, kept = packed(function, torch.float32)
    assert isinstance(kept, Handle) and torch.equal(kept.tensor(), y)


def test_several_outputs_are_told_apart() -> None:
    results = []
    for within in (nullcontext, recompute):
        x = torch.randn(64, 30, generator=torch.Generator().manual_seed(0)).requires_grad_()
        with within():
            a, b, c = (x * 2).split(10, 1)
            d, e = torch.cat([a * F.silu(b), c], 1).chunk(2, 1)
            loss = (F.mish(d) * e * F.gelu(c)).sum()
        loss.backward()
        results.append(x.grad)
    assert torch.equal(*results)


def test_backward_twice_and_of_the_gradient() -> None:
    results = []
    for within in (nullcontext, recompute):
        x = vector()
        with within():
            loss = chain(x)
            (first,) = torch.autograd.grad(loss, x, create_graph=True)
        (second,) = torch.autograd.grad(first.square().sum(), x, retain_graph=True)
        loss.backward(retain_graph=True)
        loss.backward()
        results.append(torch.stack([first.detach(), second, x.grad]))
        with pytest.raises(RuntimeError, match="second time"):
            loss.backward()
    assert torch.equal(*results)


def test_later_and_in_another_thread() -> None:
    x, wanted = vector(), vector()
    with recompute():
        loss = chain(x)
    thread = threading.Thread(target=loss.backward)
    thread.start()
    thread.join()
    chain(wanted).backward()
    assert x.grad is not None and torch.equal(x.grad, wanted.grad)


def test_other_threads_go_on_as_they_were() -> None:
    seen: list[Any] = []
    with recompute():
        thread = threading.Thread(target=lambda: seen.append(F.silu(vector()).grad_fn))
        thread.start()
        thread.join()
        assert F.silu(vector()) is not None
    assert torch._C._autograd._top_saved_tensors_default_hooks(True) is None
    assert torch.equal(seen[0]._saved_self, vector())


def test_exceptions_leave_nothing_behind() -> None:
    with pytest.raises(ZeroDivisionError), recompute():
        raise ZeroDivisionError
    assert torch._C._autograd._top_saved_tensors_default_hooks(True) is None


def test_nested() -> None:
    x, wanted = vector(), vector()
    with recompute(), recompute():
        loss = chain(x)
    loss.backward()
    chain(wanted).backward()
    assert x.grad is not None and torch.equal(x.grad, wanted.grad)


@pytest.mark.parametrize("outside", [True, False])
def test_checkpoint(outside: bool) -> None:
    """Either within the other; what is checkpointed keeps as little as without."""
    results = []
    for within in (nullcontext, recompute):
        x = vector()

        def inner(x: Tensor, within: Callable[[], Any] = within) -> Tensor:
            with nullcontext() if outside else within():
                return chain(x)

        with mk.KeptBytes(exclude=[x]) as kept, within() if outside else nullcontext():
            loss = checkpoint(inner, x * 1, use_reentrant=False)
        results.append((kept.total, loss))
        loss.backward()
        results[-1] = (kept.total, x.grad)
    assert results[0][0] >= results[1][0]
    assert torch.equal(results[0][1], results[1][1])


def test_hooks_outside_get_what_is_kept() -> None:
    seen: list[Tensor] = []

    def pack(tensor: Tensor) -> Tensor:
        seen.append(tensor.detach())
        return tensor.detach() * 1

    x, wanted = vector(), vector()
    with saved_tensors_hooks(pack, lambda kept: kept), recompute():
        loss = chain(x)
    with torch.autograd.graph.save_on_cpu(), recompute():
        again = chain(x)
    loss.backward()
    again.backward()
    chain(wanted).backward()
    chain(wanted).backward()
    assert x.grad is not None and torch.equal(x.grad, wanted.grad)
    assert seen


@pytest.mark.parametrize("function", [F.relu, F.silu, torch.sigmoid])
@pytest.mark.parametrize("through", [True, False])
def test_nothing_is_held(function: Callable[[Tensor], Tensor], through: bool) -> None:
    """When the graph has gone, or has been gone through, so have the tensors."""
    x = vector()
    with recompute():
        y = function(x * 2)
        loss = (y * F.mish(y)).sum()
    storage = StorageWeakRef(y.untyped_storage())
    if through:
        loss.backward()
        del y
    else:
        del y, loss
    gc.collect()
    assert storage.expired()


def test_transforms_refuse() -> None:
    """They take no hooks on saved tensors, and say so."""
    with recompute(), pytest.raises(RuntimeError, match="saved tensor hooks"):
        torch.func.grad(chain)(torch.linspace(-3, 3, 1000))


def test_compiled_code() -> None:
    x, wanted = vector(), vector()
    compiled = torch.compile(chain, backend="aot_eager")
    with recompute():
        loss = compiled(x)
    loss.backward()
    chain(wanted).backward()
    torch.testing.assert_close(x.grad, wanted.grad)
