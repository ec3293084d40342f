"""The modules: made by tools/make_stubs.py, for type checkers alone."""

from typing import Literal

from torch.nn import Parameter

from .modules import ActivationModule, TrainableModule

class ReLU(ActivationModule):
    """max(0, x), elementwise.

    Source: Nair & Hinton 2010, Rectified Linear Units Improve Restricted Boltzmann Machines.

    The function is monotone.

    Parameters
    ----------
    inplace : bool, default False
        write the result over the input; backward then uses the output and one bit an element, or,
        with ``save="copy"``, a copy of the input
    save : "input", "output" or "copy", default "input"
        what is kept for backward: the input (the exact gradient, any number of derivatives); the
        output, which the next layer usually keeps anyway, and one bit an element (first derivative
        only); or a copy of the input, for where later code writes over the input or the result
    """

    inplace: bool
    save: Literal["input", "output", "copy"]

    def __init__(
        self, inplace: bool = False, *, save: Literal["input", "output", "copy"] = "input"
    ) -> None: ...

class Softplus(ActivationModule):
    """ln(1 + exp(beta·x)) / beta, and x itself where beta·x > threshold, elementwise.

    Source: Dugas et al. 2001, Incorporating Second-Order Functional Knowledge.

    The function is monotone.

    Parameters
    ----------
    beta : float, default 1
        sharpness; not zero
    threshold : float, default 20
        beta·x above which x is returned as it is
    inplace : bool, default False
        write the result over the input; backward then uses the output and one bit an element, or,
        with ``save="copy"``, a copy of the input
    save : "input", "output" or "copy", default "input"
        what is kept for backward: the input (the exact gradient, any number of derivatives); the
        output, which the next layer usually keeps anyway, and one bit an element (first derivative
        only); or a copy of the input, for where later code writes over the input or the result
    """

    beta: float
    threshold: float
    inplace: bool
    save: Literal["input", "output", "copy"]

    def __init__(
        self,
        beta: float = 1.0,
        threshold: float = 20.0,
        inplace: bool = False,
        *,
        save: Literal["input", "output", "copy"] = "input",
    ) -> None: ...

class SiLU(ActivationModule):
    """x·σ(x), elementwise.

    Source: Elfwing, Uchibe & Doya 2018, Sigmoid-Weighted Linear Units (arXiv:1702.03118).

    The function falls to its minimum at x = -1.278465, then rises.

    Parameters
    ----------
    inplace : bool, default False
        write the result over the input; backward then uses the output and one bit an element, or,
        with ``save="copy"``, a copy of the input
    save : "input", "output" or "copy", default "input"
        what is kept for backward: the input (the exact gradient, any number of derivatives); the
        output, which the next layer usually keeps anyway, and one bit an element (first derivative
        only); or a copy of the input, for where later code writes over the input or the result
    """

    inplace: bool
    save: Literal["input", "output", "copy"]

    def __init__(
        self, inplace: bool = False, *, save: Literal["input", "output", "copy"] = "input"
    ) -> None: ...

class GELU(ActivationModule):
    """x·Φ(x), elementwise; with ``approximate="tanh"``, its tanh form (`gelu_tanh`).

    Source: Hendrycks & Gimpel 2016, Gaussian Error Linear Units (arXiv:1606.08415).

    The function falls to its minimum at x = -0.7517915, then rises.

    Parameters
    ----------
    inplace : bool, default False
        write the result over the input; backward then uses the output and one bit an element, or,
        with ``save="copy"``, a copy of the input
    approximate : "none" or "tanh", default "none"
        which form
    save : "input", "output" or "copy", default "input"
        what is kept for backward: the input (the exact gradient, any number of derivatives); the
        output, which the next layer usually keeps anyway, and one bit an element (first derivative
        only); or a copy of the input, for where later code writes over the input or the result
    """

    approximate: str
    inplace: bool
    save: Literal["input", "output", "copy"]

    def __init__(
        self,
        approximate: str = "none",
        inplace: bool = False,
        *,
        save: Literal["input", "output", "copy"] = "input",
    ) -> None: ...

class GELUTanh(ActivationModule):
    """x/2·(1 + tanh(√(2/π)·(x + 0.044715·x³))), elementwise.

    Source: Hendrycks & Gimpel 2016, Gaussian Error Linear Units (arXiv:1606.08415).

    The function falls to its minimum at x = -0.7524614, then rises.

    Parameters
    ----------
    inplace : bool, default False
        write the result over the input; backward then uses the output and one bit an element, or,
        with ``save="copy"``, a copy of the input
    save : "input", "output" or "copy", default "input"
        what is kept for backward: the input (the exact gradient, any number of derivatives); the
        output, which the next layer usually keeps anyway, and one bit an element (first derivative
        only); or a copy of the input, for where later code writes over the input or the result
    """

    inplace: bool
    save: Literal["input", "output", "copy"]

    def __init__(
        self, inplace: bool = False, *, save: Literal["input", "output", "copy"] = "input"
    ) -> None: ...

