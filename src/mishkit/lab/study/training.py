"""The training loop, with everything that is measured in it."""

from __future__ import annotations

import math
import time
import warnings
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field
from typing import Any

import torch
import torch.nn.functional as F
from lightning_fabric import Fabric
from torch import Tensor, nn
from torch.utils.data import BatchSampler, DataLoader, DistributedSampler, TensorDataset

import mishkit as mk

from .data import Labelled

WARM_UP_PASSES = 3
RISING_SHARE = 0.2
"""The fraction of all steps in which the learning rate rises."""
WEIGHT_DECAY = 0.01
EVALUATION_BATCH = 500


@dataclass(frozen=True)
class Epoch:
    """The results of one epoch. Seconds are those of training, without testing."""

    train_loss: float
    loss: float
    """On the test samples, like the accuracy."""
    accuracy: float
    seconds: float


@dataclass
class Run:
    """One training. Times are in seconds, as measured on device 0."""

    kept_bytes: float = math.nan
    """Bytes that autograd keeps for the backward pass, per sample."""
    forward: list[float] = field(default_factory=list)
    """The forward pass of each step, including the loss."""
    backward: list[float] = field(default_factory=list)
    epochs: list[Epoch] = field(default_factory=list)


class Stopped(Exception):
    """The user asked to stop; the current training is dropped."""


