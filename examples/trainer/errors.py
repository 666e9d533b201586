"""Mistakes of the user, told in one sentence."""

from __future__ import annotations

import contextlib


class UserError(Exception):
    """A mistake that the user can mend, told in one sentence."""


def reason(error: Exception) -> str:
    """What an exception says, in one line without a full stop; its type if it says nothing."""
    return (" ".join(str(error).split()) or type(error).__name__).rstrip(".")


@contextlib.contextmanager
def refusing(what: str, hint: str = ""):
    """Turn whatever goes wrong inside into one sentence."""
    try:
        yield
    except Exception as error:
        if isinstance(error, UserError):
            raise
        raise UserError(f"{what}: {reason(error)}{f' ({hint})' if hint else ''}.") from error
