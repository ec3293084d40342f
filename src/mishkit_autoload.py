"""What torch calls at the end of `import torch`: enables mishkit if ``MISHKIT_ENABLE`` is set.

torch finds it by its entry point in the group ``torch.backends``. It is no part of the package
`mishkit`, so that programs which don't ask for mishkit don't import it.
"""

import os
import sys


def load() -> None:
    """Import mishkit, which reads the variable, unless mishkit is what imports torch."""
    if os.environ.get("MISHKIT_ENABLE", "") not in ("", "0") and "mishkit" not in sys.modules:
        import mishkit  # noqa: F401
