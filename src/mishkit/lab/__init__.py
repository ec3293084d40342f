"""The laboratory behind `mishkit …`: what is claimed is measured here.

It uses mishkit's public API only, and needs ``pip install "mishkit[lab]"``.
"""


class LabError(Exception):
    """A mistake in what was asked for, told in one line that says what to do."""
