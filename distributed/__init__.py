"""Data-parallel training: virtual shards, Ray workers, all-reduce in shared memory, and the Trainer."""

from distributed.callbacks import Callback
from distributed.cluster import ClusterError
from distributed.divergence import Diverged
from distributed.fingerprint import FingerprintMismatch
from distributed.fitting import MemoryDisagreement, TrainingResult
from distributed.groups import WorkerLost
from distributed.interrupts import Stopped
from distributed.options import TrainingOptions
from distributed.run_folder import RunFolder
from distributed.snapshots import SnapshotCorrupt, SnapshotFailed
from distributed.trainer import Trainer

__all__ = [
    "Callback",
    "ClusterError",
    "Diverged",
    "FingerprintMismatch",
    "MemoryDisagreement",
    "RunFolder",
    "SnapshotCorrupt",
    "SnapshotFailed",
    "Stopped",
    "Trainer",
    "TrainingOptions",
    "TrainingResult",
    "WorkerLost",
]
