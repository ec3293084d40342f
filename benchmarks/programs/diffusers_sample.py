"""Samples images with diffusers' DDPM pipeline, whose network has SiLU."""

from steps import Steps  # first, as it mends torchvision

# isort: split
import torch
from diffusers import DDPMPipeline, DDPMScheduler, UNet2DModel

model = UNet2DModel(
    sample_size=64,
    block_out_channels=(64, 128, 128),
    layers_per_block=2,
    down_block_types=("DownBlock2D", "DownBlock2D", "AttnDownBlock2D"),
    up_block_types=("AttnUpBlock2D", "UpBlock2D", "UpBlock2D"),
)
pipeline = DDPMPipeline(model.eval(), DDPMScheduler())
pipeline.set_progress_bar_config(disable=True)
steps = Steps()
for seed in range(6):
    generator = torch.Generator().manual_seed(seed)
    images = pipeline(4, generator, num_inference_steps=2, output_type="np").images
    steps.end(float(images.mean()))
steps.report()
