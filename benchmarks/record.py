"""What others have published of training memory, beside our count of the same networks.

    python benchmarks/record.py                    # all, about ten minutes: docs/record.md
    python benchmarks/record.py --only BERT-base   # one network anew
    python benchmarks/record.py --page-only        # the page anew, from docs/record.json

Bytes are counted on fake tensors, which need no memory, so the networks have the published sizes.
Gradients are compared on real tensors, in float32 and with small inputs. Figures of others are
quoted with their sources; the errors of their gradients are computed from their formulas.
"""

from __future__ import annotations

import copy
import csv
import json
import math
import time
import warnings
from collections.abc import Callable, Sequence
from contextlib import AbstractContextManager, nullcontext
from dataclasses import dataclass
from functools import partial
from typing import Annotated, Any

import torch
import torch.nn.functional as F
import typer
from pages import DOCS, facts, markdown, span
from rich.progress import track
from torch import Tensor, nn
from torch._subclasses.fake_tensor import FakeTensorMode
from yolo import YOLOv3SPP

import mishkit as mk
from mishkit._torchvision import mend_torchvision
from mishkit.functions import ACTIVATIONS
from mishkit.lab.common.contenders import composed_mish
from mishkit.surgery.report import readable

PAGE, RESULTS, CSV = DOCS / "record.md", DOCS / "record.json", DOCS / "record.csv"
LARGEST = 1e-5
"""Methods whose gradients are farther off are not compared with: they compute something else."""
Model = tuple[nn.Module, Any]
Change = Callable[[nn.Module], None]

# ---- the networks --------------------------------------------------------------------------------


def _transformer(kind: str, batch: int, length: int, **options: Any) -> Model:
    import transformers

    config = getattr(transformers, f"{kind}Config")(attention_probs_dropout_prob=0.0, **options)
    model = getattr(transformers, f"{kind}Model")(config)
    return model.train(), torch.randint(2, 100, (batch, length))


def _image(name: str, batch: int, side: int = 224, fused: bool = True) -> Model:
    import timm

    timm.layers.set_fused_attn(fused)
    model = timm.create_model(name)
    out_of_place(model)
    return model.train(), torch.randn(batch, 3, side, side)


def _yolo(act: Callable[[], nn.Module], batch: int, side: int) -> Model:
    return YOLOv3SPP(act).train(), torch.randn(batch, 3, side, side)


class ComposedMish(nn.Module):
    """Mish as the issue writes it, out of place."""

    def forward(self, x: Tensor) -> Tensor:
        """x·tanh(softplus(x))."""
        return composed_mish(x)


class NormedAct(nn.Sequential):
    """Batch norm and leaky ReLU, as standard layers."""

    def __init__(self, channels: int) -> None:
        super().__init__(nn.BatchNorm2d(channels), nn.LeakyReLU(0.01, inplace=True))


class PreActivated(nn.Module):
    """A block of the ResNeXt of InPlace-ABN: norms and activations before the convolutions."""

    def __init__(self, ins: int, widths: Sequence[int], stride: int, groups: int) -> None:
        super().__init__()
        first, middle, outs = widths
        self.act = NormedAct(ins)
        self.body = nn.Sequential(
            *(nn.Conv2d(ins, first, 1, bias=False), NormedAct(first)),
            nn.Conv2d(first, middle, 3, stride, 1, groups=groups, bias=False),
            *(NormedAct(middle), nn.Conv2d(middle, outs, 1, bias=False)),
        )
        changes = stride != 1 or ins != outs
        self.shortcut = nn.Conv2d(ins, outs, 1, stride, bias=False) if changes else None

    def forward(self, x: Tensor) -> Tensor:
        """x, or what its shape becomes, and its change."""
        y = self.act(x)
        shortcut = x if self.shortcut is None else self.shortcut(y)
        return self.body(y) + shortcut


