"""What the two programs with Matcha-TTS share: its flow matching, as published."""

from types import SimpleNamespace

import torch
from matcha.models.components.flow_matching import CFM

FEATURES = 80


def network(dropout: float = 0.05) -> CFM:
    """The decoder of the published model; Mish in every convolutional block, SnakeBeta between."""
    return CFM(
        in_channels=2 * FEATURES,
        out_channel=FEATURES,
        cfm_params=SimpleNamespace(name="CFM", solver="euler", sigma_min=1e-4),
        decoder_params={
            "channels": [256, 256],
            "dropout": dropout,
            "attention_head_dim": 64,
            "n_blocks": 1,
            "num_mid_blocks": 2,
            "num_heads": 2,
            "act_fn": "snakebeta",
        },
    )


def batch(count: int, length: int) -> tuple[torch.Tensor, torch.Tensor, torch.Tensor]:
    """Spectrograms, their mask and the encoder's output for them."""
    speech, means = torch.randn(2, count, FEATURES, length)
    return speech, torch.ones(count, 1, length), means
