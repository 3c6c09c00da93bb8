"""What goes wrong with a cluster on this machine."""

from __future__ import annotations


class NotHereError(Exception):
    """This machine can't have the cluster, and the message says what it lacks: a reason to skip, never a failure of a test."""


class NodeFailedError(Exception):
    """A node couldn't be started or stopped; with the end of its programs' output."""
