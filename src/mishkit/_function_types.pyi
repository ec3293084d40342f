"""The functions: made by tools/make_stubs.py, for type checkers alone."""

from typing import Literal

from torch import Tensor

def relu(
    input: Tensor,
    inplace: bool = False,
    *,
    save: Literal["input", "output"] = "input",
    out: Tensor | None = None,
) -> Tensor:
    """max(0, x), elementwise.

    Source: Nair & Hinton 2010, Rectified Linear Units Improve Restricted Boltzmann Machines.

    The function is monotone.

    Parameters
    ----------
    input : Tensor
        of float32, float64, bfloat16 or float16, and any shape and strides; others go to
        torch's own function, if it takes them
    inplace : bool, default False
        write the result over the input; backward then uses the output and one bit an element
    save : "input" or "output", default "input"
        what is kept for backward: the input (the exact gradient, any number of derivatives), or the
        output, which the next layer usually keeps anyway, and one bit an element (first derivative
        only)
    out : Tensor, optional
        where to write the result, of the input's shape and dtype; not with autograd
    """

def softplus(
    input: Tensor,
    beta: float = 1.0,
    threshold: float = 20.0,
    inplace: bool = False,
    *,
    save: Literal["input", "output"] = "input",
    out: Tensor | None = None,
) -> Tensor:
    """ln(1 + exp(beta·x)) / beta, and x itself where beta·x > threshold, elementwise.

    Source: Dugas et al. 2001, Incorporating Second-Order Functional Knowledge.

    The function is monotone.

    Parameters
    ----------
    input : Tensor
        of float32, float64, bfloat16 or float16, and any shape and strides; others go to
        torch's own function, if it takes them
    beta : float, default 1
        sharpness; not zero
    threshold : float, default 20
        beta·x above which x is returned as it is
    inplace : bool, default False
        write the result over the input; backward then uses the output and one bit an element
    save : "input" or "output", default "input"
        what is kept for backward: the input (the exact gradient, any number of derivatives), or the
        output, which the next layer usually keeps anyway, and one bit an element (first derivative
        only)
    out : Tensor, optional
        where to write the result, of the input's shape and dtype; not with autograd
    """

def silu(
    input: Tensor,
    inplace: bool = False,
    *,
    save: Literal["input", "output"] = "input",
    out: Tensor | None = None,
) -> Tensor:
    """x·σ(x), elementwise.

    Source: Elfwing, Uchibe & Doya 2018, Sigmoid-Weighted Linear Units (arXiv:1702.03118).

    The function falls to its minimum at x = -1.278465, then rises.

    Parameters
    ----------
    input : Tensor
        of float32, float64, bfloat16 or float16, and any shape and strides; others go to
        torch's own function, if it takes them
    inplace : bool, default False
        write the result over the input; backward then uses the output and one bit an element
    save : "input" or "output", default "input"
        what is kept for backward: the input (the exact gradient, any number of derivatives), or the
        output, which the next layer usually keeps anyway, and one bit an element (first derivative
        only)
    out : Tensor, optional
        where to write the result, of the input's shape and dtype; not with autograd
    """

def gelu_tanh(
    input: Tensor,
    inplace: bool = False,
    *,
    save: Literal["input", "output"] = "input",
    out: Tensor | None = None,
) -> Tensor:
    """x/2·(1 + tanh(√(2/π)·(x + 0.044715·x³))), elementwise.

    Source: Hendrycks & Gimpel 2016, Gaussian Error Linear Units (arXiv:1606.08415).

    The function falls to its minimum at x = -0.7524614, then rises.

    Parameters
    ----------
    input : Tensor
        of float32, float64, bfloat16 or float16, and any shape and strides; others go to
        torch's own function, if it takes them
    inplace : bool, default False
        write the result over the input; backward then uses the output and one bit an element
    save : "input" or "output", default "input"
        what is kept for backward: the input (the exact gradient, any number of derivatives), or the
        output, which the next layer usually keeps anyway, and one bit an element (first derivative
        only)
    out : Tensor, optional
        where to write the result, of the input's shape and dtype; not with autograd
    """

