"""Leaned models: as little is kept as the audit promised, and everything else stays."""

from __future__ import annotations

import copy
import pickle
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
import torch.nn.functional as F
from graphs import kept_in_graph
from torch import Tensor, nn

import mishkit as mk
from mishkit.surgery.slots import restore, slots

GRADIENT = 1e-4
"""Relative error of a gradient, all parameters together, against torch's own (float32)."""

TIMM = {
    "resnet18": ({"act_layer": "mish"}, 16),
    "efficientnet_b0": ({}, 48),
    "convnext_atto": ({}, 12),
    "vit_tiny_patch16_224": ({"img_size": 32, "depth": 2}, 2),
    "mobilenetv3_small_050": ({}, 18),
}
"""What they are built with, and how many sites pay."""


def step(model: nn.Module, *inputs: Any) -> tuple[float, Tensor]:
    """The loss of a training step, and all gradients."""
    torch.manual_seed(1)
    model.zero_grad()
    output = model(*inputs)
    output = output if isinstance(output, Tensor) else output.last_hidden_state
    loss = output.float().square().mean()
    loss.backward()
    gradients = [p.grad.flatten() for p in model.parameters() if p.grad is not None]
    return loss.item(), torch.cat(gradients)


def check(model: nn.Module, *inputs: Any, **options: Any) -> mk.surgery.audit.Report:
    """Lean a model: bytes as promised, the same step, names and state; and back."""
    plain, names = copy.deepcopy(model), [name for name, _ in model.named_modules()]
    report = mk.lean(model, *inputs, **{"recompute": False, **options})
    assert kept_in_graph(plain, *inputs) == report.kept
    assert kept_in_graph(model, *inputs) == report.lean
    assert [name for name, _ in model.named_modules()] == names
    assert model.state_dict().keys() == plain.state_dict().keys()
    assert [m.training for m in model.modules()] == [m.training for m in plain.modules()]
    (loss, gradient), (plain_loss, plain_gradient) = step(model, *inputs), step(plain, *inputs)
    assert loss == pytest.approx(plain_loss, rel=1e-6)
    assert torch.linalg.vector_norm(
        gradient - plain_gradient
    ) <= GRADIENT * torch.linalg.vector_norm(plain_gradient)
    return report


def network(act: nn.Module) -> nn.Sequential:
    return nn.Sequential(
        nn.Conv2d(3, 8, 3, bias=False),
        nn.BatchNorm2d(8),
        act,
        nn.Conv2d(8, 8, 3),
        copy.deepcopy(act),
        nn.Dropout2d(0.2),
        nn.Flatten(),
        nn.Linear(8 * 36, 16),
        copy.deepcopy(act),
        nn.Linear(16, 4),
    )


def images() -> Tensor:
    return torch.randn(4, 3, 10, 10)


@pytest.mark.parametrize(
    "act",
    [
        nn.SiLU(), nn.SiLU(inplace=True), nn.GELU(), nn.GELU("tanh"), nn.Mish(),
        nn.Mish(inplace=True), nn.Hardswish(), nn.Hardswish(inplace=True), nn.Softplus(2, 15),
        *(mk.get(name) for name in mk.names() if name != "relu"),
        mk.Swish(2.0), mk.APTx(1, 0.5, 0.5),
    ],
    ids=str,
)  # fmt: skip
@pytest.mark.parametrize("inplace", [True, False])
def test_every_function(act: nn.Module, inplace: bool) -> None:
    model = network(act)
    before = str(model)
    report = check(model, images(), inplace=inplace)
    assert [s.advice for s in report.sites] == ["output", "leave", "output"]
    first, dropped, last = model[2], model[4], model[8]
    assert first.save == last.save == "output" and dropped is not first
    assert first.inplace == last.inplace == (inplace or act.__dict__.get("inplace", False))
    assert mk.audit(model, images()).lean == mk.audit(model, images()).kept == report.lean
    assert restore(model) == ["2", "8"] and str(model) == before


@pytest.mark.parametrize(
    "act", [nn.ReLU(), nn.ReLU(inplace=True), nn.CELU(), nn.LogSigmoid()], ids=str
)
def test_what_does_not_pay_is_left_alone(act: nn.Module) -> None:
    model = network(act)
    modules = list(model)
    check(model, images())
    assert all(before is after for before, after in zip(modules, model, strict=True))


