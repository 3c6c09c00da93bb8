"""Our own errors: what failed, on which partition or device, and what to do. Adapters raise them from the original."""

from __future__ import annotations


class FleetTwinError(Exception):
    """Base of all errors a user may see."""


class PositionExpiredError(FleetTwinError):
    """The stream no longer holds the records after the partition's position."""


class StreamGoneError(FleetTwinError):
    """The stream or shard doesn't exist, or access to it is refused."""


class StreamUnavailableError(FleetTwinError):
    """Kinesis gave no answer, or was throttling, for longer than a call may try."""


class AwsSettingsError(FleetTwinError):
    """The region or the endpoint is missing or malformed."""


class DiskFullError(FleetTwinError):
    """No room for a commit; nothing changed. Intake stops until there is room."""


class StoreBrokenError(FleetTwinError):
    """A partition's environment can't be trusted any more."""


class DataFolderInUseError(FleetTwinError):
    """Another process holds the data folder's lock."""


class DataFolderError(FleetTwinError):
    """A file of the data folder can't be read, or it is unknown whether it was written. Not to be tried again."""


class TooManyGenerationsError(FleetTwinError):
    """The rules were edited more often than can be kept. Nothing changed; the rules in force go on."""
