"""Try mishkit's surgery on every architecture family of timm and transformers.

    python tools/zoo.py                        # all; goes on after Ctrl-C; writes docs/zoo.md
    python tools/zoo.py --fresh                # the same from the beginning
    python tools/zoo.py --page-only            # docs/zoo.md from what has been tried so far
    python tools/zoo.py timm transformers:b    # only those whose names begin so
    python tools/zoo.py --one timm:resnet10t   # one of them, in this process

Every model has random weights, takes a small input and runs in a process of its own. In each mode
(training, evaluation, under a checkpoint, in channels_last) a step in float64 is compared between
the model as it was built and the model after `lean` and after `unswap`; in training also after
`lean(recompute=False)`. Under bfloat16 autocast a training step after `lean` is compared with and
without recomputation. Outputs and gradients must agree, those after `unswap`, and with and without
recomputation, bit by bit. What is refused is listed with its error. What differs without an error
is a silent fault, and the exit status is 1.
"""

from __future__ import annotations

import argparse
import contextlib
import copy
import json
import multiprocessing
import multiprocessing.connection
import os
import random
import resource
import signal
import sys
import time
import traceback
import warnings
from collections import Counter
from collections.abc import Callable, Iterator, Mapping
from pathlib import Path
from typing import Any

import numpy
import torch
from rich.console import Console
from rich.progress import track
from torch import Tensor, nn
from torch.overrides import TorchFunctionMode
from torch.utils.checkpoint import checkpoint

import mishkit as mk
from mishkit._torchvision import mend_torchvision
from mishkit.recompute.model import suspended
from mishkit.surgery.watch import tensors_of

ROOT = Path(__file__).parent.parent
PAGE, STORE = ROOT / "docs" / "zoo.md", ROOT / "build" / "zoo.jsonl"
SECONDS, WAIT = 240, 1800
"""Seconds that one model may take: of processor time, and in all on a busy machine."""
MOST_PARAMETERS = 60_000_000
EXACT, IN_FLOAT32, FROM_OUTPUT = 1e-8, 1e-5, 1e-4
"""Relative errors of gradients: in float64 from the input, the same where the model itself computes
some of it in float32, and from the output.
"""
SMALL = {
    **dict.fromkeys(("hidden_size", "d_model", "n_embd", "dim", "embedding_size", "embed_dim"), 32),
    **dict.fromkeys(("intermediate_size", "d_ff", "n_inner", "ffn_dim", "hidden_dim"), 64),
    **dict.fromkeys(("encoder_ffn_dim", "decoder_ffn_dim", "moe_intermediate_size"), 64),
    **dict.fromkeys(("num_hidden_layers", "num_layers", "n_layer", "n_layers"), 2),
    **dict.fromkeys(("encoder_layers", "decoder_layers", "num_decoder_layers"), 2),
    **dict.fromkeys(("num_attention_heads", "num_heads", "n_head", "n_heads"), 4),
    **dict.fromkeys(("encoder_attention_heads", "decoder_attention_heads"), 4),
    **dict.fromkeys(("num_key_value_heads", "num_experts_per_tok"), 2),
    **dict.fromkeys(("num_experts", "num_local_experts", "n_routed_experts"), 4),
    **dict.fromkeys(("max_position_embeddings", "n_positions"), 128),
    **dict.fromkeys(("vocab_size",), 100),
    **dict.fromkeys(("head_dim", "d_kv", "patch_size"), 8),
    **dict.fromkeys(("image_size",), 32),
    "pad_token_id": 0,
    "bos_token_id": 1,
    "eos_token_id": 2,
}
"""Sizes for configurations of transformers."""

# ---- the models ----------------------------------------------------------------------------------


def names() -> list[str]:
    """One model of every family: the one with the shortest name that says it is small."""
    import timm
    from transformers import AutoModel
    from transformers.models.auto.modeling_auto import MODEL_MAPPING_NAMES

    marks = ("atto", "femto", "pico", "nano", "tiny", "xxs", "xs", "_s", "small", "10", "18", "b0")
    models_of_timm = []
    for module in timm.list_modules():
        models = timm.list_models(module=module)
        if models:
            models_of_timm.append(
                "timm:"
                + min(models, key=lambda name: (not any(m in name for m in marks), len(name), name))
            )
    assert AutoModel  # imported before any process is forked
    return models_of_timm + [f"transformers:{name}" for name in sorted(MODEL_MAPPING_NAMES)]


def shrunk(config: Any) -> Any:
    """The configuration with small sizes, in nested configurations too."""
    for key, value in list(vars(config).items()):
        if hasattr(value, "to_dict"):
            shrunk(value)
        elif key in SMALL and isinstance(value, int) and not isinstance(value, bool):
            setattr(config, key, SMALL[key])
    return config


