"""Try mishkit's surgery on every architecture family of timm and transformers.

    python tools/zoo.py                        # all; goes on after Ctrl-C; writes docs/zoo.md
    python tools/zoo.py --fresh                # the same from the beginning
    python tools/zoo.py --page-only            # docs/zoo.md from what has been tried so far
    python tools/zoo.py timm transformers:b    # only those whose names begin so
    python tools/zoo.py --one timm:resnet10t   # one of them, in this process

Every model has random weights, few blocks, takes a small input and runs in a process of its own. In
each mode (training, evaluation, under a checkpoint, in channels_last) a step in float64, or in
float32 where the model can't do float64, is compared between the model as it was built and the
model after `lean` and after `unswap`; in training also after `lean(recompute=False)`. Under
bfloat16 autocast a training step after `lean` is compared with and without recomputation. Outputs
and gradients must agree, those after `unswap`, and with and without recomputation, bit by bit. What
is refused is listed with its error, as are the modes that the model itself does not run in. What
differs without an error is a silent fault, and the exit status is 1.
"""

from __future__ import annotations

import argparse
import contextlib
import copy
import dataclasses
import functools
import inspect
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
from dataclasses import dataclass
from pathlib import Path
from typing import Any
from unittest.mock import patch

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
SMALLEST = ROOT / "build" / "zoo-smallest.json"
"""The smallest model of each family of timm, by the version of timm: counting takes minutes."""
SECONDS, WAIT = 240, 1800
"""Seconds that one model may take: of processor time, and in all on a busy machine."""
MOST_PARAMETERS = 100_000_000
EXACT, IN_FLOAT32, FROM_OUTPUT = 1e-8, 1e-5, 1e-4
"""Relative errors of gradients: in float64 from the input, the same where the model itself computes
some or all of it in float32, and from the output.
"""
SIDES = (64, 96, 168, 224, 240, 256, 384)
"""Sides of images for timm: the first that the model takes, by its patches and windows."""
DEEP = {
    *("depth", "depths", "layers", "stages", "block_config", "num_blocks_list", "k_sec"),
    *("serial_depths", "parallel_depth", "depth_list"),
}
"""Arguments of timm's models that count blocks: two of each kind are enough."""
NARROW = {"vgg": {"mlp_ratio": 1 / 32}}
"""Arguments that make all models of a family smaller."""
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
WIDE = {
    name: 2 if "head" in name else 256 if size == 32 else size
    for name, size in SMALL.items()
    if name not in ("head_dim", "d_kv", "patch_size", "image_size")
}
"""Fewer heads, of 128 features, for configurations that name features of a head."""
SHALLOW = {
    name: size
    for name, size in SMALL.items()
    if "layer" in name or "expert" in name or name == "vocab_size" or name.endswith("_id")
}
"""Numbers of layers, for configurations whose other sizes depend on each other."""

# ---- the models ----------------------------------------------------------------------------------


@dataclass
class Built:
    """A model, and inputs for it."""

    model: nn.Module
    args: tuple[Any, ...]
    kwargs: dict[str, Any]
    dtype: torch.dtype = torch.float32
    is_narrow: bool = False
    """Whether it computes some of it in float32 whatever its dtype."""

    def step(self, run: Callable[..., Any]) -> list[Tensor]:
        """The output, and the gradients of a step from the same random numbers."""
        return step(self.model, self.args, self.kwargs, run)


def names() -> list[str]:
    """The smallest model of every family of timm, and every model type of transformers."""
    from transformers import AutoModel
    from transformers.models.auto.modeling_auto import MODEL_MAPPING_NAMES

    assert AutoModel  # imported before any process is forked
    smallest = sorted(_smallest_of_timm().values())
    return [
        *(f"timm:{name}" for name in smallest),
        *(f"transformers:{name}" for name in sorted(MODEL_MAPPING_NAMES)),
    ]