class Mish(ActivationModule):
    """x·tanh(ln(1 + eˣ)), elementwise.

    Source: Misra 2019, Mish: A Self Regularized Non-Monotonic Activation (arXiv:1908.08681).

    The function falls to its minimum at x = -1.192431, then rises.

    Parameters
    ----------
    inplace : bool, default False
        write the result over the input; backward then uses the output and one bit an element, or,
        with ``save="copy"``, a copy of the input
    save : "input", "output" or "copy", default "input"
        what is kept for backward: the input (the exact gradient, any number of derivatives); the
        output, which the next layer usually keeps anyway, and one bit an element (first derivative
        only); or a copy of the input, for where later code writes over the input or the result
    """

    inplace: bool
    save: Literal["input", "output", "copy"]

    def __init__(
        self, inplace: bool = False, *, save: Literal["input", "output", "copy"] = "input"
    ) -> None: ...

class HMish(ActivationModule):
    """x/2·min(2, max(0, x + 2)), elementwise.

    Source: Misra 2019, H-Mish (github.com/digantamisra98/H-Mish).

    The function falls to its minimum at x = -1, then rises.

    Parameters
    ----------
    inplace : bool, default False
        write the result over the input; backward then uses the output and one bit an element, or,
        with ``save="copy"``, a copy of the input
    save : "input", "output" or "copy", default "input"
        what is kept for backward: the input (the exact gradient, any number of derivatives); the
        output, which the next layer usually keeps anyway, and one bit an element (first derivative
        only); or a copy of the input, for where later code writes over the input or the result
    """

    inplace: bool
    save: Literal["input", "output", "copy"]

    def __init__(
        self, inplace: bool = False, *, save: Literal["input", "output", "copy"] = "input"
    ) -> None: ...

class HardMish(ActivationModule):
    """x·min(k, max(0, x + 3))/k, elementwise.

    Source: hard forms of Mish, k = 5 and k = 3 as published; k = 6 is hardswish.

    The function falls to its minimum at x = -1.5 (with these defaults), then rises.

    Parameters
    ----------
    k : float, default 5
        width of the quadratic part, which ends at x = k − 3; positive
    inplace : bool, default False
        write the result over the input; backward then uses the output and one bit an element, or,
        with ``save="copy"``, a copy of the input
    save : "input", "output" or "copy", default "input"
        what is kept for backward: the input (the exact gradient, any number of derivatives); the
        output, which the next layer usually keeps anyway, and one bit an element (first derivative
        only); or a copy of the input, for where later code writes over the input or the result
    """

    k: float
    inplace: bool
    save: Literal["input", "output", "copy"]

    def __init__(
        self,
        k: float = 5.0,
        inplace: bool = False,
        *,
        save: Literal["input", "output", "copy"] = "input",
    ) -> None: ...

class Hardswish(ActivationModule):
    """x·min(6, max(0, x + 3))/6, elementwise.

    Source: Howard et al. 2019, Searching for MobileNetV3 (arXiv:1905.02244).

    The function falls to its minimum at x = -1.5, then rises.

    Parameters
    ----------
    inplace : bool, default False
        write the result over the input; backward then uses the output and one bit an element, or,
        with ``save="copy"``, a copy of the input
    save : "input", "output" or "copy", default "input"
        what is kept for backward: the input (the exact gradient, any number of derivatives); the
        output, which the next layer usually keeps anyway, and one bit an element (first derivative
        only); or a copy of the input, for where later code writes over the input or the result
    """

    inplace: bool
    save: Literal["input", "output", "copy"]

    def __init__(
        self, inplace: bool = False, *, save: Literal["input", "output", "copy"] = "input"
    ) -> None: ...

