"""The laboratory behind the `mishkit …` commands: it measures what mishkit claims.

It uses only mishkit's public API, and needs the packages of the extra ``lab``.
"""

INTERRUPTED = 130
"""The exit status of a program stopped by Ctrl-C."""


class LabError(Exception):
    """A user's mistake, reported in one line that says what to do."""

    status = 1
    """The exit status of the command."""


class Interrupted(LabError):
    """Ctrl-C ended the work, but some of it was kept or shown."""

    status = INTERRUPTED
