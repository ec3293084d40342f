"""What an audit sees, held against networks whose accounts can be made by hand, and against a count
of the autograd graph that shares nothing with it."""

from __future__ import annotations

from collections.abc import Callable

import pytest
import torch
import torch.nn.functional as F
from graphs import kept_in_graph
from torch import Tensor, nn

import mishkit as mk
from mishkit.functions import ACTIVATIONS
from mishkit.surgery.audit import audit
from mishkit.surgery.report import Report

N, C = 6, 32
"""Rows and columns of a hidden activation."""
FULL, BITS = N * C * 4, N * C // 8


def mlp(act: nn.Module, *after: nn.Module) -> nn.Sequential:
    return nn.Sequential(nn.Linear(8, C), act, *(after or (nn.Linear(C, 4),)))


def rows() -> Tensor:
    return torch.randn(N, 8)


class Residual(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.inner, self.act, self.outer = nn.Linear(8, 8), nn.SiLU(), nn.Linear(8, 4)

    def forward(self, x: Tensor) -> Tensor:
        return self.outer(x + self.act(self.inner(x)))


class Gated(nn.Module):
    def __init__(self, function: Callable[[Tensor], Tensor]) -> None:
        super().__init__()
        self.gate, self.up, self.down = nn.Linear(8, C), nn.Linear(8, C), nn.Linear(C, 4)
        self.function = function

    def forward(self, x: Tensor) -> Tensor:
        return self.down(self.function(self.gate(x)) * self.up(x))


def silu_of(x: Tensor) -> Tensor:
    return F.silu(x)


@pytest.mark.parametrize(
    ("after", "pays"),
    [
        (nn.Linear(C, 4), True),
        (nn.BatchNorm1d(C), True),
        (nn.LayerNorm(C), True),
        (nn.RMSNorm(C), True),
        (nn.GroupNorm(4, C), True),
        (nn.Linear(C, 4).requires_grad_(False), False),
        (nn.Dropout(0.5), False),
        (nn.Identity(), False),
        (nn.Sequential(nn.Flatten(0), nn.ReLU()), False),
    ],
    ids=lambda value: type(value).__name__,
)
@pytest.mark.parametrize(
    "act", [nn.SiLU(), nn.Mish(), nn.GELU(), nn.Hardswish(), mk.Mish(), mk.HardMish(5)], ids=str
)
def test_it_pays_where_the_output_is_kept_anyway(
    act: nn.Module, after: nn.Module, pays: bool
) -> None:
    model = mlp(act, after)
    report = audit(model, rows())
    (site,) = [site for site in report.sites if site.name == "1"]
    assert site.advice == ("output" if pays else "leave"), site.reason
    assert (site.kept, site.alone) == (FULL, FULL)
    assert bool(site.output_kept_by) == pays
    assert site.saving == (FULL - BITS if pays else 0)
    assert report.kept - report.lean == site.saving
    assert report.kept == kept_in_graph(model, rows())


@pytest.mark.parametrize(
    ("after", "pays"), [(nn.MaxPool2d(2), True), (nn.AvgPool2d(2), True),
                        (nn.Conv2d(4, 4, 3), True), (nn.AdaptiveAvgPool2d(1), False),
                        (nn.Upsample(scale_factor=2), False)], ids=str,
)  # fmt: skip
def test_of_images(after: nn.Module, pays: bool) -> None:
    model = nn.Sequential(nn.Conv2d(3, 4, 3), nn.BatchNorm2d(4), nn.Mish(), after)
    images = torch.randn(2, 3, 10, 10)
    report = audit(model, images)
    (site,) = report.sites
    assert site.advice == ("output" if pays else "leave"), site.reason
    assert not site.inplace  # an audit changes nothing, in place or not
    assert report.kept == kept_in_graph(model, images)


@pytest.mark.parametrize(
    ("model", "reason"),
    [
        (mlp(nn.SiLU()), "as Linear 2 keeps it"),
        (mlp(nn.SiLU(), nn.Dropout()), "as Dropout 2 does not keep its output"),
        (mlp(nn.SiLU(), nn.ReLU(inplace=True)), "as ReLU 2 writes over its output"),
        (mlp(nn.SiLU(), nn.Flatten(0)), "as nobody keeps its output"),
        (Residual(), "as an addition does not keep its output"),
        (mlp(nn.ReLU()), "as it keeps its output already"),
        (mlp(mk.Mish(save="output")), "as it keeps its output already"),
        (mlp(nn.SiLU()).requires_grad_(False), "as no gradient passes here"),
        (mlp(nn.LogSigmoid()), "as mishkit has no such function"),
        (mlp(mk.Swish(trainable=True)), "as the gradients of its parameters need the input"),
        (mlp(mk.APTx(3.0)), "as with these parameters the output does not determine the gradient"),
    ],
    ids=lambda value: value if isinstance(value, str) else "",
)
def test_reasons(model: nn.Module, reason: str) -> None:
    (site,) = [site for site in audit(model, rows()).sites if site.name in ("1", "act")]
    assert site.reason == reason


class TwoReaders(nn.Module):
    """Two activations of one tensor, whose outputs are kept: neither pays without the other."""

    def __init__(self) -> None:
        super().__init__()
        self.inner, self.a, self.b = nn.Linear(8, C), nn.SiLU(), nn.Mish()
        self.left, self.right = nn.Linear(C, 4), nn.Linear(C, 4)

    def forward(self, x: Tensor) -> Tensor:
        h = self.inner(x)
        return self.left(self.a(h)) + self.right(self.b(h))


def test_sites_that_share_their_input_are_decided_together() -> None:
    report = audit(TwoReaders(), rows())
    assert [site.advice for site in report.sites] == ["output", "output"]
    assert report.kept - report.lean == FULL - 2 * BITS
    half = TwoReaders()
    half.right.requires_grad_(False)
    report = audit(half, rows())
    assert report.kept - report.lean == 0
    assert "keeps its input" in report.sites[0].reason


def test_an_input_that_someone_else_keeps() -> None:
    class Skip(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.inner, self.act = nn.Linear(8, C), nn.SiLU()
            self.a, self.b = nn.Linear(C, 4), nn.Linear(C, 4)

        def forward(self, x: Tensor) -> Tensor:
            h = self.inner(x)
            return self.a(self.act(h)) + self.b(h)

    (site,) = audit(Skip(), rows()).sites
    assert (site.advice, site.kept, site.alone) == ("leave", FULL, 0)
    assert site.input_kept_by == ("Linear b",)


def test_a_chunk_of_a_tensor_that_is_kept_whole() -> None:
    class Glu(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.up, self.act, self.down = nn.Linear(8, 2 * C), nn.SiLU(), nn.Linear(C, 4)

        def forward(self, x: Tensor) -> Tensor:
            gate, up = self.up(x).chunk(2, -1)
            return self.down(self.act(gate) * up)

    (site,) = audit(Glu(), rows()).sites
    assert (site.advice, site.kept, site.alone) == ("leave", 2 * FULL, 0)
    assert "a product keeps its input" in site.reason


def test_calls_of_functions_are_named_by_line() -> None:
    model = nn.Sequential(Gated(F.silu), nn.Linear(4, 8), Gated(silu_of))
    report = audit(model, rows())
    assert [(s.name, s.function, s.how, s.advice) for s in report.sites] == [
        ("0.function", "silu", "call", "output"),  # an attribute
        ("2", "silu", "call", "output"),
    ]
    attribute, call = report.sites
    assert not attribute.line and call.line.startswith(__file__)
    assert report.lines == {call.line} and model[0].function is F.silu
    assert report.kept == kept_in_graph(model, rows())


@pytest.mark.parametrize("name", mk.names())
@pytest.mark.parametrize("options", [{}, {"save": "output"}, {"inplace": True}], ids=str)
def test_our_own_calls_are_seen(name: str, options: dict[str, object]) -> None:
    class Calls(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.inner, self.outer = nn.Linear(8, C), nn.Linear(C, 4)

        def forward(self, x: Tensor) -> Tensor:
            return self.outer(getattr(mk, name)(self.inner(x), **options))

    model = Calls()
    report = audit(model, rows())
    (site,) = report.sites
    assert (site.function, site.how) == (name, "call")
    assert report.kept == kept_in_graph(model, rows())
    monotone = ACTIVATIONS[name].turn is None
    lean_already = bool(options)
    assert site.reason.endswith('save="output"') or lean_already or name == "relu"
    assert report.lean == report.kept - (0 if lean_already else FULL - (not monotone) * BITS)


class ByHand(nn.Module):
    def __init__(self, function: Callable[[Tensor], Tensor]) -> None:
        super().__init__()
        self.function = function

    def forward(self, x: Tensor) -> Tensor:
        return self.function(x)


@pytest.mark.parametrize(
    ("formula", "function"),
    [
        (lambda x: x * torch.tanh(F.softplus(x)), "mish"),
        (lambda x: F.softplus(x).tanh() * x, "mish"),
        (lambda x: x * torch.sigmoid(x), "silu"),
    ],
)
def test_what_is_put_together_by_hand(formula: Callable[[Tensor], Tensor], function: str) -> None:
    report = audit(mlp(ByHand(formula)), rows())
    (site,) = report.sites
    assert (site.name, site.function, site.how) == ("1", function, "by hand")
    assert site.kept == 2 * FULL  # the input and the gate
    assert report.kept == 3 * FULL  # and the output, for the next layer
    assert "mishkit.swap" in site.reason


def test_other_gates_are_their_own_functions() -> None:
    report = audit(mlp(ByHand(lambda x: x.flip(0) * torch.sigmoid(x))), rows())
    assert [site.function for site in report.sites] == ["sigmoid"]


def test_a_module_that_is_used_twice_is_one_site() -> None:
    act = nn.SiLU()
    model = nn.Sequential(nn.Linear(8, C), act, nn.Linear(C, C), act, nn.Linear(C, 4))
    (site,) = audit(model, rows()).sites
    assert (site.calls, site.kept, site.saving) == (2, 2 * FULL, 2 * (FULL - BITS))


def test_autocast() -> None:
    model = mlp(nn.SiLU())
    with torch.autocast("cpu", torch.bfloat16):
        (site,) = audit(model, rows()).sites
        assert (site.dtype, site.kept) == (torch.bfloat16, FULL // 2)
        assert (site.advice, site.saving) == ("output", FULL // 2 - BITS)
        in_float32 = nn.Sequential(
            nn.Linear(8, C), ByHand(Tensor.float), nn.SiLU(), nn.Linear(C, 4)
        )
        (site,) = audit(in_float32, rows()).sites
        assert (site.dtype, site.advice) == (torch.float32, "leave")
        assert site.reason == "as Linear 3 does not keep its output"  # but what it is cast to


def test_blocks_that_are_recomputed() -> None:
    block = nn.Sequential(nn.Linear(8, C), nn.SiLU(), nn.Linear(C, 8))

    class Block(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.inner = nn.Sequential(nn.Linear(8, C), nn.SiLU(), nn.Linear(C, 8))

        def forward(self, x: Tensor) -> Tensor:
            return x + self.inner(x)

    model = nn.Sequential(*(Block() for _ in range(3)))
    x = rows().requires_grad_()
    report = audit(model, x)
    assert report.blocks == ("0", "1", "2")
    assert report.checkpointed == 2 * N * 8 * 4  # what the second and the third one begin with
    assert audit(block, rows()).checkpointed is None


def test_a_checkpointed_site_keeps_nothing() -> None:
    class Recomputed(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.inner = mlp(nn.SiLU())

        def forward(self, x: Tensor) -> Tensor:
            return torch.utils.checkpoint.checkpoint(self.inner, x, use_reentrant=False)

    (site,) = audit(Recomputed(), rows()).sites
    assert (site.name, site.kept, site.advice) == ("inner.1", 0, "leave")
    assert "keeps nothing" in site.reason


def test_a_part_without_gradient() -> None:
    class Frozen(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.backbone, self.head = mlp(nn.SiLU(), nn.Linear(C, 8)), mlp(nn.GELU())

        def forward(self, x: Tensor) -> Tensor:
            with torch.no_grad():
                x = self.backbone(x)
            return self.head(x)

    frozen, head = audit(Frozen(), rows()).sites
    assert (frozen.name, frozen.kept, frozen.advice) == ("backbone.1", 0, "leave")
    assert (head.name, head.advice) == ("head.1", "output")


def test_the_model_is_left_as_it_was() -> None:
    model = nn.Sequential(
        nn.Linear(8, C), nn.BatchNorm1d(C), nn.SiLU(), nn.Dropout(), nn.Linear(C, 4)
    )
    before = {name: value.clone() for name, value in model.state_dict().items()}
    torch.manual_seed(3)
    expected = torch.randn(5)
    torch.manual_seed(3)
    audit(model, rows().clone())
    torch.manual_seed(3)
    audit(model, torch.ones(N, 8))
    assert torch.equal(torch.randn(5), expected)
    for name, value in model.state_dict().items():
        assert torch.equal(value, before[name]), name
    assert all(p.grad is None for p in model.parameters())
    assert not model[2]._forward_hooks and "forward" not in vars(model)


def test_errors_pass_through_and_leave_nothing_behind() -> None:
    model = mlp(nn.SiLU())
    with pytest.raises(RuntimeError, match="shapes cannot be multiplied"):
        audit(model, torch.randn(2, 3))
    with pytest.raises(TypeError, match="the model must be a Module, not function"):
        audit(silu_of, rows())  # type: ignore[arg-type]
    assert kept_in_graph(model, rows()) == audit(model, rows()).kept


def test_a_report_is_readable() -> None:
    report = audit(nn.Sequential(mlp(nn.SiLU()), nn.ReLU()), rows())
    assert isinstance(report, Report)
    text = str(report)
    assert "0.1" in text and "SiLU, 6×32 float32: output, " in text
    assert f"kept for backward: {report.kept / 1024:.4g} KiB" in text
    assert "2 sites, 1 of which pays" in text


def test_a_compiled_model_is_looked_at_as_it_was() -> None:
    model = mlp(nn.SiLU())
    assert audit(torch.compile(model), rows()) == audit(model, rows())


@pytest.mark.parametrize("threshold", [1.0, -3.0, 12.0])
def test_a_softplus_that_jumps_is_left_as_it_is(threshold: float) -> None:
    model = mlp(nn.Softplus(1, threshold))
    (site,) = audit(model, rows()).sites
    assert site.advice == "leave" and "does not determine the gradient" in site.reason
    mk.lean(model, rows(), recompute=False)
    assert type(model[1]) is nn.Softplus