def train(
    fabric: Fabric,
    network: nn.Module,
    data: Labelled,
    *,
    epochs: int,
    batch_size: int,
    lr: float,
    seed: int,
    on_epoch: Callable[[int, Epoch], None],
    is_stopping: Callable[[], bool],
) -> Run:
    """Train with AdamW and the schedule `rise_and_fall`, whose peak learning rate is `lr`.

    A step uses `batch_size` samples over all devices. `seed` determines their order and the random
    numbers of the network. Raises `Stopped` as soon as `is_stopping` is true on any device.
    """
    torch.manual_seed(seed)
    raw_optimizer = torch.optim.AdamW(network.parameters(), lr=lr, weight_decay=WEIGHT_DECAY)
    loader, sampler = _batches(fabric, data, batch_size, seed)
    schedule = torch.optim.lr_scheduler.LambdaLR(raw_optimizer, rise_and_fall(epochs * len(loader)))
    model, optimizer = fabric.setup(network, raw_optimizer)

    run = Run()
    first = slice(0, batch_size // fabric.world_size)
    run.kept_bytes = _warm_up(
        fabric,
        model,
        fabric.to_device(data.train_inputs[first]),
        fabric.to_device(data.train_labels[first]),
    )
    for number in range(1, epochs + 1):
        sampler.set_epoch(number)
        model.train()
        losses = []
        started = _now(fabric)
        for inputs, labels in loader:
            if _agree(fabric, is_stopping()):
                raise Stopped
            begin = _now(fabric)
            loss = F.cross_entropy(model(inputs), labels)
            middle = _now(fabric)
            fabric.backward(loss)
            end = _now(fabric)
            run.forward.append(middle - begin)
            run.backward.append(end - middle)
            optimizer.step()
            schedule.step()
            optimizer.zero_grad()
            losses.append(loss.detach())
        seconds = _now(fabric) - started
        train_loss = float(_sum(fabric, torch.stack(losses).mean())) / fabric.world_size
        run.epochs.append(Epoch(train_loss, *evaluate(fabric, model, data), seconds))
        on_epoch(number, run.epochs[-1])
    return run


def rise_and_fall(steps: int) -> Callable[[int], float]:
    """The learning rate factor at each step: linear from 0 to 1, then half a cosine down to 0."""
    rising = max(1, round(RISING_SHARE * steps))

    def factor(step: int) -> float:
        if step < rising:
            return (step + 1) / rising
        return 0.5 * (1 + math.cos(math.pi * (step - rising) / max(1, steps - rising)))

    return factor


@torch.no_grad()
def evaluate(fabric: Fabric, model: nn.Module, data: Labelled) -> tuple[float, float]:
    """Mean cross-entropy and accuracy on the test set, shared among the devices."""
    model.eval()
    share = slice(fabric.global_rank, None, fabric.world_size)
    sums = torch.zeros(2, dtype=torch.float64)
    for inputs, labels in zip(
        data.test_inputs[share].split(EVALUATION_BATCH),
        data.test_labels[share].split(EVALUATION_BATCH),
        strict=True,
    ):
        labels = fabric.to_device(labels)
        scores = model(fabric.to_device(inputs))
        loss = F.cross_entropy(scores, labels, reduction="sum")
        correct = (scores.argmax(1) == labels).sum()
        sums += torch.tensor([float(loss), float(correct)], dtype=torch.float64)
    # float32 is exact for counts up to 2^24 and available on every device.
    totals = _sum(fabric, sums.float().to(fabric.device))
    loss, accuracy = (totals / len(data.test_labels)).tolist()
    return loss, accuracy


@contextmanager
def reproducible(threads: int | None) -> Iterator[None]:
    """Within the block, use deterministic algorithms and, if given, this many threads."""
    deterministic: Any = torch.utils.deterministic
    before = (
        torch.are_deterministic_algorithms_enabled(),
        torch.is_deterministic_algorithms_warn_only_enabled(),
        deterministic.fill_uninitialized_memory,
        torch.backends.cudnn.benchmark,
        torch.get_num_threads(),
    )
    torch.use_deterministic_algorithms(True, warn_only=True)
    # Filling every new tensor would penalise each contender for the memory it allocates.
    deterministic.fill_uninitialized_memory = False
    torch.backends.cudnn.benchmark = False
    if threads is not None:
        torch.set_num_threads(threads)
    try:
        with warnings.catch_warnings():
            # Ignore DDP's remark about the layout of a one-channel convolution's few weights.
            warnings.filterwarnings("ignore", message="Grad strides do not match bucket view")
            yield
    finally:
        torch.use_deterministic_algorithms(before[0], warn_only=before[1])
        deterministic.fill_uninitialized_memory = before[2]
        torch.backends.cudnn.benchmark = before[3]
        torch.set_num_threads(before[4])


def _batches(
    fabric: Fabric, data: Labelled, batch_size: int, seed: int
) -> tuple[Any, DistributedSampler[Any]]:
    """This device's batches, in an order that depends on `seed` and the epoch."""
    dataset = TensorDataset(data.train_inputs, data.train_labels)
    # Whatever the number of devices, a step uses the same samples and an epoch has as many steps.
    sampler: DistributedSampler[Any] = DistributedSampler(
        dataset,
        num_replicas=fabric.world_size,
        rank=fabric.global_rank,
        shuffle=True,
        seed=seed,
        drop_last=True,
    )
    batches = BatchSampler(sampler, batch_size // fabric.world_size, drop_last=True)
    # One batch at a time: the data set is indexed with whole batches.
    loader = DataLoader(dataset, sampler=batches, batch_size=None)
    return fabric.setup_dataloaders(loader, use_distributed_sampler=False), sampler


def _warm_up(fabric: Fabric, model: nn.Module, inputs: Tensor, labels: Tensor) -> float:
    """Untimed passes that change no weights; returns the bytes kept for backward, per sample."""
    kept_bytes = 0
    state = [(buffer, buffer.clone()) for buffer in model.buffers()]
    for _ in range(WARM_UP_PASSES):
        # A clone has its own storage; `inputs` is a view of the whole train set.
        x = inputs.clone()
        present = [*model.parameters(), *model.buffers(), x, labels]
        with mk.KeptBytes(exclude=present) as kept:
            loss = F.cross_entropy(model(x), labels)
        kept_bytes = kept.total
        fabric.backward(loss)
        model.zero_grad()
    with torch.no_grad():
        for buffer, original in state:  # for example the statistics of normalisations
            buffer.copy_(original)
    return kept_bytes / len(inputs)


def _now(fabric: Fabric) -> float:
    """The clock, read once the device has finished all its work."""
    if fabric.device.type != "cpu":
        torch.accelerator.synchronize(fabric.device)
    return time.perf_counter()


def _agree(fabric: Fabric, stop: bool) -> bool:
    """Whether any device wants to stop: all of them must stop at the same step."""
    if fabric.world_size == 1:
        return stop
    return bool(_sum(fabric, torch.tensor(float(stop), device=fabric.device)))


def _sum(fabric: Fabric, value: Tensor) -> Tensor:
    """The sum over all devices."""
    total = fabric.all_reduce(value, reduce_op="sum")
    assert isinstance(total, Tensor)
    return total