def built(name: str) -> tuple[nn.Module, tuple[Any, ...], dict[str, Any]]:
    """The model, and inputs for it."""
    library, _, kind = name.partition(":")
    torch.manual_seed(0)
    if library == "timm":
        import timm

        model = timm.create_model(kind, num_classes=10)
        size = model.default_cfg["input_size"]
        if not model.default_cfg.get("fixed_input_size"):
            size = (size[0], *(min(side, 96) for side in size[1:]))
        return model, (torch.randn(2, *size),), {}
    import transformers

    config = shrunk(transformers.AutoConfig.for_model(kind))
    model = transformers.AutoModel.from_config(config)
    keywords: dict[str, Any] = {}
    tokens = torch.randint(3, 90, (2, 16))
    if model.main_input_name == "pixel_values":
        side = getattr(config, "image_size", 32)
        keywords["pixel_values"] = torch.randn(2, getattr(config, "num_channels", 3), side, side)
    elif model.main_input_name in ("input_values", "input_features"):
        bins = getattr(config, "num_mel_bins", None)
        keywords[model.main_input_name] = (
            torch.randn(2, bins, 3000) if bins else torch.randn(2, 4000)
        )
    else:
        keywords["input_ids"] = tokens
    if getattr(config, "is_encoder_decoder", False):
        keywords["decoder_input_ids"] = tokens
    return model, (), keywords


# ---- one model -----------------------------------------------------------------------------------


def step(model: nn.Module, args: Any, kwargs: Any, run: Callable[..., Any]) -> list[Tensor]:
    """The output, and the gradients of a training step."""
    for seed in (torch.manual_seed, random.seed, numpy.random.seed):
        seed(1)
    model.zero_grad(set_to_none=True)
    output = run(model, *copy.deepcopy(args), **copy.deepcopy(kwargs))
    y = next(tensor for tensor in tensors_of(output) if tensor.is_floating_point())
    y.double().square().mean().backward()
    return [y.detach(), *(p.grad for p in model.parameters() if p.grad is not None)]


def plainly(model: nn.Module, *args: Any, **kwargs: Any) -> Any:
    return model(*args, **kwargs)


def checkpointed(model: nn.Module, *args: Any, **kwargs: Any) -> Any:
    return checkpoint(model, *args, use_reentrant=False, **kwargs)


def autocast(model: nn.Module, *args: Any, **kwargs: Any) -> Any:
    with torch.autocast("cpu", dtype=torch.bfloat16):
        return model(*args, **kwargs)


MODES: dict[str, tuple[bool, bool, Callable[..., Any]]] = {
    "training": (True, False, plainly),
    "evaluation": (False, False, plainly),
    "checkpoint": (True, False, checkpointed),
    "channels_last": (True, True, plainly),
}
"""Whether the model trains, whether it is channels_last, and how it is called."""
WAYS: tuple[tuple[str, dict[str, Any], float], ...] = (
    ("lean", {"recompute": False}, FROM_OUTPUT),
    ("recompute", {"recompute": True}, EXACT),
)
"""The ways to call `lean`, and the largest error allowed in each."""


def error_between(got: list[Tensor], want: list[Tensor]) -> float:
    """The relative error of all tensors together, taken as one vector."""
    if [g.shape for g in got] != [w.shape for w in want]:
        return float("inf")
    size = sum(float(w.double().square().sum()) for w in want) ** 0.5
    off = sum(
        float((g.double() - w.double()).square().sum()) for g, w in zip(got, want, strict=True)
    )
    return off**0.5 / size if size else off**0.5


def doubled(value: Any) -> Any:
    """Tensors of floats in float64."""
    if isinstance(value, Tensor):
        return value.double() if value.is_floating_point() else value
    if isinstance(value, dict):
        return {key: doubled(element) for key, element in value.items()}
    return tuple(map(doubled, value)) if isinstance(value, tuple) else value


class Narrower(TorchFunctionMode):
    """Sees whether a model in float64 computes in float32 all the same, as some norms do."""

    seen = False

    def __torch_function__(
        self, func: Any, types: Any, args: Any = (), kwargs: Mapping[str, Any] | None = None
    ) -> Any:
        result = func(*args, **(kwargs or {}))
        if isinstance(result, Tensor) and result.dtype == torch.float32 and result.requires_grad:
            self.seen = True
        return result


