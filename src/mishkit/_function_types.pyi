"""The functions: made by tools/make_stubs.py, for type checkers alone."""

from torch import Tensor

def relu(
    input: Tensor, inplace: bool = False, *, save: str = "input", out: Tensor | None = None
) -> Tensor:
    """max(0, x), elementwise.

    Source: Nair & Hinton 2010, Rectified Linear Units Improve Restricted Boltzmann Machines.

    The function is monotone.
    See `mishkit.functional` for `inplace`, `save` and `out`.
    """

def softplus(
    input: Tensor,
    beta: float = 1.0,
    threshold: float = 20.0,
    inplace: bool = False,
    *,
    save: str = "input",
    out: Tensor | None = None,
) -> Tensor:
    """ln(1 + exp(beta·x)) / beta, and x itself where beta·x > threshold, elementwise.

    Source: Dugas et al. 2001, Incorporating Second-Order Functional Knowledge.

    Parameters
    ----------
    beta : float, default 1
        sharpness; not zero
    threshold : float, default 20
        beta·x above which x is returned as it is

    The function is monotone.
    See `mishkit.functional` for `inplace`, `save` and `out`.
    """

def silu(
    input: Tensor, inplace: bool = False, *, save: str = "input", out: Tensor | None = None
) -> Tensor:
    """x·σ(x), elementwise.

    Source: Elfwing, Uchibe & Doya 2018, Sigmoid-Weighted Linear Units (arXiv:1702.03118).

    The function falls to its minimum at x = -1.278465, then rises.
    See `mishkit.functional` for `inplace`, `save` and `out`.
    """

def gelu_tanh(
    input: Tensor, inplace: bool = False, *, save: str = "input", out: Tensor | None = None
) -> Tensor:
    """x/2·(1 + tanh(√(2/π)·(x + 0.044715·x³))), elementwise.

    Source: Hendrycks & Gimpel 2016, Gaussian Error Linear Units (arXiv:1606.08415).

    The function falls to its minimum at x = -0.7524614, then rises.
    See `mishkit.functional` for `inplace`, `save` and `out`.
    """

def mish(
    input: Tensor, inplace: bool = False, *, save: str = "input", out: Tensor | None = None
) -> Tensor:
    """x·tanh(ln(1 + eˣ)), elementwise.

    Source: Misra 2019, Mish: A Self Regularized Non-Monotonic Activation (arXiv:1908.08681).

    The function falls to its minimum at x = -1.192431, then rises.
    See `mishkit.functional` for `inplace`, `save` and `out`.
    """

def h_mish(
    input: Tensor, inplace: bool = False, *, save: str = "input", out: Tensor | None = None
) -> Tensor:
    """x/2·min(2, max(0, x + 2)), elementwise.

    Source: Misra 2019, H-Mish (github.com/digantamisra98/H-Mish).

    The function falls to its minimum at x = -1, then rises.
    See `mishkit.functional` for `inplace`, `save` and `out`.
    """