def test_hooks_copies_and_pickles() -> None:
    model = network(nn.SiLU())
    seen: list[str] = []
    model[2].register_forward_hook(lambda module, x, y: seen.append(type(module).__name__))
    mk.lean(model, images(), recompute=False)
    assert not seen  # the audit leaves no trace
    model(images())
    assert seen[-1] == "SiLU" and isinstance(model[2], mk.SiLU)
    model[2]._forward_hooks.clear()
    copied = pickle.loads(pickle.dumps(copy.deepcopy(model)))
    assert kept_in_graph(copied, images()) == kept_in_graph(model, images())
    assert restore(copied) == ["2", "8"] and isinstance(copied[2], nn.SiLU)


def test_shared_modules_stay_shared() -> None:
    act = nn.SiLU()
    model = nn.Sequential(nn.Linear(4, 8), act, nn.Linear(8, 8), act, nn.Linear(8, 4))
    check(model, torch.randn(3, 4))
    assert model[1] is model[3] and isinstance(model[1], mk.SiLU)
    mixed = nn.Sequential(nn.Linear(4, 8), act, nn.Linear(8, 8), act, nn.Flatten(0))
    report = check(mixed, torch.randn(3, 4))
    assert report.sites[0].saving > 0  # more is won at the first place than lost at the second


def test_functions_held_as_attributes() -> None:
    model = nn.TransformerEncoderLayer(8, 2, 32, dropout=0.0, activation="gelu", batch_first=True)
    report = check(model, torch.randn(2, 5, 8))
    (site,) = report.sites
    assert (site.name, site.how, site.advice) == ("activation", "call", "output")
    assert restore(model) == ["activation"] and model.activation is F.gelu


def test_trained_parameters_keep_their_module() -> None:
    model = network(mk.Swish(trainable=True))
    modules = list(model)
    check(model, images())
    assert list(model) == modules


class Calls(nn.Module):
    def __init__(self, dropout: float) -> None:
        super().__init__()
        self.up, self.down, self.dropout = nn.Linear(8, 32), nn.Linear(32, 8), dropout

    def forward(self, x: Tensor) -> Tensor:
        h = F.silu(self.up(x))
        x = x + self.down(h)
        h = F.gelu(self.up(x), approximate="tanh")
        return x + self.down(F.dropout(h, self.dropout))


def test_functional_calls() -> None:
    model, x = Calls(0.5), torch.randn(5, 8)
    report = mk.lean(model, x, recompute=False)
    assert [s.advice for s in report.sites] == ["output", "leave"]
    assert kept_in_graph(model, x) == report.kept, "lean changes modules alone"
    loss, gradient = step(model, x)
    with mk.lean_functional(report):
        assert kept_in_graph(model, x) == report.lean
        lean_loss, lean_gradient = step(model, x)
    assert lean_loss == pytest.approx(loss, rel=1e-6)
    torch.testing.assert_close(lean_gradient, gradient, rtol=1e-3, atol=1e-5)
    with mk.lean_functional():
        everywhere = kept_in_graph(model, x)
    assert everywhere == report.lean + 5 * 32 // 8  # where it does not pay: a bit an element
    assert report.after_lean == report.kept and report.changed == ()
    assert str(report).startswith("changed none of 2 sites; 1 is a call: see lean_functional\n")
    assert kept_in_graph(model, x) == report.kept


@pytest.mark.parametrize(
    "call",
    [F.silu, F.gelu, F.mish, F.hardswish, F.softplus, lambda x: F.gelu(x, approximate="tanh"),
     lambda x: F.softplus(x, beta=2), lambda x: F.silu(x * 1, inplace=True), nn.SiLU(), nn.Mish(),
     F.relu6, F.elu, lambda x: F.leaky_relu(x, negative_slope=0.2)],
)  # fmt: skip
def test_functional_calls_of_every_function(call: Callable[[Tensor], Tensor]) -> None:
    x = torch.randn(8, 8, requires_grad=True)
    wanted = torch.autograd.grad(call(x).sum(), x)[0]
    with mk.lean_functional():
        y = call(x)
    assert type(y.grad_fn).__name__ in ("SavingOutputBackward", "InPlaceBackward")
    torch.testing.assert_close(y, call(x), rtol=1e-6, atol=1e-6)
    torch.testing.assert_close(torch.autograd.grad(y.sum(), x)[0], wanted, rtol=1e-4, atol=1e-4)


def test_functional_calls_that_are_left_alone() -> None:
    x = torch.randn(8)
    with mk.lean_functional():
        assert torch.equal(F.silu(x), torch.nn.functional.silu(x))
        assert F.relu(x.requires_grad_()).grad_fn.name() == "ReluBackward0"
        assert F.logsigmoid(x).grad_fn.name() == "LogSigmoidBackward0"
    with pytest.raises(TypeError, match="report must be of an audit, not dict"):
        mk.lean_functional({}).__enter__()  # type: ignore[arg-type]


# ---- real models, small ----


