"""What `mishkit.lean` does to whole networks, in bytes and in time: writes docs/lean.md.

    python benchmarks/lean_models.py                  # everything, in about half an hour
    python benchmarks/lean_models.py --only BERT      # one network anew; the others stay
    python benchmarks/lean_models.py --page-only      # the page anew, from docs/lean.json

The networks have random weights. They come from timm and transformers. Llama, SmolLM2-135M,
Mixtral and eva02_tiny have gates (SwiGLU).
"""

from __future__ import annotations

import copy
import gc
import json
import time
import warnings
from collections.abc import Callable, Iterator
from contextlib import AbstractContextManager, contextmanager, nullcontext
from functools import partial
from statistics import median
from typing import Annotated, Any

import torch
import typer
from matplotlib import rc_context
from matplotlib.figure import Figure
from networks import replace
from pages import DOCS, README, facts, markdown, put
from rich.progress import track
from torch import Tensor, nn
from torch.profiler import ProfilerActivity, profile
from torch.utils.checkpoint import (
    CheckpointPolicy,
    checkpoint,
    create_selective_checkpoint_contexts,
)

import mishkit as mk
from mishkit._torchvision import mend_torchvision
from mishkit.lab.calculus.drawing import COLOURS, style
from mishkit.lab.common.memory import grown_by, in_process, return_freed_memory
from mishkit.surgery.report import readable

PAGE, RESULTS, FIGURE = DOCS / "lean.md", DOCS / "lean.json", DOCS / "figures" / "lean.svg"
BYTES_BARS = {
    "resnet18, Mish": 0.41,
    "resnet50, Mish": 0.44,
    "efficientnet_b0": 0.32,
    "mobilenetv3_small, Mish": 0.34,
    "cspdarknet53, Mish": 0.45,
    "densenet121, Mish": 0.355,
    "convnext_atto": 0.525,
    "vit_tiny": 0.63,
    "swin_tiny": 0.70,
    "Llama": 0.50,
    "SmolLM2-135M": 0.50,
    "Mixtral": 0.50,
    "eva02_tiny": 0.50,
    "GPT-2": 0.50,
    "BERT": 0.70,
}
"""The most bytes that may be alive after a forward pass, over those without mishkit."""
STEP_BARS = {
    "efficientnet_b0": 1.08,
    "Llama": 1.0,
    "vit_tiny": 1.05,
    "resnet50, Mish": 0.95,
    "SmolLM2-135M": 1.0,
    "Mixtral": 1.0,
    "eva02_tiny": 1.0,
}
"""The most that a training step may take, over the time that it takes without mishkit."""
IN_README = ("resnet50, Mish", "efficientnet_b0", "vit_tiny", "Llama")
LARGER = {"resnet50, Mish": (2, 160), "efficientnet_b0": (4, 160), "vit_tiny": (4, 224)}
"""Batch size and pixels for the steps that are timed."""
SECONDS = 30.0
"""How long the ways to train one network are timed."""

# ---- the networks --------------------------------------------------------------------------------


def _timm(name: str, batch: int, side: int, mish: bool = False) -> tuple[nn.Module, Any]:
    import timm

    model = timm.create_model(name, num_classes=10, **({"act_layer": nn.Mish} if mish else {}))
    if mish:
        replace(model, (nn.ReLU, nn.LeakyReLU), nn.Mish)  # which timm builds itself
    for module in model.modules():
        if getattr(module, "inplace", False):
            module.inplace = False
    return model, torch.randn(batch, 3, side, side)


def _tokens(build: tuple[str, str], **sizes: Any) -> tuple[nn.Module, Any]:
    import transformers

    # A cache of keys would grow once more when a checkpoint runs a block again.
    config = getattr(transformers, f"{build[0]}Config")(
        **{"vocab_size": 100, "use_cache": False, **sizes}
    )
    return getattr(transformers, build[1])(config), torch.randint(0, 100, (2, 128))


