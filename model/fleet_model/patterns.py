"""Regular expressions that come with a fleet, matched in linear time.

Device ids come from outside; Python's `re` can take minutes for one of them where repeats nest. RE2 never does, and is what
Kubernetes' own validation rules (CEL) speak.
"""

from __future__ import annotations

import functools

import re2

PATTERNS_KEPT_MAX = 1_024


class BadPatternError(ValueError):
    """Not a regular expression that RE2 knows; the message says why."""


@functools.lru_cache(maxsize=PATTERNS_KEPT_MAX)
def _compiled(pattern: str) -> re2._Regexp:
    options = re2.Options()
    options.log_errors = False
    try:
        return re2.compile(pattern, options=options)
    except re2.error as error:
        reason = error.args[0] if error.args else "not a regular expression"
        raise BadPatternError(reason.decode(errors="replace") if isinstance(reason, bytes) else str(reason)) from error


def check(pattern: str) -> None:
    """Raises BadPatternError."""
    _compiled(pattern)


def matches_whole(pattern: str, text: str) -> bool:
    return _compiled(pattern).fullmatch(text) is not None
