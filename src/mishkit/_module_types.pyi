"""The modules: made by tools/make_stubs.py, for type checkers alone."""

from .modules import ActivationModule

class ReLU(ActivationModule):
    """max(0, x), elementwise.

    Source: Nair & Hinton 2010, Rectified Linear Units Improve Restricted Boltzmann Machines.

    The function is monotone.
    See `mishkit.functional` for `inplace`, `save` and `out`.
    """

    inplace: bool
    save: str

    def __init__(self, inplace: bool = False, *, save: str = "input") -> None: ...

class Softplus(ActivationModule):
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

    beta: float
    threshold: float
    inplace: bool
    save: str

    def __init__(
        self,
        beta: float = 1.0,
        threshold: float = 20.0,
        inplace: bool = False,
        *,
        save: str = "input",
    ) -> None: ...

class SiLU(ActivationModule):
    """x·σ(x), elementwise.

    Source: Elfwing, Uchibe & Doya 2018, Sigmoid-Weighted Linear Units (arXiv:1702.03118).

    The function falls to its minimum at x = -1.278465, then rises.
    See `mishkit.functional` for `inplace`, `save` and `out`.
    """

    inplace: bool
    save: str

    def __init__(self, inplace: bool = False, *, save: str = "input") -> None: ...

class GELU(ActivationModule):
    """x·Φ(x), elementwise; with ``approximate="tanh"``, its tanh form (`gelu_tanh`).

    Source: Hendrycks & Gimpel 2016, Gaussian Error Linear Units (arXiv:1606.08415).

    See `mishkit.functional` for `inplace`, `save` and `out`.
    """

    approximate: str
    inplace: bool
    save: str

    def __init__(
        self, approximate: str = "none", inplace: bool = False, *, save: str = "input"
    ) -> None: ...

class GELUTanh(ActivationModule):
    """x/2·(1 + tanh(√(2/π)·(x + 0.044715·x³))), elementwise.

    Source: Hendrycks & Gimpel 2016, Gaussian Error Linear Units (arXiv:1606.08415).

    The function falls to its minimum at x = -0.7524614, then rises.
    See `mishkit.functional` for `inplace`, `save` and `out`.
    """

    inplace: bool
    save: str

    def __init__(self, inplace: bool = False, *, save: str = "input") -> None: ...

class Mish(ActivationModule):
    """x·tanh(ln(1 + eˣ)), elementwise.

    Source: Misra 2019, Mish: A Self Regularized Non-Monotonic Activation (arXiv:1908.08681).

    The function falls to its minimum at x = -1.192431, then rises.
    See `mishkit.functional` for `inplace`, `save` and `out`.
    """

    inplace: bool
    save: str

    def __init__(self, inplace: bool = False, *, save: str = "input") -> None: ...

class HMish(ActivationModule):
    """x/2·min(2, max(0, x + 2)), elementwise.

    Source: Misra 2019, H-Mish (github.com/digantamisra98/H-Mish).

    The function falls to its minimum at x = -1, then rises.
    See `mishkit.functional` for `inplace`, `save` and `out`.
    """

    inplace: bool
    save: str

    def __init__(self, inplace: bool = False, *, save: str = "input") -> None: ...
