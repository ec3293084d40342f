"""Public functions of the laboratory, which import what they need when they are called."""

from __future__ import annotations

from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from .lab.calculus.analysis import Analysis

_NEEDED = ("sympy", "mpmath", "rich")


def analyze(
    name: str, /, *, against: str | None = None, cost: bool = False, **parameters: float
) -> Analysis:
    """What follows from a function's definition: calculus to 30 digits, and what it costs.

    ``mishkit.analyze("hard_mish", k=3, against="mish").minima[0].x``. Everything is computed from
    the symbolic definition with the parameters put in, in about a second; `mishkit explain` prints
    it. Needs the packages of the extra ``lab``.

    Parameters
    ----------
    name : str
        the function's name (``"hard_mish"``, see `names`) or the module's; parameters may stand
        behind it: ``"hard_mish:k=3"``
    against : str, optional
        another function, whose distance is measured
    cost : bool, default False
        also count the instructions of the kernels and time them, on this machine, for about three
        seconds
    **parameters : float
        the function's parameters; those not given have their defaults

    Returns
    -------
    mishkit.lab.calculus.analysis.Analysis
        formulas, range, extrema, inflections, limits, joints, Lipschitz constants, gains under
        N(0, 1), verdicts, distance and cost; ``print`` shows it and ``to_json()`` exports it

    Raises
    ------
    ValueError
        if there is no such function or parameter, or it can't take the value
    ModuleNotFoundError
        without the extra ``lab``
    """
    from ._missing import install

    try:
        from .lab import LabError
        from .lab.calculus.analyze import analyze
    except ModuleNotFoundError as error:
        if error.name not in _NEEDED:
            raise
        raise ModuleNotFoundError(
            f"mishkit.analyze needs {error.name}: {install(error.name, 'lab')}", name=error.name
        ) from None
    try:
        return analyze(name, against=against, cost=cost, **parameters)
    except LabError as error:
        raise ValueError(f"mishkit.analyze: {error}") from None
