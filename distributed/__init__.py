"""Data-parallel training: virtual shards, Ray workers, all-reduce in shared memory, and the Trainer."""

from distributed.callbacks import Callback
from distributed.cluster import ClusterError
from distributed.divergence import Diverged
from distributed.groups import WorkerLost
from distributed.options import TrainingOptions
from distributed.run_folder import RunFolder
from distributed.trainer import MemoryDisagreement, Trainer, TrainingResult

__all__ = [
    "Callback",
    "ClusterError",
    "Diverged",
    "MemoryDisagreement",
    "RunFolder",
    "Trainer",
    "TrainingOptions",
    "TrainingResult",
    "WorkerLost",
]
