"""Makes spectrograms with the decoder of Matcha-TTS. Mish in every convolutional block."""

from steps import Steps  # first, as it mends torchvision

# isort: split
from matcha_network import batch, network

model = network().eval()
_, mask, means = batch(1, 512)
steps = Steps()
for _ in range(8):
    speech = model(means, mask, n_timesteps=4)
    steps.end(speech.mean().item())
steps.report()
