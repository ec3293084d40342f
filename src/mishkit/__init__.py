"""mishkit: smooth activation functions at ReLU's price, for PyTorch.

    import mishkit as mk
    y = mk.mish(x)                          # as torch.nn.functional.mish, many times faster
    act = mk.Mish(save="output")            # as torch.nn.Mish, in ReLU's training memory

`mishkit.functional` says what every function takes.
"""

from typing import TYPE_CHECKING

from . import functional, modules
from ._lazy import analyze
from ._version import __version__
from .functional import FUNCTIONS as _functions
from .memory import KeptBytes
from .modules import MODULES as _modules
from .neuron import APTxLayer, APTxNeuron, aptx_layer
from .registry import get, names, register
from .surgery import audit, lean, lean_functional

if TYPE_CHECKING:  # what the next line brings
    from ._function_types import *  # noqa: F403
    from ._module_types import *  # noqa: F403
    from .functional import gelu as gelu

globals().update(_functions, **_modules)

__all__ = [
    "APTxLayer",
    "APTxNeuron",
    "KeptBytes",
    "__version__",
    "analyze",
    "aptx_layer",
    "audit",
    "functional",
    "get",
    "lean",
    "lean_functional",
    "modules",
    "names",
    "register",
    *_functions,
    *_modules,
]
