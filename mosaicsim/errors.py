"""The exceptions mosaicsim raises on purpose.

    MosaicsimError            exit code 1
    ├── UserInputError        exit code 2: what the user wrote cannot be used
    │   ├── ScenarioError     a scenario file or a --set override
    │   ├── TraceError        a trace file
    │   └── ProfileError      a hardware profile
    ├── InfeasibleError       exit code 1: the inputs are well formed but no schedule satisfies them
    └── OutputError           exit code 1: a result could not be written

Every message is one line that says what was wrong, the value, where it stands, and what is accepted.
"""

from __future__ import annotations

import difflib
from collections.abc import Iterable


class MosaicsimError(Exception):
    """Base of every error a user can meet; the command line prints it without a traceback."""

    exit_code = 1


class UserInputError(MosaicsimError):
    """What the user wrote cannot be used."""

    exit_code = 2


class ScenarioError(UserInputError):
    """A scenario file, or a ``--set`` override of it, is wrong."""


class TraceError(UserInputError):
    """A trace file is missing, malformed or holds impossible values."""


class ProfileError(UserInputError):
    """A hardware profile is missing or malformed."""


class InfeasibleError(MosaicsimError):
    """No schedule satisfies the stated constraints."""


class OutputError(MosaicsimError):
    """A result could not be written."""


def nearest(name: str, accepted: Iterable[str]) -> str:
    """Return ``" (did you mean 'x'?)"`` for the closest accepted name, or an empty string."""
    close = difflib.get_close_matches(name, list(accepted), n=1, cutoff=0.6)
    return f" (did you mean '{close[0]}'?)" if close else ""