@pytest.mark.parametrize("name", TIMM)
def test_timm(name: str, torchvision: None) -> None:
    timm = pytest.importorskip("timm")
    options, pays = TIMM[name]
    # In training, batch norm over so few numbers would make much of the rounding of float32.
    model = timm.create_model(name, **options).eval()
    report = check(model, torch.randn(2, 3, 32, 32))
    assert sum(site.advice == "output" for site in report.sites) == pays
    assert {site.name for site in report.sites} == {
        slot.name for slot in slots(model) if slot.known is not None
    }


def test_a_bert_and_a_llama(torchvision: None) -> None:
    transformers = pytest.importorskip("transformers")
    sizes = {"hidden_size": 32, "intermediate_size": 64, "num_hidden_layers": 2}
    config = {**sizes, "num_attention_heads": 2, "vocab_size": 50}
    tokens = torch.randint(50, (2, 7))
    for kind, function in {"Bert": "gelu", "Llama": "silu"}.items():
        built = getattr(transformers, f"{kind}Config")(**config)
        model = getattr(transformers, f"{kind}Model")(built)
        report = check(model, tokens)
        pays = [site for site in report.sites if site.advice == "output"]
        assert [site.function for site in pays] == [function] * 2
        saved = sum(site.saving for site in pays) / sum(site.kept for site in pays)
        assert saved == pytest.approx(1 - 1 / 32)


# ---- beside other things ----


def test_autocast_and_checkpoint() -> None:
    model = network(nn.Mish())
    with torch.autocast("cpu", torch.bfloat16):
        report = mk.lean(model, images(), recompute=False)
        assert kept_in_graph(model, images()) == report.lean < report.kept
        loss = model(images()).float().square().mean()
    loss.backward()
    assert all(p.grad.isfinite().all() for p in model.parameters())

    plain, model = network(nn.GELU()).eval(), network(nn.GELU()).eval()
    model.load_state_dict(plain.state_dict())
    mk.lean(model, images(), recompute=False)
    x = images().requires_grad_()
    gradients = []
    for m in (plain, model):
        y = torch.utils.checkpoint.checkpoint(m, x, use_reentrant=False)
        gradients.append(torch.autograd.grad(y.square().mean(), [x, *m.parameters()]))
    for a, b in zip(*gradients, strict=True):
        torch.testing.assert_close(a, b, rtol=1e-3, atol=1e-5)


@pytest.mark.filterwarnings("ignore::DeprecationWarning", "ignore::FutureWarning")
def test_compile(fresh_compiler: None) -> None:
    model = nn.Sequential(nn.Linear(4, 8), nn.SiLU(), nn.Linear(8, 8), nn.GELU(), nn.Linear(8, 2))
    x = torch.randn(5, 4)
    loss, gradient = step(model, x)
    mk.lean(model, x, recompute=False)
    compiled_loss, compiled_gradient = step(torch.compile(model, backend="aot_eager"), x)
    assert compiled_loss == pytest.approx(loss, rel=1e-6)
    torch.testing.assert_close(compiled_gradient, gradient, rtol=1e-3, atol=1e-5)


def test_ddp(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("GLOO_SOCKET_IFNAME", "lo")
    model, x = network(nn.SiLU()).eval(), images()
    loss, gradient = step(model, x)
    mk.lean(model, x, recompute=False)
    torch.distributed.init_process_group(
        "gloo", init_method=f"file://{tmp_path}/store", rank=0, world_size=1
    )
    try:
        lean_loss, lean_gradient = step(nn.parallel.DistributedDataParallel(model), x)
    finally:
        torch.distributed.destroy_process_group()
    assert lean_loss == pytest.approx(loss, rel=1e-6)
    torch.testing.assert_close(lean_gradient, gradient, rtol=1e-3, atol=1e-5)


class _DropsInFunction(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.act, self.end = nn.GELU(), nn.Linear(8, 8)

    def forward(self, x: Tensor) -> Tensor:
        return self.end(F.dropout(self.act(x), 0.5, self.training, inplace=True))


@pytest.mark.parametrize("drop", [nn.Dropout, nn.AlphaDropout, None])
def test_what_writes_over_an_output_in_training_is_seen_in_evaluation(
    drop: type[nn.Module] | None,
) -> None:
    """A dropout in place does nothing in evaluation, and writes over what lean would keep."""
    after = (
        _DropsInFunction() if drop is None else nn.Sequential(nn.GELU(), drop(0.5, inplace=True))
    )
    model = nn.Sequential(nn.Linear(8, 8), after).eval()
    report = mk.lean(model, torch.randn(5, 8), recompute=False)
    assert not report.changed and "writes over its output" in report.sites[0].reason
    model.train()(torch.randn(5, 8)).sum().backward()
