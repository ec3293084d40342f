"""Trains the denoising network of diffusers' DDPM, as its training example does. SiLU."""

from steps import Steps  # first, as it mends torchvision

# isort: split
import torch
import torch.nn.functional as F
from diffusers import DDPMScheduler, UNet2DModel

model = UNet2DModel(
    sample_size=32,
    block_out_channels=(64, 128, 128),
    layers_per_block=2,
    down_block_types=("DownBlock2D", "AttnDownBlock2D", "DownBlock2D"),
    up_block_types=("UpBlock2D", "AttnUpBlock2D", "UpBlock2D"),
)
scheduler = DDPMScheduler(num_train_timesteps=1000)
optimizer = torch.optim.AdamW(model.parameters(), lr=1e-4)
steps = Steps()
for _ in range(7):
    images, noise = torch.randn(2, 8, 3, 32, 32)
    times = torch.randint(0, 1000, (8,))
    loss = F.mse_loss(model(scheduler.add_noise(images, noise, times), times).sample, noise)
    loss.backward()
    optimizer.step()
    optimizer.zero_grad()
    steps.end(loss.item())
steps.report()