def build(name: str, larger: bool = False) -> tuple[nn.Module, Any]:
    """A network in training mode with torch's activations, out of place, and its input."""
    torch.manual_seed(0)
    plain, mish = name.removesuffix(", Mish"), name.endswith(", Mish")
    names = {
        "mobilenetv3_small": "mobilenetv3_small_100",
        "vit_tiny": "vit_tiny_patch16_224",
        "swin_tiny": "swin_tiny_patch4_window7_224",
        "eva02_tiny": "eva02_tiny_patch14_224",
    }
    of_256 = {"hidden_size": 256, "num_hidden_layers": 4, "num_attention_heads": 4}
    if name == "Llama":
        sizes = {"intermediate_size": 688, "num_key_value_heads": 2}
        ends = {"bos_token_id": 1, "eos_token_id": 2}
        built = _tokens(("Llama", "LlamaForCausalLM"), **of_256, **sizes, **ends)
    elif name == "SmolLM2-135M":
        sizes = {"hidden_size": 576, "num_hidden_layers": 30, "num_attention_heads": 9}
        sizes |= {"intermediate_size": 1536, "num_key_value_heads": 3, "vocab_size": 49152}
        built = _tokens(("Llama", "LlamaForCausalLM"), **sizes, tie_word_embeddings=True)
    elif name == "Mixtral":
        sizes = {"intermediate_size": 344, "num_key_value_heads": 2, "num_local_experts": 4}
        built = _tokens(("Mixtral", "MixtralForCausalLM"), **of_256, **sizes)
    elif name == "GPT-2":
        sizes = {"n_embd": 256, "n_layer": 4, "n_head": 4, "bos_token_id": 1, "eos_token_id": 2}
        built = _tokens(("GPT2", "GPT2LMHeadModel"), **sizes)
    elif name == "BERT":
        built = _tokens(("Bert", "BertModel"), **of_256, intermediate_size=1024)
    else:
        batch, side = (2, 224) if plain in ("vit_tiny", "swin_tiny", "eva02_tiny") else (2, 96)
        if larger:
            batch, side = LARGER[name]
        built = _timm(names.get(plain, plain), batch, side, mish)
    return built[0].train(), built[1]


def loss_of(model: nn.Module, given: Tensor) -> Tensor:
    """The mean square of the output."""
    output = model(given)
    if not isinstance(output, Tensor):
        output = output.logits if "logits" in output else output[0]
    return output.float().square().mean()


# ---- ways to train -------------------------------------------------------------------------------

_MATRICES = {
    torch.ops.aten.convolution.default,
    torch.ops.aten.addmm.default,
    torch.ops.aten.mm.default,
    torch.ops.aten.bmm.default,
    torch.ops.aten._scaled_dot_product_flash_attention_for_cpu.default,
}


def _save_matrices(context: Any, operator: Any, *_: Any, **__: Any) -> CheckpointPolicy:
    saves = operator in _MATRICES
    return CheckpointPolicy.MUST_SAVE if saves else CheckpointPolicy.PREFER_RECOMPUTE


def _each_block(model: nn.Module, given: Tensor, **options: Any) -> nn.Module:
    """With a checkpoint around each block: the items of containers that hold activations."""
    for name in mk.audit(model, given).blocks:
        block = model.get_submodule(name)
        block.forward = partial(checkpoint, block.forward, use_reentrant=False, **options)
    return model


def _selectively(model: nn.Module, given: Tensor) -> nn.Module:
    contexts = partial(create_selective_checkpoint_contexts, _save_matrices)
    return _each_block(model, given, context_fn=contexts)


def _lean(model: nn.Module, given: Tensor, **options: Any) -> nn.Module:
    mk.lean(model, given, **options)
    return model


Context = Callable[[], AbstractContextManager[Any]]
Way = tuple[Callable[[nn.Module, Tensor], nn.Module], Context]
TORCH, LEAN, COMPILED = "torch", "mk.lean", "torch.compile"
SELECTIVE, TIGHT = "selective checkpoint", "mk.lean, budget 0.4"
DRAWN = (TORCH, LEAN, "checkpoint", SELECTIVE, COMPILED)
WAYS: dict[str, Way] = {
    TORCH: (lambda model, given: model, nullcontext),
    "mk.recompute()": (lambda model, given: model, mk.recompute),
    LEAN: (_lean, nullcontext),
    "mk.lean, budget 0.75": (partial(_lean, budget=0.75), nullcontext),
    TIGHT: (partial(_lean, budget=0.4), nullcontext),
    "mk.lean, recompute=False": (partial(_lean, recompute=False), nullcontext),
    "checkpoint": (_each_block, nullcontext),
    SELECTIVE: (_selectively, nullcontext),
    COMPILED: (lambda model, given: torch.compile(model), nullcontext),
}


