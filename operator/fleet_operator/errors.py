"""What can go wrong outside the operator, by what is to be done about it. Adapters raise nothing else.

Each says what failed and what to do. None of them is caught but where a reconcile ends, in `acting`, or where a loop tries again.
"""

from __future__ import annotations


class OperatorError(Exception):
    """Any of the below."""


class ApiUnavailableError(OperatorError):
    """The API server didn't answer, or asked to come back later. It may have been done: look again, later."""


class ConflictError(OperatorError):
    """The object isn't any more what it was when it was read, or is there already. Look again, soon."""


class MissingError(OperatorError):
    """There is no such object."""


class RefusedError(OperatorError):
    """The API server won't have it: a missing right, a quota, a policy, a field that it doesn't take. Somebody has to do something."""


class ExpiredError(OperatorError):
    """What was read has become too old to act on. Look again, at once."""


class CutError(OperatorError):
    """A round's time is over before its work is. The next one goes on from there, at once."""


class NotLeadingError(OperatorError):
    """Another operator acts, or may act by now. Nothing more is written."""


class StreamUnavailableError(OperatorError):
    """Kinesis didn't answer, or not what was asked for. Partitions that are known go on."""


class SettingsError(OperatorError):
    """The operator can't begin as it was started: no API server, no credentials, definitions that aren't installed."""
