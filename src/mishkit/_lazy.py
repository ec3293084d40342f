"""Public functions of the laboratory; they import what they need when called."""

from __future__ import annotations

from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from .lab.calculus.analysis import Analysis

_NEEDED = ("sympy", "mpmath", "rich")


def analyze(
    name: str, /, *, against: str | None = None, cost: bool = False, **parameters: float
) -> Analysis:
    """Analyse a function from its definition: calculus to 30 digits, and what it costs.

    ``mishkit.analyze("hard_mish", k=3, against="mish").minima[0].x``. Everything is computed from
    the symbolic definition, with the parameters substituted, in about a second; `mishkit explain`
    prints it. Needs the packages of the extra ``lab``.

    Parameters
    ----------
    name : str
        the name of the function (``"hard_mish"``, see `names`) or of the module; parameters may be
        appended: ``"hard_mish:k=3"``
    against : str, optional
        another function, to which the distance is measured
    cost : bool, default False
        also count the kernels' instructions and time the kernels on this machine, for about three
        seconds
    **parameters : float
        the function's parameters; those not given have their default values

    Returns
    -------
    mishkit.lab.calculus.analysis.Analysis
        formulas, range, extrema, inflections, limits, joints, Lipschitz constants, gains under
        N(0, 1), verdicts, distance and cost; ``print`` shows it and ``to_json()`` exports it

    Raises
    ------
    ValueError
        if there is no such function or parameter, or the parameter can't take the value
    ModuleNotFoundError
        if the extra ``lab`` is not installed
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
