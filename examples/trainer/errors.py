"""Mistakes of the user, told in one sentence."""

from __future__ import annotations

import contextlib


class UserError(Exception):
    """A mistake that the user can mend, told in one sentence."""


@contextlib.contextmanager
def refusing(what: str, hint: str = ""):
    """Turn whatever goes wrong inside into one sentence."""
    try:
        yield
    except Exception as error:
        if isinstance(error, UserError):
            raise
        reason = " ".join(str(error).split()) or type(error).__name__
        raise UserError(f"{what}: {reason.rstrip('.')}{f' ({hint})' if hint else ''}.") from error
