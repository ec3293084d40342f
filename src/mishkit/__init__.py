"""mishkit: smooth activation functions at ReLU's price, for PyTorch.

    import mishkit as mk
    y = mk.mish(x)                          # as torch.nn.functional.mish, many times faster
    act = mk.Mish(save="output")            # as torch.nn.Mish, in ReLU's training memory
"""

from . import functional, modules
from ._version import __version__
from .functional import FUNCTIONS as _functions
from .memory import KeptBytes
from .modules import MODULES as _modules

globals().update(_functions, **_modules)

__all__ = ["KeptBytes", "__version__", "functional", "modules", *_functions, *_modules]
