"""The kernel bodies: what each kernel computes for a function, and the tensors it reads and writes.

Triton's kernels, the benchmarks and the cost model use this table; csrc/kernels.h and the operators
of `mishkit.ops.functions` define the same bodies.
"""

from __future__ import annotations

from dataclasses import dataclass

FORWARD, FORWARD_PACKED = "forward", "forward_packed"
BACKWARD, BACKWARD_PACKED = "backward", "backward_packed"
DOUBLE_BACKWARD = "double_backward"


@dataclass(frozen=True)
class Body:
    """One kind of kernel, independent of the function, dtype and backend."""

    ending: str
    """Suffix of the operator's name, after the function's name."""
    tensors: tuple[str, ...]
    """The tensors it reads, then those it writes; "side" is the array of side bits."""
    formulas: tuple[str, ...]
    """Which of the function's formulas it needs."""

    @property
    def has_side(self) -> bool:
        """Whether it reads or writes one bit per element."""
        return "side" in self.tensors

    @property
    def traffic(self) -> int:
        """Values read or written per element, not counting the side."""
        return len(self.tensors) - self.has_side


BODIES = {
    FORWARD: Body("", ("x", "y"), ("f",)),
    FORWARD_PACKED: Body("_packed", ("x", "y", "side"), ("f",)),
    BACKWARD: Body("_backward", ("grad", "x", "result"), ("df",)),
    BACKWARD_PACKED: Body("_backward_packed", ("grad", "y", "side", "result"), ("df_y",)),
    DOUBLE_BACKWARD: Body(
        "_double_backward", ("grad_grad", "grad", "x", "to_grad", "to_x"), ("df", "d2f")
    ),
}
"""In the same order as in csrc/kernels.h."""