def tried(name: str) -> dict[str, Any]:
    """The outcome for one model: a status, and an explanation."""
    try:
        plain, args, kwargs = built(name)
        count = sum(p.numel() for p in plain.parameters())
        if count > MOST_PARAMETERS:
            return {"status": "not tried", "words": f"{count / 1e6:.0f} million parameters"}
        step(plain, args, kwargs, plainly)  # some models finish building themselves in a first call
        double = copy.deepcopy(plain).double()
        args64, kwargs64 = doubled(args), doubled(kwargs)
        with Narrower() as narrower:
            step(double, args64, kwargs64, plainly)
    except Exception as error:
        return {"status": "not tried", "words": f"{type(error).__name__}: {error}"[:200]}
    faults, refused, ratio, sites = [], [], None, 0
    for mode, (train, channels_last, run) in MODES.items():
        layout = torch.channels_last if channels_last else torch.preserve_format
        start = double.train(train)
        if channels_last:
            if not any(p.dim() == 4 for p in double.parameters()):
                continue
            start = copy.deepcopy(double).to(memory_format=layout)
        try:
            want = step(copy.deepcopy(start), args64, kwargs64, run)
            again = error_between(step(copy.deepcopy(start), args64, kwargs64, run), want)
        except Exception:
            continue  # a mode that the model does not support
        if again:  # not even the same model gives the same numbers
            continue
        for way, options, bound in WAYS if mode == "training" else WAYS[1:]:
            model = copy.deepcopy(start)
            try:
                with warnings.catch_warnings():
                    warnings.simplefilter("ignore")
                    report = mk.lean(model, *args64, **kwargs64, **options)
                off = error_between(step(model, args64, kwargs64, run), want)
            except Exception as error:
                refused.append(f"{way} in {mode}: {type(error).__name__}: {error}"[:300])
                continue
            if mode == "training" and way == "recompute":
                ratio, sites = report.lean / max(report.kept, 1), len(report.sites)
            if not off <= (max(bound, IN_FLOAT32) if narrower.seen else bound):
                faults.append(f"{way} in {mode}: off by {off:.1e}")
            if mode == "training" and way == "recompute":
                with suspended():
                    kept = step(copy.deepcopy(model), args64, kwargs64, run)
                off = error_between(step(model, args64, kwargs64, run), kept)
                if off:
                    faults.append(f"{way} in {mode}: off by {off:.1e} from the same without")
            mk.unswap(model)
            fresh = copy.deepcopy(start)
            model.load_state_dict(fresh.state_dict())
            off = error_between(step(model, args64, kwargs64, run), want)
            if off:
                faults.append(f"unswap after {way} in {mode}: off by {off:.1e}")
    with contextlib.suppress(Exception):
        model = copy.deepcopy(plain).train()
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")
            mk.lean(model, *args, recompute=True, **kwargs)
        copied = copy.deepcopy(model)
        with suspended():
            want = step(copied, args, kwargs, autocast)
        off = error_between(step(model, args, kwargs, autocast), want)
        if off:
            faults.append(f"recompute under autocast: off by {off:.1e} from the same without")
    status = "differs" if faults else "refused" if refused else "passed"
    words = "; ".join([*faults, *refused])
    return {"status": status, "words": words, "ratio": ratio, "sites": sites}


# ---- all of them ---------------------------------------------------------------------------------


def in_processes(names: list[str], count: int) -> Iterator[dict[str, Any]]:
    """`tried` for each name, in a process of its own, so many at a time.

    The processes are forked, so that the libraries are imported once.
    """
    context = multiprocessing.get_context("fork")
    waiting, running = names[::-1], {}
    while waiting or running:
        while waiting and len(running) < count:
            name = waiting.pop()
            receiver, sender = context.Pipe(duplex=False)
            process = context.Process(target=_tell, args=(name, sender))
            process.start()
            sender.close()
            running[process.sentinel] = (name, process, receiver, time.monotonic())
        ended = multiprocessing.connection.wait(list(running), timeout=5)
        for sentinel, (name, process, receiver, start) in list(running.items()):
            seconds = time.monotonic() - start
            if sentinel not in ended and seconds > WAIT:
                process.kill()
                process.join()
            elif sentinel not in ended:
                continue
            del running[sentinel]
            yield {"name": name, "seconds": seconds, **_outcome(process, receiver)}


def _tell(name: str, sender: Any) -> None:
    """What a process does: the result goes through the pipe."""
    resource.setrlimit(resource.RLIMIT_CPU, (SECONDS, SECONDS + 1))
    with open(os.devnull, "w") as nothing:
        os.dup2(nothing.fileno(), 1)
        os.dup2(nothing.fileno(), 2)
        sender.send(_tried_safely(name))