def _smallest_of_timm() -> dict[str, str]:
    """The model with the fewest parameters of every family of timm."""
    import timm

    if SMALLEST.exists():
        stored = json.loads(SMALLEST.read_text())
        if stored["timm"] == timm.__version__:
            found: dict[str, str] = stored["smallest"]
            return found
    smallest = {}
    for module in track(timm.list_modules(), "counting parameters", console=Console(stderr=True)):
        models = timm.list_models(module=module)
        if models:
            smallest[module] = min(models, key=_parameters)
    SMALLEST.parent.mkdir(exist_ok=True)
    SMALLEST.write_text(json.dumps({"timm": timm.__version__, "smallest": smallest}))
    return smallest


def _parameters(name: str) -> int:
    """How many parameters a model of timm has, with few blocks if it can be built so."""
    with torch.device("meta"):
        try:
            model = _of_timm(name)
        except Exception:
            model = _of_timm(name, shallow=False)
    return sum(p.numel() for p in model.parameters())


def _of_timm(name: str, side: int | None = None, *, shallow: bool = True) -> nn.Module:
    """A model of timm with few blocks, for images of this side if that is an argument of it."""
    import timm

    family = sys.modules[timm.models.model_entrypoint(name).__module__]
    build = vars(family)["build_model_with_cfg"]

    def build_small(kind: Any, *args: Any, **kwargs: Any) -> nn.Module:
        takes = inspect.signature(kind).parameters
        defaults = {p.name: p.default for p in takes.values() if p.default is not p.empty}
        if shallow:
            kwargs |= {
                key: few(value)
                for key, value in {**defaults, **kwargs}.items()
                if key in DEEP or key == "cfg"
            }
            kwargs |= NARROW.get(family.__name__.rpartition(".")[2], {})
        if side is not None and "img_size" in defaults:
            kwargs["img_size"] = side
        model: nn.Module = build(kind, *args, **kwargs)
        return model

    with patch.object(family, "build_model_with_cfg", build_small):
        model: nn.Module = timm.create_model(name, num_classes=10)
    return model


def few(count: Any) -> Any:
    """Numbers of blocks, in lists, in a configuration or alone, each 2 at most."""
    if isinstance(count, (list, tuple)):
        return type(count)(map(few, count))
    if dataclasses.is_dataclass(count) and not isinstance(count, type):
        deep = {key: few(value) for key, value in vars(count).items() if key in DEEP}
        return dataclasses.replace(count, **deep)
    return min(count, 2) if isinstance(count, int) else count


def shrunk(config: Any, sizes: Mapping[str, int]) -> Any:
    """The configuration with these sizes, in nested configurations too, and without caches."""
    for key, value in list(vars(config).items()):
        if hasattr(value, "to_dict"):
            shrunk(value, sizes)
        elif key == "use_cache":
            config.use_cache = False
        elif key in sizes and isinstance(value, int) and not isinstance(value, bool):
            setattr(config, key, sizes[key])
    return config


def rebuilt(config: Any, sizes: Mapping[str, int]) -> Any:
    """The same, but made anew, so that what the configuration derives from sizes fits these."""
    changes: dict[str, Any] = {}
    for key, value in vars(config).items():
        if hasattr(value, "to_dict"):
            changes[key] = rebuilt(value, sizes).to_dict()
        elif key == "use_cache":
            changes[key] = False
        elif key in sizes and isinstance(value, int) and not isinstance(value, bool):
            changes[key] = sizes[key]
    return type(config)(**changes)


def candidates(name: str) -> Iterator[Callable[[], Iterator[Built]]]:
    """Ways to build the model, which give it with several inputs; the smallest first."""
    library, _, kind = name.partition(":")
    if library == "timm":
        for shallow in (True, False):
            for side in SIDES:
                yield functools.partial(_images, kind, side, shallow)
    else:
        for change, sizes in (
            (shrunk, SMALL),
            (rebuilt, SMALL),
            (rebuilt, WIDE),
            (rebuilt, SHALLOW),
        ):
            yield functools.partial(_of_transformers, kind, change, sizes)


