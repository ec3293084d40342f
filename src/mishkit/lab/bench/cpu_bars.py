"""The bars of `mishkit bench`: what the kernels are promised to reach on one thread."""

from __future__ import annotations

from dataclasses import dataclass

from mishkit.functions import ACTIVATIONS

from ..common.bars import Verdict
from ..common.formats import size_name
from .cases import (
    BACKWARD,
    CALL,
    CALL_BACKWARD,
    CALL_OUT,
    EXPRESSION,
    FORWARD,
    FROM_OUTPUT,
    IN_PLACE,
    MISH,
    OURS,
    OUT,
    RELU,
    TWIN,
)
from .results import Key, Results

L2, L3, MEMORY = 1 << 16, 1 << 20, 1 << 24

LINES, POLYNOMIALS, ONE_EXPONENTIAL = (
    tuple(a.name for a in ACTIVATIONS.values() if a.made_of == part)
    for part in ("lines", "polynomials", "one exponential")
)
SHORT = ("relu2",)
"""Functions whose expression is two operators of torch, as fast as memory."""
WORDS = {
    RELU: "torch's ReLU",
    TWIN: "torch's",
    EXPRESSION: "its expression in torch",
    MISH: "mishkit's Mish",
}


@dataclass(frozen=True)
class Bar:
    """A ratio between two timings, with its limit."""

    claim: str
    above: Key
    below: Key
    limit: float
    at_least: bool
    note: str = ""

    def verdict(self, results: Results) -> Verdict:
        """The verdict on the ratio of minima; the ratio of medians is shown beside it."""
        sign = "≥" if self.at_least else "≤"
        bar = f"{sign} {self.limit:g}×{self.note}"
        ratio = results.ratio(self.above, self.below)
        median = results.ratio(self.above, self.below, "median")
        if ratio is None or median is None:
            return Verdict(self.claim, bar, "not measured", None)
        met = ratio >= self.limit if self.at_least else ratio <= self.limit
        return Verdict(self.claim, bar, f"{ratio:.3g}× ({median:.3g}×)", met)


def faster(
    limit: float,
    case: str,
    size: int,
    function: str = "mish",
    *,
    dtype: str = "float32",
    than: str = TWIN,
) -> Bar:
    """At least this many times faster than torch's own function, or than the formula in torch."""
    ours = _key(function, case, size, dtype)
    claim = f"{_name(ours)}: faster than {WORDS[than]}"
    return Bar(claim, ours._replace(contender=than), ours, limit, at_least=True)


def costs(
    limit: float,
    case: str,
    size: int,
    function: str = "mish",
    *,
    beside: str = RELU,
    note: str = "",
) -> Bar:
    """At most this many times the time of the contender `beside`."""
    ours = _key(function, case, size)
    below = ours._replace(contender=beside)
    return Bar(
        f"{_name(ours)}: over {WORDS[beside]}", ours, below, limit, at_least=False, note=note
    )


def _key(function: str, case: str, size: int, dtype: str = "float32") -> Key:
    return Key(function, dtype, case, size, OURS)


def _name(key: Key) -> str:
    dtype = "" if key.dtype == "float32" else f", {key.dtype}"
    return f"{key.function}, {key.case}, {size_name(key.size)}{dtype}"


def _beside_torch(function: str) -> list[Bar]:
    return [
        faster(2 if size == L2 else 1, case, size, function)
        for case in (FORWARD, BACKWARD)
        for size in (L2, L3, MEMORY)
    ]


_FROM_OUTPUT = _key("mish", FROM_OUTPUT, L2)
_WRITING = _key("mish", CALL_OUT, 16)

BARS = (
    faster(18, FORWARD, L2),
    faster(20, FORWARD, L3),
    costs(1.05, OUT, MEMORY),
    costs(0.92, OUT, MEMORY, note=" where streaming helps"),
    costs(1.35, IN_PLACE, MEMORY),
    faster(14, BACKWARD, L2),
    costs(1.15, BACKWARD, MEMORY),
    Bar(
        f"{_name(_FROM_OUTPUT)}: over that from input",
        _FROM_OUTPUT,
        _key("mish", BACKWARD, L2),
        1.9,
        at_least=False,
    ),
    costs(1.6, FROM_OUTPUT, MEMORY),
    *(faster(18, FORWARD, size, dtype="bfloat16") for size in (L2, L3)),
    *(faster(17, BACKWARD, size, dtype="bfloat16") for size in (L2, L3)),
    faster(3, FORWARD, MEMORY),
    *(bar for name in ("silu", "gelu", "gelu_tanh", "softplus") for bar in _beside_torch(name)),
    costs(1.3, FORWARD, L2, "h_mish"),
    *(costs(1.35, FORWARD, L2, name) for name in (*LINES, *POLYNOMIALS)),
    *(costs(1.15, FORWARD, L2, name, beside=MISH) for name in ONE_EXPONENTIAL),
    *(faster(1, FORWARD, L2, name) for name in LINES if name != RELU),
    *(
        faster(1.5 if name in SHORT else 5, FORWARD, L2, name, than=EXPRESSION)
        for name in (*POLYNOMIALS, *ONE_EXPONENTIAL)
    ),
    costs(1.5, CALL, 16, beside=TWIN),
    Bar(
        f"{_name(_WRITING)}: over a call without",
        _WRITING,
        _key("mish", CALL, 16),
        1.05,
        at_least=False,
    ),
    costs(2, CALL_BACKWARD, 16, beside=TWIN),
    faster(1, CALL, 1024),
    faster(1, CALL_BACKWARD, 1024),
)


def verdicts(results: Results) -> list[Verdict]:
    """Every bar, in the order of the promises."""
    return [bar.verdict(results) for bar in BARS]
