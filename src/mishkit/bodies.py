"""The bodies: what a kernel of one function computes, and the tensors that it reads and writes.

Triton's kernels, the benchmarks and the cost model read them here; csrc/kernels.h and the operators
of `mishkit.ops.functions` have the same ones.
"""

from __future__ import annotations

from dataclasses import dataclass

FORWARD, FORWARD_PACKED = "forward", "forward_packed"
BACKWARD, BACKWARD_PACKED = "backward", "backward_packed"
DOUBLE_BACKWARD = "double_backward"


@dataclass(frozen=True)
class Body:
    """A kernel of one function, whatever the function, dtype and backend."""

    ending: str
    """Of the operator, after the function's name."""
    tensors: tuple[str, ...]
    """What it reads, then what it writes; "side" is the row of bits."""
    formulas: tuple[str, ...]
    """Which of the function's formulas it needs."""

    @property
    def has_side(self) -> bool:
        """Whether it reads or writes a bit an element."""
        return "side" in self.tensors

    @property
    def traffic(self) -> int:
        """Elements read or written for each, the side not counted."""
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
"""In the order of csrc/kernels.h."""
