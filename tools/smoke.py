"""Check an installed mishkit, as a wheel or an sdist must be before it is published.

python tools/smoke.py --kernels    # from anywhere, with the Python that it was installed into
python tools/smoke.py --pure       # a wheel without kernels: through plain torch
"""

from __future__ import annotations

import argparse
import importlib.metadata
import sys
import warnings
from pathlib import Path

import torch


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    kind = parser.add_mutually_exclusive_group(required=True)
    kind.add_argument("--kernels", action="store_true", help="the kernels must be there")
    kind.add_argument("--pure", action="store_true", help="they must not, and it must be said")
    pure = parser.parse_args().pure

    with warnings.catch_warnings(record=True) as caught:
        warnings.simplefilter("always")
        import mishkit as mk
        from mishkit.backends import cpu

        messages = [str(warning.message) for warning in caught]
        x = torch.randn(1001, dtype=torch.float64, requires_grad=True)
        for save in ("input", "output"):
            torch.testing.assert_close(mk.mish(x, save=save), torch.nn.functional.mish(x))
            (ours,) = torch.autograd.grad(mk.mish(x, save=save).sum(), x)
            (theirs,) = torch.autograd.grad(torch.nn.functional.mish(x).sum(), x)
            torch.testing.assert_close(ours, theirs)
        for dtype in (torch.float32, torch.bfloat16, torch.float16):
            for name in mk.names():
                module = mk.get(name, inplace=True)
                y = module(torch.linspace(-9, 9, 1000, dtype=dtype, requires_grad=True) * 1)
                y.sum().backward()
                assert y.dtype == dtype and y.isfinite().all(), name
        messages += [str(warning.message) for warning in caught]

    inside = Path(mk.__file__).parent
    assert (Path(sys.prefix) in inside.parents) or "site-packages" in inside.parts, (
        f"this is {inside}, not what was installed"
    )
    assert importlib.metadata.version("mishkit") == mk.__version__
    assert (inside / "py.typed").exists()
    isas = cpu.isas()
    assert bool(isas) != pure, f"kernels: {isas}"
    assert any("plain torch" in text for text in messages) == pure, messages
    print(f"mishkit {mk.__version__}, torch {torch.__version__}, kernels: {', '.join(isas) or '-'}")


if __name__ == "__main__":
    main()