def ways_of(name: str) -> list[str]:
    """The ways that are timed for a network. A model for each must fit into memory at once."""
    return [TORCH, LEAN, SELECTIVE] if name == "SmolLM2-135M" else list(WAYS)


def step_of(way: str, model: nn.Module, given: Tensor) -> Callable[[], Tensor]:
    """One training step without the optimizer; returns the loss."""
    change, context = WAYS[way]
    changed = change(model, given)

    def step() -> Tensor:
        torch.manual_seed(1)
        changed.zero_grad(set_to_none=True)
        with context():
            loss = loss_of(changed, given)
        loss.backward()
        return loss.detach()

    return step


@contextmanager
def counted() -> Iterator[list[int]]:
    """The bytes that are allocated within, and still are at the end."""
    gc.collect()
    found: list[int] = []
    with profile(activities=[ProfilerActivity.CPU], profile_memory=True) as profiler:
        yield found
    events = profiler.profiler.kineto_results.events()
    found.append(sum(event.nbytes() for event in events if event.name() == "[memory]"))


def alive(way: str, model: nn.Module, given: Tensor) -> int:
    """Bytes alive after the forward pass of a training step."""
    change, context = WAYS[way]
    changed = change(model, given)
    loss_of(changed, given).backward()
    changed.zero_grad(set_to_none=True)
    with counted() as found, context():
        loss = loss_of(changed, given)
    loss.backward()
    return found[0]


def peak(name: str, way: str) -> int | None:
    """Bytes by which a training step raises the resident memory; run in a process of its own."""
    mend = mend_torchvision()
    return_freed_memory()
    step = step_of(way, *build(name, larger=name in LARGER))
    step()
    step()
    del mend
    gc.collect()
    return grown_by(step, repeats=1)


# ---- measuring -----------------------------------------------------------------------------------


def gradients(model: nn.Module, given: Tensor, context: Context, autocast: bool) -> Tensor:
    """All gradients of a step, as one vector."""
    torch.manual_seed(1)
    model.zero_grad(set_to_none=True)
    with torch.autocast("cpu", torch.bfloat16, enabled=autocast), context():
        loss = loss_of(model, given)
    loss.backward()
    return torch.cat([p.grad.flatten() for p in model.parameters() if p.grad is not None])


def bytes_of(name: str) -> dict[str, Any]:
    """What one network keeps, three ways, and whether gradients are the same to the bit."""
    model, given = build(name)
    ways = (TORCH, "mk.recompute()", LEAN, "mk.lean, recompute=False")
    found: dict[str, Any] = {way: alive(way, copy.deepcopy(model), given) for way in ways}
    for autocast in (False, True):
        pair = (
            gradients(copy.deepcopy(model), given, context, autocast)
            for context in (nullcontext, mk.recompute)
        )
        found[f"same, {'bfloat16' if autocast else 'float32'}"] = torch.equal(*pair)
    return found


def steps_of(name: str) -> dict[str, dict[str, Any]]:
    """The time and memory of a step of one network, in every way."""
    model, given = build(name, larger=name in LARGER)
    steps, found = {}, {}
    for way in ways_of(name):
        steps[way] = step_of(way, copy.deepcopy(model), given)
        found[way] = {"alive": alive(way, copy.deepcopy(model), given), "samples": []}
        steps[way]()
    end, rounds = time.monotonic() + SECONDS, 0
    while time.monotonic() < end or rounds < 5:
        for way, step in steps.items():
            start = time.process_time()
            step()
            found[way]["samples"].append(time.process_time() - start)
        rounds += 1
    for way in steps:
        # To compile takes a minute, and much memory that stays.
        found[way]["peak"] = None if way == COMPILED else in_process(peak, name, way)
    report = mk.lean(copy.deepcopy(model), given, budget=0.99)
    found["curve"] = {"points": report.curve, "kept": report.kept}
    return found


