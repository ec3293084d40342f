"""Callbacks for the `Trainer` of transformers: lean training, and annealing."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from torch import nn

from .._missing import install
from .._torchvision import mend_torchvision
from . import _callbacks
from .anneal import Anneal, Schedule

mend_torchvision()
try:
    from transformers import TrainerCallback
    from transformers.trainer_callback import ExportableState
except ModuleNotFoundError as error:
    if error.name is None or error.name.partition(".")[0] != "transformers":
        raise
    raise ModuleNotFoundError(
        f"mishkit.surgery.transformers needs transformers: {install('transformers')}",
        name=error.name,
    ) from None

_ANNEAL = "_mishkit_anneal"
"""Where a model in training holds its `Anneal`: a Trainer that resumes may recreate callbacks."""


class _Held:
    """An `Anneal` as an attribute of its model. Deep copies of the model do not copy it, because
    they follow the model.
    """

    def __init__(self, anneal: Anneal) -> None:
        self.anneal = anneal

    def __deepcopy__(self, _memo: dict[int, Any]) -> _Held:
        return self


class LeanCallback(_callbacks.LeanOnce, TrainerCallback):  # type: ignore[misc]
    """`mishkit.lean` as a callback: ``Trainer(..., callbacks=[LeanCallback()])``.

    After the first step, the model is made lean, with the inputs that it was called with. The first
    step is computed as usual. The activations have no parameters, so optimizers, checkpoints and
    DDP see no difference. `mishkit.unswap` undoes it.

    Parameters
    ----------
    recompute : bool, default True
        as for `mishkit.lean`: whether the backward pass recomputes, or activations keep outputs

    Attributes
    ----------
    reports : dict of str to mishkit.surgery.audit.Report
        what was changed in each called module; ``print(callback.reports[""])`` shows the model's.
        Empty before the second step.

    Raises
    ------
    what `mishkit.lean` raises, after the first step
    """

    def on_train_begin(self, args: Any, state: Any, control: Any, **kwargs: Any) -> None:
        """Begin to watch which modules are called, if that has not been done."""
        self._look_at(kwargs["model"])

    def on_step_end(self, args: Any, state: Any, control: Any, **kwargs: Any) -> None:
        """Make the called modules lean."""
        self._make_lean()

    def on_train_end(self, args: Any, state: Any, control: Any, **kwargs: Any) -> None:
        """Leave no hooks behind, should there have been no step."""
        self._forget()


class AnnealCallback(TrainerCallback, ExportableState):
    """`mishkit.Anneal` as a callback: takes a step after each optimizer step.

    If the Trainer is created with this callback, the activations are replaced then and there. That
    is before the optimizer is created, so parameters of new activations are trained. The state is
    saved in the checkpoints, and a resumed training continues from there, with or without
    ``restore_callback_states_from_checkpoint``. At the end only the new activations remain. If
    training stops before t is 1, they stay blended and a warning is issued.

    What is saved of a model is its parameters and its configuration, which knows nothing of the
    change: after ``from_pretrained``, use `mishkit.swap` to put the new activations in.

    Parameters
    ----------
    rules : mapping
        as for `mishkit.Anneal`
    steps : int or float
        how many optimizer steps it takes; or, as a float up to 1, a fraction of all steps of the
        training (``state.max_steps``). A resumed training keeps its original number.
    schedule : "linear", "cosine" or callable, default "linear"
        as for `mishkit.Anneal`

    Attributes
    ----------
    anneal : mishkit.Anneal or None
        the annealing; None before the activations are replaced

    Raises
    ------
    ValueError
        if `steps` is neither; and when the activations are replaced, for what `mishkit.Anneal`
        rejects, or if parameters of new activations come too late for the optimizer
    """

    def __init__(
        self,
        rules: Mapping[Any, Any] | None = None,  # None if the Trainer recreates it
        steps: int | float = 1.0,
        schedule: str | Schedule = "linear",
    ) -> None:
        self.rules, self.schedule = rules, schedule
        self.steps = _callbacks.checked_share(steps)
        self.anneal: Anneal | None = None
        self.saved: dict[str, Any] | None = None
        self._model: nn.Module | None = None

    def on_init_end(self, args: Any, state: Any, control: Any, **kwargs: Any) -> None:
        """Replace the activations, if the Trainer already has a model."""
        if kwargs.get("model") is not None:
            self._attach(kwargs["model"])

    def on_train_begin(self, args: Any, state: Any, control: Any, **kwargs: Any) -> None:
        """Determine how many steps there are, and at which step a resumed training is."""
        model, optimizer = kwargs["model"], kwargs.get("optimizer")
        came_late = self._attach(model)
        assert self.anneal is not None
        if came_late and optimizer is not None:
            trained = {id(p) for group in optimizer.param_groups for p in group["params"]}
            if any(p.requires_grad and id(p) not in trained for p in model.parameters()):
                raise ValueError(
                    "AnnealCallback: parameters of new activations are not in the optimizer; give "
                    "the callback to the Trainer when it is made"
                )
        name = type(self).__name__
        saved = self.saved
        if saved is None and state.global_step:
            entry = state.stateful_callbacks.get(name)
            saved = entry["attributes"].get("saved") if isinstance(entry, dict) else None
        if saved:
            self.anneal.load_state_dict(saved)
        elif state.global_step or not self.anneal.count:  # or it is the second training
            steps = _callbacks.total(self.steps, state.max_steps)
            _callbacks.restart(self.anneal, steps, state.global_step)
        self.saved = None
        # A Trainer that resumes from a checkpoint without this callback expects to find its state.
        state.stateful_callbacks.setdefault(name, self.state())

    def on_step_end(self, args: Any, state: Any, control: Any, **kwargs: Any) -> None:
        """Take a step; this is not called while gradients are accumulated."""
        assert self.anneal is not None
        self.anneal.step()

    def on_train_end(self, args: Any, state: Any, control: Any, **kwargs: Any) -> None:
        """Leave only the new activations."""
        assert self.anneal is not None
        _callbacks.end(self.anneal)
        vars(kwargs["model"]).pop(_ANNEAL, None)

    def state(self) -> dict[str, Any]:
        """What checkpoints keep, as plain numbers."""
        saved = None if self.anneal is None else self.anneal.state_dict()
        return {"args": {}, "attributes": {"saved": saved}}

    def _attach(self, model: nn.Module) -> bool:
        """Make sure that this model has an `Anneal`; returns whether it was created now."""
        if self._model is model:
            return False
        if self.rules is None:
            if _ANNEAL not in vars(model):
                raise ValueError("AnnealCallback: there are no rules")
            self.anneal = vars(model)[_ANNEAL].anneal
        else:
            # The number of steps is set later, when it is known.
            self.anneal = Anneal(model, self.rules, 1, self.schedule)
            vars(model)[_ANNEAL] = _Held(self.anneal)
        self._model = model
        return self.rules is not None
