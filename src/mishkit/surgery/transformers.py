"""Annealing activations in a training by the `Trainer` of transformers."""

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
"""Where a model in training has its `Anneal`: a Trainer that resumes may make callbacks anew."""


class _Held:
    """An `Anneal` as an attribute of its model, which deep copies of the model do not copy: they go
    along with the model."""

    def __init__(self, anneal: Anneal) -> None:
        self.anneal = anneal

    def __deepcopy__(self, _memo: dict[int, Any]) -> _Held:
        return self


class AnnealCallback(TrainerCallback, ExportableState):
    """`mishkit.Anneal` as a callback: a step after each step of the optimizer.

    The activations are replaced when the Trainer is made, if it is made with this callback, and so
    before the optimizer, so that parameters of new activations are trained. The state is in the
    checkpoints, and a training that is resumed goes on from there, with
    ``restore_callback_states_from_checkpoint`` or without. At the end the new activations remain
    alone; a training that stops before t is 1 leaves them blended, with a warning.

    What is saved of a model are its parameters and its configuration, which knows nothing of this:
    after ``from_pretrained``, `mishkit.swap` puts the new activations in.

    Parameters
    ----------
    rules : mapping
        as for `mishkit.Anneal`
    steps : int or float
        how many steps of the optimizer it takes, or, as a float up to 1, which share of all steps
        of the training (``state.max_steps``). A resumed training keeps what it began with.
    schedule : "linear", "cosine" or callable, default "linear"
        as for `mishkit.Anneal`

    Attributes
    ----------
    anneal : mishkit.Anneal or None
        what it does; None before the activations are replaced

    Raises
    ------
    ValueError
        if `steps` is neither; and when the activations are replaced, for what `mishkit.Anneal`
        refuses, or if parameters of new activations come too late for the optimizer
    """

    def __init__(
        self,
        rules: Mapping[Any, Any] | None = None,  # None where the Trainer makes it anew
        steps: int | float = 1.0,
        schedule: str | Schedule = "linear",
    ) -> None:
        self.rules, self.schedule = rules, schedule
        self.steps = _callbacks.checked_share(steps)
        self.anneal: Anneal | None = None
        self.saved: dict[str, Any] | None = None
        self._model: nn.Module | None = None

    def on_init_end(self, args: Any, state: Any, control: Any, **kwargs: Any) -> None:
        """Replace the activations, where the Trainer has a model already."""
        if kwargs.get("model") is not None:
            self._attach(kwargs["model"])

    def on_train_begin(self, args: Any, state: Any, control: Any, **kwargs: Any) -> None:
        """Find out how many steps there are, and where a resumed training is."""
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
        # A Trainer that resumes from where there was no such callback wants to find it.
        state.stateful_callbacks.setdefault(name, self.state())

    def on_step_end(self, args: Any, state: Any, control: Any, **kwargs: Any) -> None:
        """A step; while gradients are accumulated this is not called."""
        assert self.anneal is not None
        self.anneal.step()

    def on_train_end(self, args: Any, state: Any, control: Any, **kwargs: Any) -> None:
        """Leave the new activations alone."""
        assert self.anneal is not None
        _callbacks.end(self.anneal)
        vars(kwargs["model"]).pop(_ANNEAL, None)

    def state(self) -> dict[str, Any]:
        """What checkpoints keep, in plain numbers."""
        saved = None if self.anneal is None else self.anneal.state_dict()
        return {"args": {}, "attributes": {"saved": saved}}

    def _attach(self, model: nn.Module) -> bool:
        """Have an `Anneal` of this model; whether it was made now."""
        if self._model is model:
            return False
        if self.rules is None:
            if _ANNEAL not in vars(model):
                raise ValueError("AnnealCallback: there are no rules")
            self.anneal = vars(model)[_ANNEAL].anneal
        else:
            # How many steps there are is known later.
            self.anneal = Anneal(model, self.rules, 1, self.schedule)
            vars(model)[_ANNEAL] = _Held(self.anneal)
        self._model = model
        return self.rules is not None
