"""A training loop with accelerate, with torch's activations computed by mishkit and in less memory.

    python examples/accelerate_lean.py

`mk.enable()` needs no change of the model. `mk.lean` comes before `accelerator.prepare`, which
wraps the model. Its activations have no parameters, so the optimizer may be made before or after.
"""

import torch
from accelerate import Accelerator
from torch import nn
from torch.utils.data import DataLoader, TensorDataset

import mishkit as mk


def main() -> float:
    """Train for an epoch; returns the last loss."""
    torch.manual_seed(0)
    images, labels = torch.randn(64, 3, 16, 16), torch.randint(0, 10, (64,))
    model = nn.Sequential(
        *(nn.Conv2d(3, 16, 3), nn.BatchNorm2d(16), nn.SiLU()),
        *(nn.Conv2d(16, 16, 3), nn.BatchNorm2d(16), nn.Mish()),
        *(nn.Flatten(), nn.Linear(16 * 12 * 12, 10)),
    )
    optimizer = torch.optim.AdamW(model.parameters(), lr=1e-3)
    mk.enable()
    print(mk.lean(model, images[:8]))

    accelerator = Accelerator(cpu=True)
    batches = DataLoader(TensorDataset(images, labels), batch_size=8)
    model, optimizer, batches = accelerator.prepare(model, optimizer, batches)
    for inputs, targets in batches:
        loss = nn.functional.cross_entropy(model(inputs), targets)
        accelerator.backward(loss)
        optimizer.step()
        optimizer.zero_grad()
    print(f"loss {loss.item():.3f}")
    return loss.item()


if __name__ == "__main__":
    main()