def _images(name: str, side: int, shallow: bool) -> Iterator[Built]:
    model = _of_timm(name, side, shallow=shallow)
    yield Built(model, (torch.randn(2, 3, side, side),), {})


def _of_transformers(
    name: str, change: Callable[[Any, Mapping[str, int]], Any], sizes: Mapping[str, int]
) -> Iterator[Built]:
    import transformers

    def build() -> nn.Module:
        config = change(transformers.AutoConfig.for_model(name), sizes)
        model: nn.Module = transformers.AutoModel.from_config(config)
        return model

    try:
        with torch.device("meta"):
            _check_size(build())
    except TooLarge:
        raise
    except Exception:
        _check_size(build())  # it needs numbers to be built
    model = build()
    takes = inspect.signature(model.forward).parameters
    required = {
        name
        for name, parameter in takes.items()
        if parameter.default is parameter.empty
        and parameter.kind == parameter.POSITIONAL_OR_KEYWORD
    }
    main = str(model.main_input_name)
    config = model.config
    tried_before = []
    for known in _inputs(config):
        least = {key: value for key, value in known.items() if key in required or key == main}
        if getattr(config, "is_encoder_decoder", False):
            least["decoder_input_ids"] = known["decoder_input_ids"]
        for inputs in (least, {key: value for key, value in known.items() if key in takes}):
            shapes = {key: value.shape for key, value in inputs.items()}
            if shapes not in tried_before:
                tried_before.append(shapes)
                yield Built(model, (), inputs)


class TooLarge(ValueError):
    """A model has more than MOST_PARAMETERS."""


def _check_size(model: nn.Module) -> None:
    count = sum(p.numel() for p in model.parameters())
    if count > MOST_PARAMETERS:
        raise TooLarge(f"{count / 1e6:.0f} million parameters")


def _number(config: Any, default: int, *names: str) -> int:
    """A size of a configuration, or of one nested in it, under one of these names."""
    for part in (config, *(v for v in vars(config).values() if hasattr(v, "to_dict"))):
        for name in names:
            value = getattr(part, name, None)
            if isinstance(value, (list, tuple)) and value:
                value = value[0]
            if isinstance(value, int):
                return value
    return default


def _inputs(config: Any) -> Iterator[dict[str, Any]]:
    """Whatever models of transformers take, by name, in several shapes."""
    tokens = torch.randint(3, 90, (2, 16))
    side, channels = _number(config, 32, "image_size"), _number(config, 3, "num_channels")
    width = _number(config, 32, "hidden_size", "d_model")
    bins = _number(config, 80, "num_mel_bins", "feature_size", "input_dim")
    images = torch.randn(2, channels, side, side)
    patch = _number(config, 8, "patch_size")
    frames = _number(config, 1, "temporal_patch_size")
    common = {
        **dict.fromkeys(("input_ids", "decoder_input_ids", "qformer_input_ids"), tokens),
        "attention_mask": torch.ones_like(tokens),
        "bbox": torch.zeros(2, 16, 4, dtype=torch.long),
        **dict.fromkeys(("inputs_embeds", "query_embeds"), torch.randn(2, 16, width)),
        "hidden_states": torch.randn(16, channels * frames * patch**2),
        **dict.fromkeys(("grid_thw", "image_grid_thw"), torch.tensor([[1, 4, 4]])),
        "past_values": torch.randn(
            2, _number(config, 32, "context_length"), _number(config, 1, "num_input_channels")
        ),
    }
    pixels = (images, images[:, None], torch.randn(16, channels * frames * patch**2))
    pixels = (*pixels, torch.randn(2, channels, 224, 224))
    sound = (torch.randn(2, 3840), torch.randn(2, 1, 3840), torch.randn(2, 64, bins))
    sound = (*sound, torch.randn(2, bins, 64))
    spectra = (torch.randn(2, bins, 3000), torch.randn(2, 64, bins), torch.randn(2, bins, 64))
    spectra = (*spectra, torch.randn(2, 3840))
    for pixel_values, input_values, input_features in zip(pixels, sound, spectra, strict=True):
        yield {
            **common,
            "pixel_values": pixel_values,
            "input_values": input_values,
            "input_features": input_features,
        }