def _resnext(batch: int, side: int) -> Model:
    """ResNeXt-101 with 64 groups, pre-activated, and three 3×3 convolutions at the input."""
    layers: list[nn.Module] = [nn.Conv2d(3, 64, 3, 2, 1, bias=False), NormedAct(64)]
    layers += [nn.Conv2d(64, 64, 3, 1, 1, bias=False), NormedAct(64)]
    layers += [nn.Conv2d(64, 64, 3, 1, 1, bias=False), nn.MaxPool2d(3, 2, 1)]
    ins = 64
    for stage, depth in enumerate((3, 4, 23, 3)):
        widths = [width << stage for width in (128, 128, 256)]
        for block in range(depth):
            layers.append(PreActivated(ins, widths, 2 if stage and not block else 1, 64))
            ins = widths[-1]
    head = (nn.AdaptiveAvgPool2d(1), nn.Flatten(), nn.Linear(ins, 1000))
    return nn.Sequential(*layers, NormedAct(ins), *head).train(), torch.randn(batch, 3, side, side)


# ---- what others keep ----------------------------------------------------------------------------


class _Keeping(torch.autograd.Function):
    """Stands for another's function: keeps its output, some bits an element, some floats a row."""

    @staticmethod
    def forward(ctx: Any, x: Tensor, compute: Any, output: bool, bits: int, rows: int) -> Tensor:
        y = compute(x)
        kept = [y] if output else []
        if bits:
            kept.append(x.new_empty((x.numel() * bits + 7) // 8, dtype=torch.uint8))
        if rows:
            kept.append(x.new_empty(x.numel() // rows, dtype=torch.float32))
        ctx.save_for_backward(*kept)
        return y

    @staticmethod
    def backward(ctx: Any, grad: Tensor) -> Any:
        raise NotImplementedError("this only counts")


class Keeping(nn.Module):
    """A layer that keeps what another's would."""

    def __init__(
        self,
        compute: Callable[[Tensor], Tensor],
        output: bool = False,
        bits: int = 0,
        rows: int = 0,
    ) -> None:
        super().__init__()
        self.compute, self.output, self.bits, self.rows = compute, output, bits, rows

    def forward(self, x: Tensor) -> Tensor:
        """What the layer computes."""
        return _Keeping.apply(x, self.compute, self.output, self.bits, self.rows)


def _swap(model: nn.Module, kinds: Sequence[str], make: Callable[[nn.Module], nn.Module]) -> None:
    for module in list(model.modules()):
        for name, child in list(module.named_children()):
            if type(child).__name__ in kinds:
                setattr(module, name, make(child))


def out_of_place(model: nn.Module) -> None:
    """Let activations write their results elsewhere."""
    for module in model.modules():
        if getattr(module, "inplace", False):
            module.inplace = False


GELUS = ("GELU", "GELUActivation")


def few_bits(model: nn.Module, bits: int) -> None:
    """GELU keeps some bits an element."""
    _swap(model, GELUS, lambda old: Keeping(F.gelu, bits=bits))


def output_and_bit(model: nn.Module) -> None:
    """GELU keeps its output and a bit an element."""
    _swap(model, GELUS, lambda old: Keeping(F.gelu, output=True, bits=1))


def shared_norms(model: nn.Module) -> None:
    """GELU keeps 2 bits an element; layer norm keeps its output, without weights, and a float a
    row.
    """
    few_bits(model, 2)

    def make(old: Any) -> nn.Module:
        shape = old.normalized_shape
        norm = partial(F.layer_norm, normalized_shape=shape)
        return Keeping(norm, output=True, rows=math.prod(shape))

    _swap(model, ("LayerNorm",), make)


def overwritten(model: nn.Module) -> None:
    """SiLU keeps its output alone, in its input's memory."""
    _swap(model, ("SiLU", "Swish", "SwishMe"), lambda old: Keeping(F.silu, output=True))


def inverted(model: nn.Module) -> None:
    """Batch norm and activation together keep their output."""

    def make(old: Any) -> nn.Module:
        return Keeping(old.forward, output=True)

    _swap(model, ("NormedAct",), make)


# ---- the errors of their gradients ---------------------------------------------------------------


def _grid() -> Tensor:
    return torch.linspace(-12, 12, 2_400_001, dtype=torch.float64)


def _of_steps(levels: Sequence[float], bounds: Sequence[float]) -> float:
    """How far a step function is from GELU's derivative, at most."""
    x = _grid()
    steps = torch.tensor(levels, dtype=x.dtype)[torch.bucketize(x, torch.tensor(bounds).to(x))]
    return float((steps - ACTIVATIONS["gelu"].df(x)).abs().max())


def error_of_three_bits() -> float:
    """Of fewbit's 3-bit GELU, from the table in its benchmark/bench-roberta.py."""
    bounds = (-2.39798704, -0.711248159, -0.326290283, -1.55338428e-4, 0.326182064, 0.71085586)
    levels = (-0.00260009, -0.08883533, 0.1251944, 0.37204148, 0.6277958, 0.87466175, 1.08880716)
    return _of_steps((*levels, 1.00259936), (*bounds, 2.39811567))


def error_of_two_bits() -> float:
    """Of ReGELU2, from the constants in LowMemoryBP's regelu2_cuda.cu."""
    rises = torch.tensor([-0.04922261145617846, 1.0979632065417297, -0.048740595085551286])
    levels = [0.0, *rises.double().cumsum(0).tolist()]
    return _of_steps(levels, (-3.1858810036855245, -0.001178821281161997, 3.190832613414926))


def error_of_optiacts() -> float:
    """Of its GELU's two fitted curves, from optiacts/gelu_impl.py: the gradient as a function of
    how far the output lies above the minimum.
    """
    gelu, lowest = ACTIVATIONS["gelu"], -0.16997120747990369
    x = _grid()
    above = gelu.f(x) - lowest
    share = (above / -lowest).clamp(0, 1)
    left = -0.2964121012745849 * share**0.44236329315571304 * (1 - share) ** 0.8312705290392689
    bent = (-2.1198850898439496 - above) ** 3 * 0.03214673676937606
    straight = -1.383717971214795 + 0.04404574801811055 * above
    right = 1 + (straight + 1.5584201843500274 * above.clamp_min(0).sqrt()) * bent.exp()
    slope = torch.where(x < -0.751791524693564, left + 0.0012176597919768537, right)
    return float((slope - gelu.df(x)).abs().max())


def error_of_overwriting() -> float:
    """Of SiLU's derivative at its output in place of its input."""
    silu, x = ACTIVATIONS["silu"], _grid()
    return float((silu.df(silu.f(x)) - silu.df(x)).abs().max())


def error_of_inversion() -> float:
    """Of the normalised input that InPlace-ABN recovers from the activation's output, in float32,
    over the largest of them; weights from ½ to 1½, shifts from N(0, 1).
    """
    generator = torch.Generator().manual_seed(0)
    x = torch.randn(256, 4096, generator=generator)
    weight = torch.rand(256, 1, generator=generator) + 0.5
    shift = torch.randn(256, 1, generator=generator)
    y = F.leaky_relu(x * weight + shift, 0.01)
    again = (torch.where(y < 0, y / 0.01, y) - shift) / weight
    return float((again - x).abs().max() / x.abs().max())


def error_of_eight_bits() -> float:
    """Half a step of 8 bits, over the range of what is stored."""
    return 0.5 / 255


# ---- the table -----------------------------------------------------------------------------------


@dataclass(frozen=True)
class Row:
    """A published figure, and the network to count."""

    name: str
    setting: str
    by: str
    method: str
    published: str
    source: str
    error: Callable[[], float] | None
    """The largest error of their gradient; None if they change nothing of it."""
    build: Callable[[], Model]
    small: Callable[[], Model]
    """The same with an input that is trained in seconds."""
    theirs: Change | None = None
    """Makes the network keep what theirs does; None if what is published does not tell."""
    autocast: bool = False
    apart: str = ""
    """What is not the same."""


_PEAK = (
    "Theirs is the peak of a GPU's allocator, with parameters, gradients and work space; ours is "
    "what autograd keeps."
)
_AMP = "Theirs ran under CUDA's autocast to float16, ours under the CPU's to bfloat16."
_OLD = "Theirs is an older torch."
MESA = "https://github.com/HubHop/deit-mesa, https://github.com/ziplab/Mesa/issues/2"
_MESA = (
    f"{_PEAK} {_AMP} Attention is not fused, as in the timm of that time. Mesa also keeps 8 bits "
    "of what matrix products, softmax and layer norm keep, which is not counted here."
)


def _mesa(name: str, model: str, published: str) -> Row:
    return Row(
        name,
        "128 images of 224², autocast",
        "Mesa",
        "8 bits of everything",
        published,
        MESA if name.startswith("DeiT") else "https://github.com/HubHop/swin-mesa",
        error_of_eight_bits,
        partial(_image, model, 128, fused=False),
        partial(_image, model, 1, fused=False),
        autocast=True,
        apart=_MESA,
    )


ROWS = (
    Row(
        "BERT-base",
        "16 × 512 words",
        "optiacts",
        "GELU from its output and a bit",
        "4.71 → 3.62 GiB",
        "https://github.com/PgLoLo/optiacts/blob/main/examples/BERT.ipynb",
        error_of_optiacts,
        partial(_transformer, "Bert", 16, 512),
        partial(_transformer, "Bert", 1, 64, num_hidden_layers=2),
        theirs=output_and_bit,
        apart="Theirs is what a GPU holds after the forward pass, without the model. Attention has "
        "no dropout in ours, since no CPU kernel draws it there. For the other 25 dropouts "
        "a CPU keeps masks of floats, where a GPU keeps bytes: 3 · 25 · 16 · 512 · 768 bytes, 0.44 "
        "GiB, of torch's figure, and nothing of ours, which keeps bits.",
    ),
    Row(
        "EfficientNet-B1",
        "64 images of 224², autocast",
        "timm#156",
        "SiLU in place",
        "3,927 → 2,901 MB",
        "https://github.com/huggingface/pytorch-image-models/pull/156",
        error_of_overwriting,
        partial(_image, "efficientnet_b1", 64),
        partial(_image, "efficientnet_b1", 2, 96),
        theirs=overwritten,
        autocast=True,
        apart=f"{_PEAK} {_AMP} The change was withdrawn, as its gradients were wrong.",
    ),
    Row(
        "YOLOv3-SPP, Mish",
        "16 images of 416²",
        "Mish#18",
        "leaky ReLU in place",
        "11.1 → 4.0 GB",
        "https://github.com/digantamisra98/Mish/issues/18",
        None,
        partial(_yolo, ComposedMish, 16, 416),
        partial(_yolo, ComposedMish, 2, 96),
        theirs=lambda model: _swap(
            model, ("ComposedMish",), lambda old: nn.LeakyReLU(0.1, inplace=True)
        ),
        apart=f"{_PEAK} It does not name the batch and the side; these are of the same author's "
        "https://github.com/ultralytics/yolov3/issues/441. Leaky ReLU is another function, with "
        "1.6 points less of mAP@0.5:0.95 in the same issue.",
    ),
    _mesa("DeiT-Ti", "deit_tiny_patch16_224", "4,171 → 1,858 MB"),
    _mesa("DeiT-S", "deit_small_patch16_224", "8,459 → 3,840 MB"),
    _mesa("DeiT-B", "deit_base_patch16_224", "17,691 → 8,616 MB"),
    _mesa("Swin-Ti", "swin_tiny_patch4_window7_224", "11,812 → 5,371 MB"),
    Row(
        "ResNeXt-101",
        "64 images of 224² a GPU",
        "InPlace-ABN",
        "norm and leaky ReLU from their output",
        "twice the batch on the same GPUs",
        "https://github.com/mapillary/inplace_abn (batches of 256 and 512)",
        error_of_inversion,
        partial(_resnext, 64, 224),
        partial(_resnext, 2, 64),
        theirs=inverted,
        apart="Ours keeps the norms' statistics, two floats a channel, which are not counted for "
        "theirs. No bytes are published for this network: only the batches, and “up to 50%”. "
        "Theirs is an older torch, and its weights are |γ| + ε.",
    ),
    Row(
        "RoBERTa-base",
        "32 × 128 words",
        "fewbit",
        "GELU's derivative in 3 bits",
        "–",
        "https://github.com/skolai/fewbit/blob/main/benchmark/bench-roberta.py",
        error_of_three_bits,
        partial(_transformer, "Roberta", 32, 128),
        partial(_transformer, "Roberta", 1, 64, num_hidden_layers=2),
        theirs=partial(few_bits, bits=3),
        apart="The table with MRPC was not at hand, so its figures are left out. Sentences of MRPC "
        "have many lengths; 128 words stand for them. Dropout is as with BERT.",
    ),
    Row(
        "ViT-B",
        "64 images of 224², autocast",
        "Approx-BP",
        "GELU's derivative in 2 bits, norms that share",
        "up to about 30% less",
        "https://arxiv.org/abs/2406.16282, https://github.com/yyyyychen/LowMemoryBP",
        error_of_two_bits,
        partial(_image, "vit_base_patch16_224", 64),
        partial(_image, "vit_base_patch16_224", 1),
        theirs=shared_norms,
        autocast=True,
        apart=f"The figure is of the peak, over all its experiments; that of this network was not "
        f"at hand. {_AMP} Sharing needs norms without weights, and another linear layer.",
    ),
)


def fake(mode: FakeTensorMode, model: nn.Module) -> None:
    """Replace the parameters and buffers by fake ones. (Some networks can't be made of them, as
    they read numbers from tensors when they are built.)
    """
    parameters: dict[int, nn.Parameter] = {}
    for module in model.modules():
        for name, value in module._parameters.items():
            if value is not None and id(value) not in parameters:
                parameters[id(value)] = nn.Parameter(mode.from_tensor(value.detach()))
            module._parameters[name] = None if value is None else parameters[id(value)]
        for name, buffer in module._buffers.items():
            module._buffers[name] = None if buffer is None else mode.from_tensor(buffer)


def counts(row: Row) -> dict[str, int | None]:
    """Bytes kept by each way."""

    def made() -> tuple[FakeTensorMode, nn.Module, Tensor]:
        mode = FakeTensorMode()
        model, given = row.build()
        fake(mode, model)
        return mode, model, mode.from_tensor(given)

    autocast = partial(torch.autocast, "cpu", torch.bfloat16, enabled=row.autocast)

    def kept(change: Change) -> int:
        mode, model, given = made()
        with mode:
            change(model)
            counted = mk.KeptBytes(exclude=[*model.parameters(), *model.buffers(), given])
            with counted, autocast():
                model(given)
        return counted.total

    mode, model, given = made()
    with mode, autocast():
        report = mk.lean(model, given)
    theirs = row.theirs and kept(row.theirs)
    found = {"torch": report.kept, "mk.lean": report.after_lean, "theirs": theirs}
    return found | {"checkpoint": report.checkpointed}


def loss_of(output: Any) -> Tensor:
    """The mean square of all outputs."""
    if not isinstance(output, (Tensor, list)):
        output = output[0]
    outputs = output if isinstance(output, list) else [output]
    return torch.stack([one.square().mean() for one in outputs]).sum()


def gradients(model: nn.Module, given: Any, within: AbstractContextManager[Any]) -> Tensor:
    """All gradients of a step, as one vector."""
    torch.manual_seed(1)
    model.zero_grad(set_to_none=True)
    with within:
        loss = loss_of(model(given))
    loss.backward()
    return torch.cat([p.grad.flatten() for p in model.parameters() if p.grad is not None])


def our_errors(row: Row) -> dict[str, Any]:
    """How far our gradients are from torch's, on real tensors; and how far both are, without
    dropout, from those in float64, relative to their norm.
    """
    torch.manual_seed(0)
    model, given = row.small()
    plain = gradients(model, given, nullcontext())
    within = gradients(model, given, mk.recompute())
    for module in model.modules():
        if isinstance(module, nn.Dropout):
            module.p = 0.0
    torchs = gradients(model, given, nullcontext())
    exact = given if given.dtype == torch.int64 else given.double()
    exact = gradients(copy.deepcopy(model).double(), exact, nullcontext())
    mk.lean(model, given)
    lean = gradients(model, given, nullcontext())
    return {
        "same bits": torch.equal(plain, within),
        "recompute": float((within - plain).abs().max()),
        "torch, relative": float((torchs - exact).norm() / exact.norm()),
        "lean, relative": float((lean - exact).norm() / exact.norm()),
    }


def measure(row: Row) -> dict[str, Any]:
    """All figures of one row."""
    start = time.monotonic()
    error = None if row.error is None else row.error()
    found = {"bytes": counts(row), "their error": error, "ours": our_errors(row)}
    return found | {"seconds": round(time.monotonic() - start, 1)}


# ---- the page ------------------------------------------------------------------------------------


def verdict(row: Row, found: dict[str, Any]) -> str:
    """Whether ours is the lowest among the methods that compute the gradient, and what is not."""
    kept, error = found["bytes"], found["their error"]
    ours, theirs = kept["mk.lean"], kept["theirs"]
    said = f"**{row.name}.** Ours keeps {ours / kept['torch']:.3f} of torch's bytes"
    if theirs is not None:
        said += f", theirs {theirs / kept['torch']:.3f} by the same count"
    counts_as_exact = error is None or error <= LARGEST
    if not counts_as_exact:
        said += f"; theirs is not compared with, at an error of {error:.2g}"
    elif theirs is not None and theirs < ours:
        said += f": **ours is higher**, by {readable(ours - theirs)}"
    else:
        said += ": the lowest"
    if kept["checkpoint"] is not None and kept["checkpoint"] < ours:
        said += (
            f". A checkpoint a block keeps less, {kept['checkpoint'] / kept['torch']:.3f}, and "
            "computes every forward pass twice"
        )
    return f"{said}. {row.apart}".strip()


def figure(error: float | None) -> str:
    """An error, or a dash."""
    return "–" if error is None else f"{error:.2g}"


def tables(results: dict[str, Any]) -> tuple[str, str]:
    """What is published, and what was counted."""
    published, counted = [], []
    for row in ROWS:
        found = results["rows"].get(row.name)
        if found is None:
            continue
        error = figure(found["their error"])
        published.append((row.name, row.setting, row.by, row.method, row.published, error))
        kept, ours = found["bytes"], found["ours"]
        sizes = (readable(kept[k]) if kept[k] is not None else "–" for k in ("torch", "theirs"))
        ratio = f"{kept['mk.lean'] / kept['torch']:.3f}"
        again = "–" if kept["checkpoint"] is None else readable(kept["checkpoint"])
        same = f"{ours['recompute']:g}" if ours["same bits"] else f"**{ours['recompute']:.2g}**"
        cells = (*sizes, readable(kept["mk.lean"]), ratio, same, again)
        counted.append((row.name, *cells))
    head = ("network", "setting", "by", "method", "before → after", "largest error of the gradient")
    of_ours = ("torch", "theirs", "`mk.lean`", "`mk.lean` ÷ torch", "error of ours")
    return (
        markdown(head, published, words=5),
        markdown(("network", *of_ours, "checkpoint a block"), counted),
    )


def page(results: dict[str, Any]) -> str:
    """The page of the documentation."""
    published, counted = tables(results)
    rows = [row for row in ROWS if row.name in results["rows"]]
    missing = [row.name for row in ROWS if row not in rows]
    machine = results["facts"]
    ours = [results["rows"][row.name]["ours"] for row in rows]
    pairs = [(one.get("lean, relative"), one.get("torch, relative")) for one in ours]
    ratios = [lean / torchs for lean, torchs in pairs if lean and torchs]
    return TEMPLATE.format(
        published=published,
        counted=counted,
        missing=f"\nNot counted yet: {', '.join(missing)}.\n" if missing else "",
        verdicts="\n".join(f"- {verdict(row, results['rows'][row.name])}" for row in rows),
        sources="\n".join(f"- {row.name}, {row.by}: {row.source}" for row in rows),
        torch=machine["torch"],
        date=machine["date"],
        lean=span(ratios),
        largest=f"{LARGEST:g}",
    )


TEMPLATE = """# The record

What others have published of the memory that training takes, and the same networks and batches by
our count. Made by `python benchmarks/record.py` with torch {torch} on {date}; all figures
are in [record.csv](record.csv).

## Published

As their authors give them, on their GPUs. The error is the largest of the gradient that the method
computes, against the true one: of its derivative for GELU and SiLU, of the stored values over their
range for Mesa, and of the recovered input over the largest for InPlace-ABN. It is computed from the
published formulas.

{published}

## Counted

Bytes that autograd keeps between the passes, by distinct storage, without parameters, buffers and
the input. They are counted on fake tensors for a CPU, which give to the byte what real ones do.
*Theirs* is the same network with layers that keep what the published method says it keeps. The
error is that of all gradients within `mk.recompute()`, on real tensors in float32 with small
inputs: 0 means the same bits. `mk.lean` also exchanges activations for mishkit's kernels, whose
last digits differ from torch's. Its gradients in float32 are {lean} times as far from those in
float64 as torch's own.

{counted}
{missing}
## What follows

The lowest is looked for among methods whose gradients are off by no more than {largest}.

{verdicts}

## Sources

{sources}
"""


def write_csv(results: dict[str, Any]) -> None:
    """All figures, a line a network."""
    with CSV.open("w", newline="", encoding="utf-8") as file:
        write = csv.writer(file, lineterminator="\n")
        ways = ("torch", "theirs", "mk.lean", "checkpoint")
        head = ("network", "setting", "by", "method", "published", "their error", *ways)
        of_ours = ("error of recompute", "torch from float64", "lean from float64")
        write.writerow((*head, *of_ours, "source"))
        for row in ROWS:
            found = results["rows"].get(row.name)
            if found is not None:
                error, ours = found["their error"], found["ours"]
                first = (row.name, row.setting, row.by, row.method, row.published, error)
                errors = [ours.get(k) for k in ("recompute", "torch, relative", "lean, relative")]
                write.writerow((*first, *(found["bytes"][w] for w in ways), *errors, row.source))


def main(
    only: Annotated[list[str] | None, typer.Option(help="Count these networks anew.")] = None,
    page_only: Annotated[bool, typer.Option(help="Write the page from docs/record.json.")] = False,
) -> None:
    """Count, compare, and write docs/record.md with its CSV and JSON."""
    results: dict[str, Any] = {"rows": {}}
    if (page_only or only) and RESULTS.exists():
        results = json.loads(RESULTS.read_text(encoding="utf-8"))
    if not page_only:
        mend = mend_torchvision()  # held for as long as this runs
        warnings.simplefilter("ignore")
        results["facts"] = facts() | {"torch": torch.__version__}
        for row in track([row for row in ROWS if not only or row.name in only], "counting"):
            results["rows"][row.name] = measure(row)
            RESULTS.write_text(json.dumps(results, indent=1) + "\n", encoding="utf-8")
        del mend
    write_csv(results)
    PAGE.write_text(page(results), encoding="utf-8")
    print(*tables(results), f"written: {PAGE}, {CSV}, {RESULTS}", sep="\n\n")


if __name__ == "__main__":
    typer.run(main)
