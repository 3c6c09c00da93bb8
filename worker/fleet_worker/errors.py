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


class UncleanStopError(FleetTwinError):
    """The worker has stopped, and what it did last for some partitions is not on their disks; it is done again after the next start."""


class DataFolderInUseError(FleetTwinError):
    """Another process holds the data folder's lock."""


class DataFolderError(FleetTwinError):
    """A file of the data folder can't be read, or it is unknown whether it was written. Not to be tried again."""


class TooManyGenerationsError(FleetTwinError):
    """The rules were edited more often than can be kept. Nothing changed; the rules in force go on."""


class ObjectStoreUnavailableError(FleetTwinError):
    """The object store gave no answer, or a busy one, for longer than a call may try. What was asked may have happened."""


class ObjectStoreRefusedError(FleetTwinError):
    """The bucket doesn't exist, access is refused, or the store doesn't honour conditional writes."""


class ObjectMissingError(FleetTwinError):
    """An object that something names isn't there."""


class PreconditionFailedError(FleetTwinError):
    """A conditional write found another object than it expected."""


class CheckpointBrokenError(FleetTwinError):
    """A checkpoint or manifest can't be read: a checksum, a format, a missing file."""


class FencedError(FleetTwinError):
    """Another owner has claimed the partition: it stops here, and nothing more of it is emitted. by_nonce: of the claim that stands; "" = it
    isn't known."""

    def __init__(self, message: str, by_nonce: str = "") -> None:
        super().__init__(message)
        self.by_nonce = by_nonce


class ClaimRefusedError(FleetTwinError):
    """The manifest doesn't let this worker have the partition. manifest_epoch: the one that stands there, 0 = there is none."""

    def __init__(self, message: str, manifest_epoch: int) -> None:
        super().__init__(message)
        self.manifest_epoch = manifest_epoch


class ControlPlaneUnavailableError(FleetTwinError):
    """The control plane (API server, or the control folder) can't be reached just now."""


class ControlPlaneRefusedError(ControlPlaneUnavailableError):
    """The control plane answers, and doesn't take what it is told: a right is missing, or its definitions are of another version. That lasts
    until somebody mends it. remedy: how; the same for all that has the same cause."""

    def __init__(self, message: str, remedy: str) -> None:
        super().__init__(f"{message}; {remedy}")
        self.remedy = remedy


class PartitionGoneError(FleetTwinError):
    """The TwinPartition object doesn't exist any more."""
