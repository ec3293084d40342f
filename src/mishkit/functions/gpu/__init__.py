"""The formulas in Triton, for GPUs: one file per function, as in `mishkit.functions`.

Triton is slow to import and not installed everywhere, so these files are imported only when a GPU
kernel needs them: see `mishkit.activation.Activation.twin`.
"""