def mish(
    input: Tensor,
    inplace: bool = False,
    *,
    save: Literal["input", "output"] = "input",
    out: Tensor | None = None,
) -> Tensor:
    """x·tanh(ln(1 + eˣ)), elementwise.

    Source: Misra 2019, Mish: A Self Regularized Non-Monotonic Activation (arXiv:1908.08681).

    The function falls to its minimum at x = -1.192431, then rises.

    Parameters
    ----------
    input : Tensor
        of float32, float64, bfloat16 or float16, and any shape and strides; others go to
        torch's own function, if it takes them
    inplace : bool, default False
        write the result over the input; backward then uses the output and one bit an element
    save : "input" or "output", default "input"
        what is kept for backward: the input (the exact gradient, any number of derivatives), or the
        output, which the next layer usually keeps anyway, and one bit an element (first derivative
        only)
    out : Tensor, optional
        where to write the result, of the input's shape and dtype; not with autograd
    """

def h_mish(
    input: Tensor,
    inplace: bool = False,
    *,
    save: Literal["input", "output"] = "input",
    out: Tensor | None = None,
) -> Tensor:
    """x/2·min(2, max(0, x + 2)), elementwise.

    Source: Misra 2019, H-Mish (github.com/digantamisra98/H-Mish).

    The function falls to its minimum at x = -1, then rises.

    Parameters
    ----------
    input : Tensor
        of float32, float64, bfloat16 or float16, and any shape and strides; others go to
        torch's own function, if it takes them
    inplace : bool, default False
        write the result over the input; backward then uses the output and one bit an element
    save : "input" or "output", default "input"
        what is kept for backward: the input (the exact gradient, any number of derivatives), or the
        output, which the next layer usually keeps anyway, and one bit an element (first derivative
        only)
    out : Tensor, optional
        where to write the result, of the input's shape and dtype; not with autograd
    """

def hard_mish(
    input: Tensor,
    k: float = 5.0,
    inplace: bool = False,
    *,
    save: Literal["input", "output"] = "input",
    out: Tensor | None = None,
) -> Tensor:
    """x·min(k, max(0, x + 3))/k, elementwise.

    Source: hard forms of Mish, k = 5 and k = 3 as published; k = 6 is hardswish.

    The function falls to its minimum at x = -1.5 (with these defaults), then rises.

    Parameters
    ----------
    input : Tensor
        of float32, float64, bfloat16 or float16, and any shape and strides; others go to
        torch's own function, if it takes them
    k : float, default 5
        width of the quadratic part, which ends at x = k − 3; positive
    inplace : bool, default False
        write the result over the input; backward then uses the output and one bit an element
    save : "input" or "output", default "input"
        what is kept for backward: the input (the exact gradient, any number of derivatives), or the
        output, which the next layer usually keeps anyway, and one bit an element (first derivative
        only)
    out : Tensor, optional
        where to write the result, of the input's shape and dtype; not with autograd
    """

def hardswish(
    input: Tensor,
    inplace: bool = False,
    *,
    save: Literal["input", "output"] = "input",
    out: Tensor | None = None,
) -> Tensor:
    """x·min(6, max(0, x + 3))/6, elementwise.

    Source: Howard et al. 2019, Searching for MobileNetV3 (arXiv:1905.02244).

    The function falls to its minimum at x = -1.5, then rises.

    Parameters
    ----------
    input : Tensor
        of float32, float64, bfloat16 or float16, and any shape and strides; others go to
        torch's own function, if it takes them
    inplace : bool, default False
        write the result over the input; backward then uses the output and one bit an element
    save : "input" or "output", default "input"
        what is kept for backward: the input (the exact gradient, any number of derivatives), or the
        output, which the next layer usually keeps anyway, and one bit an element (first derivative
        only)
    out : Tensor, optional
        where to write the result, of the input's shape and dtype; not with autograd
    """

