"""What can go wrong, told apart by what is to be done about it.

Anything that is neither `Temporary` nor `Permanent` is a bug: it ends one iteration of a loop, is logged, and the
loop backs off for the object concerned.
"""

from __future__ import annotations


class Temporary(Exception):
    """It may go through later: retry after `delay_s` seconds. The message says what is wrong and what to do."""

    def __init__(self, message: str, *, code: str = "temporary", delay_s: float = 1.0) -> None:
        super().__init__(message)
        self.message = message
        self.code = code
        self.delay_s = delay_s


class Permanent(Exception):
    """It will not go through again unchanged: tell the person why. `code` is stable, for programs."""

    def __init__(self, message: str, *, code: str) -> None:
        super().__init__(message)
        self.message = message
        self.code = code
