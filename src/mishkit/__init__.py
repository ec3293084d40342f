"""mishkit: smooth activation functions for PyTorch, below ReLU's price.

    import mishkit as mk
    y = mk.mish(x)                          # like torch.nn.functional.mish, many times faster
    act = mk.Mish(save="output")            # like torch.nn.Mish, with ReLU's training memory

See `mishkit.functional` for the arguments that every function takes.
"""

from importlib import import_module
from typing import TYPE_CHECKING

from . import functional, modules
from ._enable import disable, enable, enable_from_environment, enabled
from ._lazy import analyze
from ._version import __version__
from .export import export_form
from .functional import *  # noqa: F403
from .functional import FUNCTIONS as _functions
from .gates import GLU, Gate, gate, glu
from .memory import KeptBytes
from .modules import *  # noqa: F403
from .modules import MODULES as _modules
from .neuron import APTxLayer, APTxNeuron, aptx_layer
from .recompute import recompute
from .registry import get, names, register

if TYPE_CHECKING:  # provided by `__getattr__`
    from . import integrations

    # From where they are defined, as the submodules of `surgery` have the same names.
    from .surgery.anneal import Anneal
    from .surgery.audit import audit
    from .surgery.lean import lean, lean_functional
    from .surgery.prune import prune
    from .surgery.swap import swap, unswap

_SURGERY = ("Anneal", "audit", "lean", "lean_functional", "prune", "swap", "unswap")


def __getattr__(name: str) -> object:
    """Import what works on whole models only when it is first used."""
    if name == "integrations":
        return import_module(".integrations", __name__)
    if name not in _SURGERY:
        raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
    from . import surgery

    globals().update({name: getattr(surgery, name) for name in _SURGERY})
    return globals()[name]


def __dir__() -> list[str]:
    return sorted({*globals(), *_SURGERY, "integrations"})


__all__ = [
    "APTxLayer",
    "APTxNeuron",
    "Anneal",
    "GLU",
    "Gate",
    "KeptBytes",
    "__version__",
    "analyze",
    "aptx_layer",
    "audit",
    "disable",
    "enable",
    "enabled",
    "export_form",
    "functional",
    "gate",
    "get",
    "glu",
    "integrations",
    "lean",
    "lean_functional",
    "modules",
    "names",
    "prune",
    "recompute",
    "register",
    "swap",
    "unswap",
    *_functions,
    *_modules,
]

enable_from_environment()
del enable_from_environment