class Swish(TrainableModule):
    """x·σ(beta·x), elementwise.

    Source: Ramachandran, Zoph & Le 2017, Searching for Activation Functions (arXiv:1710.05941).

    The function falls to its minimum at x = -1.278465 (with these defaults), then rises.

    Tensors as parameters, of one element or one a channel (dimension 1 of the input),
    get gradients, which are summed in float32 (float64 for float64); they exclude
    save="output".

    Parameters
    ----------
    beta : float or Tensor, default 1
        sharpness: 1 gives SiLU, a large one tends to ReLU
    inplace : bool, default False
        write the result over the input; backward then uses the output and one bit an element, or,
        with ``save="copy"``, a copy of the input
    save : "input", "output" or "copy", default "input"
        what is kept for backward: the input (the exact gradient, any number of derivatives); the
        output, which the next layer usually keeps anyway, and one bit an element (first derivative
        only); or a copy of the input, for where later code writes over the input or the result
    trainable : bool
        Make the parameters `torch.nn.Parameter`s, which begin with the values given.
    num_parameters : int
        How many of each there are when they are trained: 1, or the number of channels.
    """

    beta: float | Parameter
    trainable: bool
    num_parameters: int
    inplace: bool
    save: Literal["input", "output", "copy"]

    def __init__(
        self,
        beta: float = 1.0,
        trainable: bool = False,
        num_parameters: int = 1,
        inplace: bool = False,
        *,
        save: Literal["input", "output", "copy"] = "input",
    ) -> None: ...

class PiecewiseSwish(ActivationModule):
    """x·σ(x) where x ≤ 0, x·σ(2x) where x > 0, elementwise.

    Source: two swishes (arXiv:1710.05941) joined at 0, where both slopes are ½.

    The function falls to its minimum at x = -1.278465, then rises.

    Parameters
    ----------
    inplace : bool, default False
        write the result over the input; backward then uses the output and one bit an element, or,
        with ``save="copy"``, a copy of the input
    save : "input", "output" or "copy", default "input"
        what is kept for backward: the input (the exact gradient, any number of derivatives); the
        output, which the next layer usually keeps anyway, and one bit an element (first derivative
        only); or a copy of the input, for where later code writes over the input or the result
    """

    inplace: bool
    save: Literal["input", "output", "copy"]

    def __init__(
        self, inplace: bool = False, *, save: Literal["input", "output", "copy"] = "input"
    ) -> None: ...

class LinearSwish(ActivationModule):
    """2x·σ(1.25x) where x ≤ 0, x where x > 0, elementwise.

    Source: a swish (arXiv:1710.05941) of slope 1 at 0, continued by a straight line.

    The function falls to its minimum at x = -1.022772, then rises.

    Parameters
    ----------
    inplace : bool, default False
        write the result over the input; backward then uses the output and one bit an element, or,
        with ``save="copy"``, a copy of the input
    save : "input", "output" or "copy", default "input"
        what is kept for backward: the input (the exact gradient, any number of derivatives); the
        output, which the next layer usually keeps anyway, and one bit an element (first derivative
        only); or a copy of the input, for where later code writes over the input or the result
    """

    inplace: bool
    save: Literal["input", "output", "copy"]

    def __init__(
        self, inplace: bool = False, *, save: Literal["input", "output", "copy"] = "input"
    ) -> None: ...

class APTx(TrainableModule):
    """(alpha + tanh(beta·x))·gamma·x, elementwise.

    Source: Kumar 2022, APTx: Better Activation Function (arXiv:2209.06119).

    The function falls to its minimum at x = -0.6392323 (with these defaults), then rises.

    Tensors as parameters, of one element or one a channel (dimension 1 of the input),
    get gradients, which are summed in float32 (float64 for float64); they exclude
    save="output".

    Parameters
    ----------
    alpha : float or Tensor, default 1
        1 lets the left tail vanish
    beta : float or Tensor, default 1
        sharpness
    gamma : float or Tensor, default 0.5
        ½ gives the right side slope 1
    inplace : bool, default False
        write the result over the input; backward then uses the output and one bit an element, or,
        with ``save="copy"``, a copy of the input
    save : "input", "output" or "copy", default "input"
        what is kept for backward: the input (the exact gradient, any number of derivatives); the
        output, which the next layer usually keeps anyway, and one bit an element (first derivative
        only); or a copy of the input, for where later code writes over the input or the result
    trainable : bool
        Make the parameters `torch.nn.Parameter`s, which begin with the values given.
    num_parameters : int
        How many of each there are when they are trained: 1, or the number of channels.
    """

    alpha: float | Parameter
    beta: float | Parameter
    gamma: float | Parameter
    trainable: bool
    num_parameters: int
    inplace: bool
    save: Literal["input", "output", "copy"]

    def __init__(
        self,
        alpha: float = 1.0,
        beta: float = 1.0,
        gamma: float = 0.5,
        trainable: bool = False,
        num_parameters: int = 1,
        inplace: bool = False,
        *,
        save: Literal["input", "output", "copy"] = "input",
    ) -> None: ...