def built(name: str) -> tuple[Built, Built]:
    """The first candidate that can do a step, in float32 and, if it can, in float64.

    Raises the error of the first candidate if none can.
    """
    errors: list[Exception] = []
    for build in candidates(name):
        torch.manual_seed(0)
        try:
            for candidate in build():
                _check_size(candidate.model)
                try:
                    return candidate, _doubled(candidate)
                except Exception as error:
                    errors.append(error)
        except Exception as error:
            errors.append(error)
    raise errors[0]


def _doubled(candidate: Built) -> Built:
    """A copy in float64, or in float32 if that is all that the model can do.

    Raises an error if it can do neither.
    """
    candidate.step(plainly)  # some models finish building themselves in a first call
    for dtype in (torch.float64, torch.float32):
        model = copy.deepcopy(candidate.model).to(dtype)
        args, kwargs = _cast(candidate.args, dtype), _cast(candidate.kwargs, dtype)
        double = Built(model, args, kwargs, dtype)
        with contextlib.suppress(Exception), Narrower() as narrower:
            double.step(plainly)
            double.is_narrow = narrower.seen
            break
    return double


def _cast(value: Any, dtype: torch.dtype) -> Any:
    """Tensors of floats in this dtype."""
    if isinstance(value, Tensor):
        return value.to(dtype) if value.is_floating_point() else value
    if isinstance(value, dict):
        return {key: _cast(element, dtype) for key, element in value.items()}
    return tuple(_cast(v, dtype) for v in value) if isinstance(value, tuple) else value


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
    """The relative error of all tensors together, taken as one vector; 0 if all bits agree."""
    if [g.shape for g in got] != [w.shape for w in want]:
        return float("inf")
    if all(map(torch.equal, got, want)):
        return 0.0
    size = sum(float(w.double().square().sum()) for w in want) ** 0.5
    off = sum(
        float((g.double() - w.double()).square().sum()) for g, w in zip(got, want, strict=True)
    )
    return off**0.5 / size if size else off**0.5


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


@dataclass
class Outcome:
    """What was found about one model."""

    faults: list[str]
    refused: list[str]
    notes: list[str]
    ratio: float | None = None
    sites: int = 0

    def as_json(self) -> dict[str, Any]:
        status = "differs" if self.faults else "refused" if self.refused else "passed"
        words = "; ".join([*self.faults, *self.refused, *self.notes])
        return {"status": status, "words": words, "ratio": self.ratio, "sites": self.sites}


def tried(name: str) -> dict[str, Any]:
    """The outcome for one model: a status, and an explanation."""
    try:
        plain, double = built(name)
    except Exception as error:
        return {"status": "not tried", "words": f"{type(error).__name__}: {error}"[:200]}
    outcome = Outcome([], [], [])
    if double.dtype == torch.float32:
        outcome.notes.append("in float32")
    for mode in MODES:
        _try_mode(mode, double, outcome)
    if any(note.startswith("not in training") for note in outcome.notes):
        return {"status": "not tried", "words": "; ".join(outcome.notes)}
    _try_autocast(plain, outcome)
    return outcome.as_json()


