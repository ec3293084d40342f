"""Trains the decoder of Matcha-TTS with its own loss. Mish in every convolutional block."""

from steps import Steps  # first, as it mends torchvision

# isort: split
import torch
from matcha_network import batch, network

model = network()
optimizer = torch.optim.Adam(model.parameters(), lr=1e-4)
steps = Steps()
for _ in range(8):
    speech, mask, means = batch(4, 256)
    loss, _ = model.compute_loss(speech, mask, means)
    loss.backward()
    optimizer.step()
    optimizer.zero_grad()
    steps.end(loss.item())
steps.report()