def main(
    only: Annotated[list[str] | None, typer.Option(help="One of the networks.")] = None,
    page_only: Annotated[bool, typer.Option(help="Write the page from docs/lean.json.")] = False,
) -> None:
    """Measure the networks, print the tables, and write docs/lean.md.

    With --only, what docs/lean.json has of other networks stays, if it is of this CPU and torch.
    """
    results: dict[str, Any] = {}
    if only or page_only:
        results = json.loads(RESULTS.read_text())
    if not page_only:
        mend = mend_torchvision()  # held for as long as this runs
        torch.set_num_threads(1)
        warnings.simplefilter("ignore")
        wanted = [name for name in BYTES_BARS if not only or name in only]
        here = facts() | {"torch": torch.__version__}
        if only and any(results["facts"][key] != here[key] for key in ("cpu", "isa", "torch")):
            raise typer.BadParameter(
                "docs/lean.json is of another CPU or torch", param_hint="--only"
            )
        results["facts"] = here
        for name in track(wanted, "bytes"):
            results.setdefault("bytes", {})[name] = bytes_of(name)
            RESULTS.write_text(json.dumps(results) + "\n")
        for name in track([name for name in STEP_BARS if name in wanted], "steps"):
            results.setdefault("steps", {})[name] = steps_of(name)
            RESULTS.write_text(json.dumps(results) + "\n")
        del mend
    print(table_of_bytes(results["bytes"]), table_of_steps(results["steps"]), sep="\n\n")
    draw(results["steps"])
    PAGE.write_text(page(results))
    put(README, "lean", short(results))
    print(f"written: {PAGE}, {FIGURE}, {RESULTS}, {README}")


# ---- the page ------------------------------------------------------------------------------------


def verdict(value: float, bar: float | None) -> str:
    """A bar, and whether it is met."""
    if bar is None:
        return ""
    return f"≤ {bar:g}, {'met' if round(value, 3) <= bar else '**missed**'}"


def table_of_bytes(networks: dict[str, dict[str, Any]]) -> str:
    """Bytes alive after a forward pass."""
    rows = []
    for name, found in networks.items():
        whole, lean = found[TORCH], found[LEAN]
        outputs, within = found["mk.lean, recompute=False"], found["mk.recompute()"]
        same = ("yes" if found[f"same, {dtype}"] else "**no**" for dtype in ("float32", "bfloat16"))
        ratios = (f"{part / whole:.3f}" for part in (outputs, within, lean))
        bar = verdict(lean / whole, BYTES_BARS[name])
        rows.append((name, readable(whole), *ratios, bar, *same))
    head = ("network", "torch", "`recompute=False`", "`mk.recompute()`", "`mk.lean`", "bar")
    return markdown((*head, "same gradient, float32", "under autocast"), rows)


def table_of_steps(networks: dict[str, dict[str, dict[str, Any]]]) -> str:
    """Time and memory of a training step."""
    rows = []
    for name, ways in networks.items():
        whole = ways[TORCH]
        for way in filter(ways.get, WAYS):
            found = ways[way]
            least, middle = (how(found["samples"]) / how(whole["samples"]) for how in (min, median))
            of_memory = [
                f"{found[what] / whole[what]:.3f}" if found[what] and whole[what] else "–"
                for what in ("alive", "peak")
            ]
            bar = verdict(least, STEP_BARS[name]) if way == LEAN else ""
            times = (f"{least:.3f}", f"{middle:.3f}")
            rows.append((name, way if way == TORCH else f"`{way}`", *of_memory, *times, bar))
    head = ("network", "way", "alive", "peak", "time, minimum", "time, median", "bar")
    return markdown(head, rows, words=2)


def draw(networks: dict[str, dict[str, dict[str, Any]]]) -> None:
    """Memory against time, a panel per network, a point per way, and the curve of budgets.

    The panels stand below one another, so that the page shows them whole on a telephone.
    """
    with style(), rc_context({"font.size": 10, "svg.fonttype": "none", "svg.hashsalt": "0"}):
        figure = Figure((4.6, 2.9 * len(networks)), layout="constrained")
        for panel, (name, ways) in zip(
            figure.subplots(len(networks)), networks.items(), strict=True
        ):
            whole = ways[TORCH]
            least = min(whole["samples"])
            curve = ways["curve"]
            panel.plot(
                [kept / curve["kept"] for kept, _ in curve["points"]],
                [1 + seconds / least for _, seconds in curve["points"]],
                color="#999999",
            )
            for number, way in enumerate(DRAWN):
                if way not in ways:
                    continue
                found = ways[way]
                at = found["alive"] / whole["alive"], min(found["samples"]) / least
                panel.scatter(*at, marker="osD^v"[number], s=45, color=COLOURS[number], zorder=3)
                panel.annotate(
                    way,
                    at,
                    xytext=(0, -12 if way in (TORCH, COMPILED) else 10),
                    textcoords="offset points",
                    ha="left" if at[0] < 0.2 else "center",
                    va="center",
                    color=COLOURS[number],
                )
            panel.axhline(1, color="#cccccc", linewidth=1, zorder=0)
            panel.set(title=name, xlim=(0, 1.35))
            panel.set(xlabel="bytes alive after forward, torch = 1")
            panel.set(ylabel="time of a step, torch = 1")
            panel.margins(y=0.25)
        FIGURE.parent.mkdir(parents=True, exist_ok=True)
        figure.savefig(FIGURE, metadata={"Date": None, "Creator": None})


