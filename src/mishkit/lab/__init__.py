"""The laboratory behind `mishkit …`: what is claimed is measured here.

It uses mishkit's public API only, and needs the packages of the extra ``lab``.
"""

INTERRUPTED = 130
"""The exit status of a program stopped by Ctrl-C."""


class LabError(Exception):
    """A mistake in what was asked for, told in one line that says what to do."""

    status = 1
    """The exit status of the command."""


class Interrupted(LabError):
    """Ctrl-C ended what was going on, and some of it was kept or shown."""

    status = INTERRUPTED