def _try_mode(mode: str, given: Built, outcome: Outcome) -> None:
    """Compare a step after `lean` and after `unswap` with one before, in one mode."""
    train, channels_last, run = MODES[mode]
    model = given.model.train(train)
    if channels_last:
        if not any(p.dim() == 4 for p in model.parameters()):
            return
        model.to(memory_format=torch.channels_last)
    buffers = _Buffers(model)
    try:
        want = given.step(run)
    except Exception as error:
        outcome.notes.append(f"not in {mode}: {type(error).__name__}: {error}"[:120])
        return
    if not all(bool(tensor.isfinite().all()) for tensor in want):
        outcome.notes.append(f"not in {mode}: it gives NaN or infinity")
        return
    faults: list[str] = []
    for way, options, bound in WAYS if mode == "training" else WAYS[1:]:
        kept = None
        try:
            report = _leaned(given, **options)
            if way == "recompute":
                buffers.put_back()
                with suspended():
                    kept = given.step(run)
            buffers.put_back()
            got = given.step(run)
        except Exception as error:
            outcome.refused.append(f"{way} in {mode}: {type(error).__name__}: {error}"[:300])
            mk.unswap(model)
            continue
        least = IN_FLOAT32 if given.is_narrow or given.dtype == torch.float32 else EXACT
        if not (off := error_between(got, want)) <= max(bound, least):
            faults.append(f"{way} in {mode}: off by {off:.1e}")
        if kept is not None and (off := error_between(got, kept)):
            faults.append(f"{way} in {mode}: off by {off:.1e} from the same without")
        if mode == "training" and way == "recompute":
            outcome.ratio = report.lean / max(report.kept, 1)
            outcome.sites = len(report.sites)
        mk.unswap(model)
        buffers.put_back()
        if off := error_between(given.step(run), want):
            faults.append(f"unswap after {way} in {mode}: off by {off:.1e}")
    buffers.put_back()
    if faults and _differs_by_itself(given, run, buffers):
        outcome.notes.append(f"not in {mode}: its own numbers differ from step to step")
    else:
        outcome.faults += faults


def _try_autocast(plain: Built, outcome: Outcome) -> None:
    """Compare a training step under autocast with and without recomputation."""
    buffers = _Buffers(plain.model.train())
    try:
        plain.step(autocast)
    except Exception as error:
        outcome.notes.append(f"not under autocast: {type(error).__name__}: {error}"[:120])
        return
    try:
        _leaned(plain, recompute=True)
        buffers.put_back()
        with suspended():
            want = plain.step(autocast)
        buffers.put_back()
        off = error_between(plain.step(autocast), want)
    except Exception as error:
        outcome.refused.append(f"recompute under autocast: {type(error).__name__}: {error}"[:300])
        return
    if not off:
        return
    mk.unswap(plain.model)
    if _differs_by_itself(plain, autocast, buffers):
        outcome.notes.append("not under autocast: its own numbers differ from step to step")
    else:
        outcome.faults.append(f"recompute under autocast: off by {off:.1e} from the same without")


def _differs_by_itself(given: Built, run: Callable[..., Any], buffers: _Buffers) -> bool:
    """Whether two steps of the model give different numbers."""
    buffers.put_back()
    before = given.step(run)
    buffers.put_back()
    return bool(error_between(given.step(run), before))


class _Buffers:
    """The buffers of a model as they are now: what a step may change."""

    def __init__(self, model: nn.Module) -> None:
        self.model, self.is_training = model, model.training
        self.values = {name: buffer.clone() for name, buffer in model.named_buffers()}

    def put_back(self) -> None:
        """Give the model's buffers these values again, and empty what it caches in evaluation."""
        self.model.train().train(self.is_training)
        with torch.no_grad():
            for name, buffer in self.model.named_buffers():
                if name in self.values:
                    buffer.copy_(self.values[name])


def _leaned(given: Built, **options: Any) -> mk.Report:
    """The report of `lean`, without its warning that there is nothing to save."""
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        return mk.lean(given.model, *given.args, **given.kwargs, **options)


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
        "`make zoo` tries `lean` and `unswap` on the smallest model of every family of timm and on",
        "every model type of transformers. They have random weights, few blocks and small inputs.",
        "They run in training (there after `lean(recompute=False)` too), in eval mode, under a",
        "checkpoint and in channels_last, in float64, or in float32 where they can't do that.",
        "Outputs and gradients must agree with those of the model as it was built: to",
        f"{EXACT:g} from the input ({IN_FLOAT32:g} in float32, or where the model computes some of",
        f"it in float32), to {FROM_OUTPUT:g} from the output, and after `unswap` bit by bit.",
        "Training with and without recomputation must agree bit by bit, in that dtype and under",
        "bfloat16 autocast. *Not in* a mode: the model itself raises an error there.",
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
