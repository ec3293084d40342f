"""`lean` on the gates of transformers and timm, which it finds by watching a pass."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import pytest
import torch
from common import mostly_slow
from torch import Tensor, nn

import mishkit as mk
from mishkit._torchvision import mend_torchvision
from mishkit.surgery.deferred import GATING


def language_model(name: str, **sizes: Any) -> tuple[nn.Module, Tensor]:
    mend = mend_torchvision()
    transformers = pytest.importorskip("transformers")
    del mend
    common = {"hidden_size": 32, "num_hidden_layers": 2, "intermediate_size": 64, "vocab_size": 50}
    heads = {"num_attention_heads": 4, "num_key_value_heads": 2, "use_cache": False}
    ends = {"pad_token_id": 0, "bos_token_id": 1, "eos_token_id": 2}
    config = getattr(transformers, f"{name}Config")(**common, **heads, **ends, **sizes)
    model = getattr(transformers, f"{name}ForCausalLM")(config)
    return model, torch.randint(0, 50, (2, 16))


def layer(name: str) -> tuple[nn.Module, Tensor]:
    mend = mend_torchvision()
    layers = pytest.importorskip("timm.layers")
    del mend
    options = {"act_layer": nn.GELU} if name == "GluMlp" else {}
    return nn.Sequential(getattr(layers, name)(16, 32, **options)), torch.randn(4, 16)


MODELS: dict[str, Callable[[], tuple[nn.Module, Tensor]]] = {
    "Llama": lambda: language_model("Llama"),
    "Mixtral": lambda: language_model("Mixtral", num_local_experts=4),
    "Phi3": lambda: language_model("Phi3"),
    "Gemma": lambda: language_model("Gemma", head_dim=8),
    "Qwen3Moe": lambda: language_model(
        "Qwen3Moe", num_experts=4, num_experts_per_tok=2, moe_intermediate_size=32, head_dim=8
    ),
    "SwiGLU": lambda: layer("SwiGLU"),
    "SwiGLUPacked": lambda: layer("SwiGLUPacked"),
    "GluMlp": lambda: layer("GluMlp"),
}


def step(model: nn.Module, x: Tensor) -> list[Tensor]:
    torch.manual_seed(1)
    y = model(x)
    y = y if isinstance(y, Tensor) else y.logits
    gradients = torch.autograd.grad(
        y.square().mean(), [*model.parameters()], allow_unused=True, materialize_grads=True
    )
    return [y, *gradients]


@pytest.mark.parametrize("name", mostly_slow(MODELS, ("Mixtral", "SwiGLU", "GluMlp")))
def test_lean(name: str) -> None:
    torch.manual_seed(0)
    model, x = MODELS[name]()
    model.train()
    want, keys = step(model, x), list(model.state_dict())
    report = mk.lean(model, x)
    assert report.sites and all(site.gate for site in report.sites)
    gating = tuple(GATING.values())
    assert sum(isinstance(m, gating) for m in model.modules()) == len(report.changed or ())
    for got, of_torch in zip(step(model, x), want, strict=True):
        torch.testing.assert_close(got, of_torch, rtol=1e-3, atol=1e-6)
    assert report.after_lean < report.kept
    assert list(model.state_dict()) == keys
    mk.unswap(model)
    assert not any(isinstance(m, gating) for m in model.modules())
    for got, of_torch in zip(step(model, x), want, strict=True):
        torch.testing.assert_close(got, of_torch, rtol=0, atol=0)