def _tried_safely(name: str) -> dict[str, Any]:
    try:
        return tried(name)
    except Exception:
        return {"status": "not tried", "words": traceback.format_exc()[-300:]}


def _outcome(process: Any, receiver: Any) -> dict[str, Any]:
    """What a process that has ended found out."""
    with contextlib.suppress(EOFError):
        if receiver.poll():
            result: dict[str, Any] = receiver.recv()
            return result
    process.join()
    if process.exitcode in (-signal.SIGXCPU, -signal.SIGKILL):
        words = f"it took more than {SECONDS} s of processor time"
    else:
        words = f"its process ended with status {process.exitcode}"
    return {"status": "not tried", "words": words}


def page(results: list[dict[str, Any]], models: int) -> str:
    """docs/zoo.md."""
    counts = Counter(result["status"] for result in results)
    by_library = Counter((result["name"].partition(":")[0], result["status"]) for result in results)
    lines = [
        "# Every architecture",
        "",
        "`make zoo` tries `lean` and `unswap` on one model of every family of timm and every",
        "model type of transformers. They have random weights and small sizes. They run in",
        "training (there after `lean(recompute=False)` too), in eval mode, under a checkpoint and",
        "in channels_last, in float64. Outputs and gradients must agree with those of the model as",
        f"it was built: to {EXACT:g} from the input ({IN_FLOAT32:g} where the model computes some",
        f"of it in float32), to {FROM_OUTPUT:g} from the output, and after `unswap` bit by bit.",
        "Training with and without recomputation must agree bit by bit, in float64 and under",
        "bfloat16 autocast.",
        "",
        f"The last run, with torch {torch.__version__}, got through {len(results)} of {models}",
        f"models: {counts['passed']} passed, {counts['differs']} differ silently,",
        f"{counts['refused']} are refused with an error, {counts['not tried']} could not be tried.",
        "",
        "| library | passed | differ | refused | not tried |",
        "|---|---|---|---|---|",
    ]
    for library in ("timm", "transformers"):
        row = (
            by_library[library, status] for status in ("passed", "differs", "refused", "not tried")
        )
        lines.append(f"| {library} | {' | '.join(map(str, row))} |")
    lines += [
        "",
        "*Kept* is what `lean` keeps, over what the model kept before.",
        "",
    ]
    lines += ["| model | sites | kept | |", "|---|---|---|---|"]
    for result in results:
        ratio = "" if result.get("ratio") is None else f"{result['ratio']:.3f}"
        words = result["words"].replace("|", "\\|").replace("\n", " ")
        outcome = result["status"] + (f": {words}" if words else "")
        lines.append(f"| {result['name']} | {result.get('sites', '')} | {ratio} | {outcome} |")
    return "\n".join(lines) + "\n"


def main() -> int:
    """Try the models; returns 1 if any differs silently."""
    parser = argparse.ArgumentParser(description=__doc__.partition("\n")[0])
    parser.add_argument("begin", nargs="*", help="only models whose names begin with one of these")
    parser.add_argument("--one", help="try one model here, and print the result as JSON")
    parser.add_argument("--page-only", action="store_true", help="try no more models")
    parser.add_argument("--fresh", action="store_true", help="forget earlier results")
    parser.add_argument("--processes", type=int, default=2)
    options = parser.parse_args()
    mend = mend_torchvision()  # held for as long as this runs
    torch.set_num_threads(1)
    if options.one:
        print(json.dumps(tried(options.one)))
        return 0
    chosen = [n for n in names() if not options.begin or n.startswith(tuple(options.begin))]
    console = Console(stderr=True)
    STORE.parent.mkdir(exist_ok=True)
    if options.fresh:
        STORE.unlink(missing_ok=True)
    stored = {}
    if STORE.exists():
        stored = {result["name"]: result for result in map(json.loads, STORE.open())}

    todo = [] if options.page_only else [name for name in chosen if name not in stored]

    def results() -> Iterator[dict[str, Any]]:
        with STORE.open("a") as store:
            for result in in_processes(todo, options.processes):
                store.write(json.dumps(result) + "\n")
                store.flush()
                yield result

    for result in track(
        results(), "models", total=len(todo), console=console, disable=not console.is_terminal
    ):
        stored[result["name"]] = result
        line = f"{result['name']}: {result['status']} {result['words'][:200]}"
        console.print(line, markup=False, highlight=False)
    outcomes = [stored[name] for name in chosen if name in stored]
    text = page(outcomes, len(chosen))
    if options.begin:
        print(text)
    else:
        PAGE.write_text(text, encoding="utf-8")
    del mend
    return int(any(result["status"] == "differs" for result in outcomes))


if __name__ == "__main__":
    sys.exit(main())
