"""Callbacks for Lightning (`lightning` or `pytorch_lightning`): lean training, and annealing."""

from __future__ import annotations

import importlib
import sys
from collections.abc import Mapping
from typing import Any

from .._missing import install
from .._torchvision import mend_torchvision
from . import _callbacks
from .anneal import Anneal, Schedule

_PACKAGES = ("lightning.pytorch", "pytorch_lightning")


def _bases() -> tuple[type, ...]:
    """The callback base class of the package in use, or both classes if both packages are."""
    mend_torchvision()
    imported = [sys.modules[name] for name in _PACKAGES if sys.modules.get(name)]
    for name in _PACKAGES:
        if imported:
            break
        try:
            imported.append(importlib.import_module(name))
        except ModuleNotFoundError as error:
            if error.name is None or error.name.partition(".")[0] != name.partition(".")[0]:
                raise
    if not imported:
        raise ModuleNotFoundError(
            "mishkit.surgery.lightning needs lightning or pytorch-lightning: "
            f"{install('pytorch_lightning')}",
            name="pytorch_lightning",
        )
    return tuple(module.Callback for module in imported)


class Lean(_callbacks.LeanOnce, *_bases()):  # type: ignore[misc]
    """`mishkit.lean` as a callback: ``Trainer(callbacks=[Lean()])``.

    After the first training batch, whatever modules the training step has called are made lean,
    with the inputs they were called with. Nothing needs to be known about the model, and the first
    batch is computed as usual. The activations have no parameters, so optimizers, checkpoints and
    DDP see no difference. The modules' names stay the same; `mishkit.unswap` undoes it.

    Parameters
    ----------
    recompute : bool, default True
        as for `mishkit.lean`: whether the backward pass recomputes, or activations keep outputs

    Attributes
    ----------
    reports : dict of str to mishkit.surgery.audit.Report
        what was changed in each called module; ``print(callback.reports[""])`` shows the one of the
        whole LightningModule, if it calls itself. Empty before the second batch.

    Raises
    ------
    what `mishkit.lean` raises, after the first batch
    """

    def on_train_batch_start(
        self, trainer: Any, pl_module: Any, batch: Any, batch_idx: int
    ) -> None:
        """Begin to watch which modules are called, if that has not been done."""
        self._look_at(pl_module)

    def on_train_batch_end(
        self, trainer: Any, pl_module: Any, outputs: Any, batch: Any, batch_idx: int
    ) -> None:
        """Make the called modules lean."""
        self._make_lean()

    def on_exception(self, trainer: Any, pl_module: Any, exception: BaseException) -> None:
        """Leave no hooks behind."""
        self._forget()


class AnnealCallback(*_bases()):  # type: ignore[misc]
    """`mishkit.Anneal` as a callback: takes a step after each optimizer step.

    The activations are replaced when `fit` sets up, before the optimizers are created, so that
    parameters of new activations are trained. Anything created in `configure_model` comes too late.
    The state is saved in the checkpoints, and a resumed training continues from there. At the end
    only the new activations remain. If training stops before t is 1, they stay blended and a
    warning is issued.

    Parameters
    ----------
    rules : mapping
        as for `mishkit.Anneal`, applied to the whole LightningModule: patterns begin with its own
        attribute, as in ``"net.blocks.*.act"``
    steps : int or float
        how many optimizer steps it takes; or, as a float up to 1, a fraction of
        ``trainer.estimated_stepping_batches``. A resumed training keeps its original number.
    schedule : "linear", "cosine" or callable, default "linear"
        as for `mishkit.Anneal`

    Attributes
    ----------
    anneal : mishkit.Anneal or None
        the annealing; None before `fit`

    Raises
    ------
    ValueError
        if `steps` is neither; and in `fit`, for what `mishkit.Anneal` rejects, or if `steps` is a
        fraction of a training without end
    """

    def __init__(
        self,
        rules: Mapping[Any, Any],
        steps: int | float,
        schedule: str | Schedule = "linear",
    ) -> None:
        super().__init__()
        self.rules, self.schedule = rules, schedule
        self.steps = _callbacks.checked_share(steps)
        self.anneal: Anneal | None = None
        self._module: Any = None
        self._is_resumed = False
        self._seen = 0

    @property
    def state_key(self) -> str:
        """The key of the state in a checkpoint. It contains the keys of the rules, so that there
        can be several of these callbacks.
        """
        keys = (key if isinstance(key, str) else key.__qualname__ for key in self.rules)
        return f"AnnealCallback[{', '.join(keys)}]"

    def setup(self, trainer: Any, pl_module: Any, stage: str) -> None:
        """Replace the activations, unless this has been done to this very module."""
        if stage != "fit" or self._module is pl_module:
            return
        # The number of steps is set later, when it is known.
        self.anneal = Anneal(pl_module, self.rules, 1, self.schedule)
        self._module, self._is_resumed = pl_module, False

    def on_train_start(self, trainer: Any, pl_module: Any) -> None:
        """Set the number of steps."""
        assert self.anneal is not None
        self._seen = trainer.global_step
        if not self._is_resumed:
            steps = _callbacks.total(self.steps, trainer.estimated_stepping_batches)
            _callbacks.restart(self.anneal, steps)
            self._is_resumed = True

    def on_train_batch_end(
        self, trainer: Any, pl_module: Any, outputs: Any, batch: Any, batch_idx: int
    ) -> None:
        """Take a step if the optimizer did, so not while gradients are accumulated."""
        assert self.anneal is not None
        if trainer.global_step != self._seen:
            self._seen = trainer.global_step
            self.anneal.step()

    def on_train_end(self, trainer: Any, pl_module: Any) -> None:
        """Leave only the new activations."""
        assert self.anneal is not None
        _callbacks.end(self.anneal)

    def state_dict(self) -> dict[str, Any]:
        """What checkpoints keep: the state of the `Anneal`."""
        return {} if self.anneal is None else self.anneal.state_dict()

    def load_state_dict(self, state_dict: dict[str, Any]) -> None:
        """Continue from a checkpoint."""
        if self.anneal is not None and state_dict:
            self.anneal.load_state_dict(state_dict)
            self._is_resumed = True