def swish(
    input: Tensor,
    beta: float | Tensor = 1.0,
    inplace: bool = False,
    *,
    save: Literal["input", "output"] = "input",
    out: Tensor | None = None,
) -> Tensor:
    """x·σ(beta·x), elementwise.

    Source: Ramachandran, Zoph & Le 2017, Searching for Activation Functions (arXiv:1710.05941).

    The function falls to its minimum at x = -1.278465 (with these defaults), then rises.

    Tensors as parameters, of one element or one a channel (dimension 1 of the input),
    get gradients, which are summed in float32 (float64 for float64); they exclude
    save="output".

    Parameters
    ----------
    input : Tensor
        of float32, float64, bfloat16 or float16, and any shape and strides; others go to
        torch's own function, if it takes them
    beta : float or Tensor, default 1
        sharpness: 1 gives SiLU, a large one tends to ReLU
    inplace : bool, default False
        write the result over the input; backward then uses the output and one bit an element
    save : "input" or "output", default "input"
        what is kept for backward: the input (the exact gradient, any number of derivatives), or the
        output, which the next layer usually keeps anyway, and one bit an element (first derivative
        only)
    out : Tensor, optional
        where to write the result, of the input's shape and dtype; not with autograd
    """

def piecewise_swish(
    input: Tensor,
    inplace: bool = False,
    *,
    save: Literal["input", "output"] = "input",
    out: Tensor | None = None,
) -> Tensor:
    """x·σ(x) where x ≤ 0, x·σ(2x) where x > 0, elementwise.

    Source: two swishes (arXiv:1710.05941) joined at 0, where both slopes are ½.

    The function falls to its minimum at x = -1.278465, then rises.

    Parameters
    ----------
    input : Tensor
        of float32, float64, bfloat16 or float16, and any shape and strides; others go to
        torch's own function, if it takes them
    inplace : bool, default False
        write the result over the input; backward then uses the output and one bit an element
    save : "input" or "output", default "input"
        what is kept for backward: the input (the exact gradient, any number of derivatives), or the
        output, which the next layer usually keeps anyway, and one bit an element (first derivative
        only)
    out : Tensor, optional
        where to write the result, of the input's shape and dtype; not with autograd
    """

def linear_swish(
    input: Tensor,
    inplace: bool = False,
    *,
    save: Literal["input", "output"] = "input",
    out: Tensor | None = None,
) -> Tensor:
    """2x·σ(1.25x) where x ≤ 0, x where x > 0, elementwise.

    Source: a swish (arXiv:1710.05941) of slope 1 at 0, continued by a straight line.

    The function falls to its minimum at x = -1.022772, then rises.

    Parameters
    ----------
    input : Tensor
        of float32, float64, bfloat16 or float16, and any shape and strides; others go to
        torch's own function, if it takes them
    inplace : bool, default False
        write the result over the input; backward then uses the output and one bit an element
    save : "input" or "output", default "input"
        what is kept for backward: the input (the exact gradient, any number of derivatives), or the
        output, which the next layer usually keeps anyway, and one bit an element (first derivative
        only)
    out : Tensor, optional
        where to write the result, of the input's shape and dtype; not with autograd
    """

def aptx(
    input: Tensor,
    alpha: float | Tensor = 1.0,
    beta: float | Tensor = 1.0,
    gamma: float | Tensor = 0.5,
    inplace: bool = False,
    *,
    save: Literal["input", "output"] = "input",
    out: Tensor | None = None,
) -> Tensor:
    """(alpha + tanh(beta·x))·gamma·x, elementwise.

    Source: Kumar 2022, APTx: Better Activation Function (arXiv:2209.06119).

    The function falls to its minimum at x = -0.6392323 (with these defaults), then rises.

    Tensors as parameters, of one element or one a channel (dimension 1 of the input),
    get gradients, which are summed in float32 (float64 for float64); they exclude
    save="output".

    Parameters
    ----------
    input : Tensor
        of float32, float64, bfloat16 or float16, and any shape and strides; others go to
        torch's own function, if it takes them
    alpha : float or Tensor, default 1
        1 lets the left tail vanish
    beta : float or Tensor, default 1
        sharpness
    gamma : float or Tensor, default 0.5
        ½ gives the right side slope 1
    inplace : bool, default False
        write the result over the input; backward then uses the output and one bit an element
    save : "input" or "output", default "input"
        what is kept for backward: the input (the exact gradient, any number of derivatives), or the
        output, which the next layer usually keeps anyway, and one bit an element (first derivative
        only)
    out : Tensor, optional
        where to write the result, of the input's shape and dtype; not with autograd
    """
