"""Import this before numpy, and linear algebra gives the same numbers on every CPU.

OpenBLAS chooses its routines by the CPU, and they round differently. Generated files must not
depend on where they are made, so this chooses the routines of the oldest x86-64 CPU that has AVX2.
OpenBLAS reads these variables once, while numpy is imported.
"""

import os

os.environ.update(OPENBLAS_CORETYPE="Haswell", OPENBLAS_NUM_THREADS="1")