def short(results: dict[str, Any]) -> str:
    """The README's table."""
    rows = []
    for name, found in results["bytes"].items():
        if name not in IN_README:
            continue
        ways = results["steps"][name]
        took = [
            f"{how(ways[LEAN]['samples']) / how(ways[TORCH]['samples']):.2f}"
            for how in (min, median)
        ]
        rows.append((name, f"{found[LEAN] / found[TORCH]:.2f}", *took))
    head = ("network", "activation memory", "time of a step, minimum", "median")
    said = (
        "After `mk.lean`, over the same network with torch's functions, on one thread of an "
        f"{results['facts']['cpu']}:"
    )
    return f"{said}\n\n{markdown(head, rows)}\n"


def beaten(networks: dict[str, dict[str, dict[str, Any]]]) -> str:
    """How `lean` compares with selective checkpoints."""
    said = []
    for name, ways in networks.items():
        ours, theirs = ways[LEAN], ways[SELECTIVE]
        memory = ours["alive"] / theirs["alive"]
        least = min(ours["samples"]) / min(theirs["samples"])
        said.append(f"{name}: {memory:.2f} of the bytes in {least:.2f} of the time")
    return "; ".join(said)


def page(results: dict[str, Any]) -> str:
    """The page of the documentation."""
    machine = results["facts"]
    return TEMPLATE.format(
        machine=f"{machine['cpu']}, {machine['isa'].upper()}, torch {machine['torch']}, "
        f"{machine['date']}",
        bytes=table_of_bytes(results["bytes"]),
        steps=table_of_steps(results["steps"]),
        beaten=beaten(results["steps"]),
        figure=FIGURE.relative_to(PAGE.parent),
    )


TEMPLATE = """# Lean networks

What `mk.lean` does to whole networks. Made by `python benchmarks/lean_models.py` on one thread of
an {machine}. The networks have random weights and train in float32.

## Bytes

Bytes alive after the forward pass of a training step, as counted from the allocator's events,
over those of the same network with torch's activations out of place. Images are 2×3×96×96
(224×224 for the transformers), sentences 2×128 tokens. Llama, Mixtral, GPT-2 and BERT have 4
layers of 256, Mixtral 4 experts; GPT-2 and BERT have dropout 0.1. SmolLM2-135M has the sizes of
that model. The bars are for `mk.lean`. `recompute=False` is `mk.lean(model, x, recompute=False)`,
which keeps outputs in place of inputs. *Same gradient* says whether all gradients within
`mk.recompute()` have the same bits as without.

{bytes}

## Time

A training step without the optimizer, in processor time. Every way is timed in turns. *Alive* is
as above, *peak* is by how much a step raises the resident memory, each in a process of its own.
All figures are over torch's. Checkpoints are around each block; the selective ones save
convolutions, matrix products and attention.

{steps}

Where minimum and median differ by much, other programs on the machine disturbed one of the ways
more than the others, and neither should be trusted.

`mk.lean` against selective checkpoints: {beaten}.

![Memory against time]({figure})

The figure shows five of the ways. Its grey line is the `curve` of the report for other budgets,
whose times are those measured while the budget was looked for.

## On a GPU

Nothing on this page was measured on a GPU. The bytes that are kept depend on the operators that a
model calls, and are nearly the same there: attention and dropout differ, as CUDA's kernels keep a
seed or a mask of bools where the CPU's keep floats. The time is a matter of memory bandwidth:
what is recomputed is read and written once more. Kernels for what follows a norm are written in
Triton and tested in its interpreter, and compile for sm_75 to sm_100 and gfx942; none has run.
Each dropped tensor also costs some ten microseconds of Python per step, which a GPU hides only if
it has enough work queued. Measure with `torch.cuda.max_memory_allocated` before you rely on it.
"""


if __name__ == "__main__":
    typer.run(main)
