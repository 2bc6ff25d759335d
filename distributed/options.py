"""The options of a training run: one list for the Trainer and for the command line."""

from __future__ import annotations

import dataclasses
import difflib
import importlib.util
import math
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Literal, get_args

from checkpointing.budgets import MemoryBudget, ProcessBudget, parse_budget
from checkpointing.offload import require_folder
from checkpointing.planned import Planned
from checkpointing.policies import Policy, parse_policy
from checkpointing.reduction_tree import require_shards
from distributed.collectives.spread import Spread
from distributed.collectives.transport import Faults, Network
from distributed.holding import ShareWeights
from distributed.placement import PlacementKind
from framework.data import LastBatch
from framework.schedules import Schedule, WarmupConstant, WarmupCosine, WarmupLinear
from framework.sizes import parse_size

#: How a learning rate goes on after its warm-up.
ScheduleKind = Literal["cosine", "linear", "constant"]
#: The options that decide a run's bits. A run that is resumed has those that it was started with.
IDENTITY = (
    "shards", "batch", "last_batch", "steps", "seed", "threads_per_worker", "learning_rate", "schedule", "warmup_steps",
    "clip_norm",
)  # fmt: skip


@dataclass(frozen=True, kw_only=True)
class TrainingOptions:
    """How a model is trained. Results depend on none of workers, policy and memory_budget."""

    workers: int = 0
    """Ray workers, on one machine or on nodes of a cluster; 0 trains in this process without Ray."""
    shards: int = 8
    """Virtual shards that a batch is cut into: a power of two, at least one for each worker. Part of the run's identity."""
    batch: int = 8
    """Examples in a global batch, over all workers; divisible by the shards."""
    last_batch: LastBatch = "drop"
    """What becomes of an epoch's last examples where they are fewer than a batch: drop leaves them out; pad trains on them, too, and divides by their number. The same for validation. Part of the run's identity."""
    steps: int = 100
    """Training steps."""
    seed: int = 0
    """Seed of initial weights, order of examples and dropout."""
    policy: str | None = None
    """What to keep and what to recompute: store-all, recompute-all, every-k:K, sqrt-n, revolve:K and mixed:K (the fewest forwards with K stages kept), selective:PATTERN (keeps what steps of such a kind or path make, as selective:Linear), offload or offload:K (holds on disk what store-all or every-k:K hold in memory), or budget (the fastest known that fits the budget, searched step by step). Default: budget if there is one, else store-all."""
    plan: Path | None = None
    """Run the plan in this file, which scripts/plan.py --out wrote for this model and batch, or the plan.json of a run; instead of a policy."""
    memory_budget: str | None = None
    """Most bytes of each worker: 512MiB or auto (what is free) for its whole process, engine:64MiB for its arrays, or engine:60% for that part of store-all's activations."""
    measured_costs: bool = False
    """Let budgets choose by times of each layer that are measured on this machine, which takes some seconds once, instead of by FLOPs."""
    memory: Literal["block", "heap"] = "block"
    """Where the arrays of a step lie: in one block, each at a place that the plan fixes, or each on the heap."""
    offload_dir: Path | None = None
    """Folder, on a disk of the workers' machine, for values that a plan holds there. Naming it lets a budget choose such plans. Default: the folder of temporary files, where a policy is named that needs one."""
    verify_memory: bool = False
    """Run the first step under tracemalloc and compare predicted bytes, counted bytes, and what NumPy reports, at every operation."""
    threads_per_worker: int = 1
    """Threads of matrix products in each worker. Part of the run's identity."""
    learning_rate: float = 1e-3
    """Peak learning rate, which a linear warm-up reaches."""
    schedule: ScheduleKind = "cosine"
    """How the learning rate goes on after the warm-up: falls along a half cosine or a line to a tenth at the end, or stays constant."""
    warmup_steps: int | None = None
    """Steps of the warm-up. Default: a twentieth of the steps."""
    clip_norm: float | None = 1.0
    """Greatest norm of a gradient; larger ones are scaled down to it. None: no clipping."""
    validate_every: int | None = None
    """Steps between validations; there is always one at the end."""
    validation_examples: int = 512
    """Validation examples, spread evenly over the validation split; rounded down to whole batches, at least one, unless the last is padded."""
    weights: Path | None = None
    """Weights to start from: a weights.safetensors file, or the folder of a run."""
    report: bool = True
    """Record what each worker holds through one step, the second, and write a memory report of the run into its folder at the end: report.html and report.json."""
    tensorboard: bool = False
    """Also write the metrics for TensorBoard, into the folder tensorboard of the run; takes the package tensorboardX."""
    address: str | None = None
    """A running Ray cluster to join, as HOST:PORT or auto. Default: Ray is started on this machine."""
    placement: PlacementKind = "pack"
    """With workers on a cluster: pack puts them on one node, if one has room for all, else on few; spread puts them on as many nodes as it can. A budget of auto is then what is free on each node."""
    placement_timeout: float = 60.0
    """Seconds to wait until a cluster has room for the workers; then what is missing is told."""
    timeout: float = 300.0
    """Seconds that a worker waits for the others before the run fails."""
    bucket_size: str = "4MiB"
    """With workers: bytes of gradients of which the reduction begins as soon as the backward has made them."""
    overlap: bool = True
    """With workers: reduce buckets while the backward goes on, instead of all at the end."""
    rotate_cores: bool = True
    """With as many workers of one thread on a node as it has cores: let them change cores when one falls behind, so that a slow core does not hold up all of them."""
    shard_optimizer: bool = False
    """With workers: each holds the optimizer's state of its part of the parameters alone (ZeRO stage 1), updates that part, and is given the others'. Bits stay the same; with one rank it changes nothing, since that holds all."""
    share_weights: ShareWeights = "auto"
    """With workers: whether those of one node have one copy of the weights, in two versions, instead of one each; then the optimizer's state is shared out, too, as with --shard-optimizer. Bits stay the same. auto: if all are on one node, none takes more memory by it, there is no budget of whole processes, and --shard-optimizer is not given."""
    cross_node: str = "auto"
    """With workers: which of them share memory. auto: those on one node of the cluster; forced: none, each is reached as if it were on a node of its own; 2+1: the first two, and the third, as if they were on two nodes."""
    chunk_size: str = "512KiB"
    """With workers on several nodes: bytes of gradients that travel at once."""
    carrier: Literal["ray", "gloo"] = "ray"
    """With workers on several nodes: what carries gradients, Ray or Gloo (which takes PyTorch)."""
    pretend_delay: float | None = None
    """With workers on several nodes: the most seconds that a message between nodes is late, on purpose."""
    pretend_loss: float | None = None
    """With workers on several nodes: the part of the messages between nodes that are lost on purpose, and sent again."""
    pretend_bandwidth: str | None = None
    """With workers: take as long over a bucket as a network of so many bytes a second would, as 100MB; to see what overlap gains there."""
    snapshot_every: int | None = None
    """Steps between snapshots of the run's state in its folder, from which --resume goes on. Default: none by steps."""
    snapshot_minutes: float | None = None
    """Minutes between snapshots. Default: none by time."""
    keep_snapshots: int = 2
    """How many snapshots stay; older ones are removed."""
    resume: Path | None = None
    """Folder of a run that was stopped: go on from its last snapshot, bit for bit, also with other workers, policy or budget."""
    allow_mixed_cpus: bool = False
    """Train also on workers, or go on from a snapshot, whose CPUs or libraries differ: that bits are the same is not promised then."""

    def check(self) -> None:
        """Checks each option and their combination.

        Raises:
            ValueError: The message names the option, what it was, and what it may be.
            OffloadError: Nothing can be written to the folder for values on disk.
        """
        for name, least in (
            ("workers", 0),
            ("shards", 1),
            ("batch", 1),
            ("steps", 1),
            ("threads_per_worker", 1),
            ("validation_examples", 1),
            ("keep_snapshots", 1),
        ):
            if getattr(self, name) < least:
                raise ValueError(f"{flag(name)} must be at least {least}, but got {getattr(self, name)}")
        for name, fewest in (("warmup_steps", 0), ("validate_every", 1), ("snapshot_every", 1)):
            value = getattr(self, name)
            if value is not None and value < fewest:
                raise ValueError(f"{flag(name)} is a number of steps, but got {value}")
        for name in ("learning_rate", "clip_norm", "timeout", "placement_timeout", "snapshot_minutes"):
            value = getattr(self, name)
            if value is not None and not 0 < value < math.inf:
                raise ValueError(f"{flag(name)} must be positive and finite, but got {value}")
        if self.warmup >= self.steps and self.warmup:
            raise ValueError(f"a warm-up of {self.warmup} steps must be shorter than the run of {self.steps} steps")
        require_shards(self.shards, max(1, self.workers))
        if self.batch % self.shards:
            raise ValueError(
                f"a batch of {self.batch} does not divide into {self.shards} equal shards; give a batch that is a multiple of "
                f"{self.shards}, or fewer shards"
            )
        if self.schedule not in get_args(ScheduleKind):
            raise ValueError(
                f"--schedule is {', '.join(get_args(ScheduleKind))}, but got {self.schedule!r}; a Trainer also takes a schedule of one's own"
            )
        if self.last_batch not in ("drop", "pad"):
            raise ValueError(f"--last-batch is drop or pad, but got {self.last_batch!r}")
        if self.address is not None and not self.workers:
            raise ValueError(f"{flag('address')} is for workers, but there are none; give {flag('workers')}")
        self._check_placement()
        if self.share_weights not in get_args(ShareWeights):
            raise ValueError(f"--share-weights is auto, yes or no, but got {self.share_weights!r}")
        if self.memory not in ("block", "heap"):
            raise ValueError(f"--memory is block or heap, but got {self.memory!r}")
        if self.plan is not None and self.policy is not None:
            raise ValueError(
                f"the plan in {self.plan} was made by a policy of its own; leave {flag('policy')} {self.policy} away"
            )
        self.parsed_policy()
        self.parsed_budget()
        if self.carrier not in ("ray", "gloo"):
            raise ValueError(f"--carrier is ray or gloo, but got {self.carrier!r}")
        if self.carrier == "gloo" and importlib.util.find_spec("torch") is None:
            raise ValueError("--carrier gloo takes PyTorch, which is not installed: pip install torch")
        if self.carrier == "gloo" and isinstance(self.parsed_budget(), ProcessBudget):
            raise ValueError(
                f"with --carrier gloo nobody knows what PyTorch takes of the process: write --memory-budget engine:{self.memory_budget} "
                "for a budget of the engine's arrays"
            )
        for name in ("bucket_size", "chunk_size", "pretend_bandwidth"):
            if (size := getattr(self, name)) is not None:
                try:
                    parse_size(size)
                except ValueError as error:
                    raise ValueError(f"{flag(name)}: {error}") from error
        try:
            _ = self.spread, self.network
        except ValueError as error:
            raise ValueError(f"{flag('cross_node')} or what it is with: {error}") from error
        if self.network.chunk < 1:
            raise ValueError(f"{flag('chunk_size')} must be at least 1 byte, but got {self.chunk_size}")
        if (
            self.offload_dir is not None and self.address is None
        ):  # a cluster's nodes may have what this machine has not
            require_folder(self.offload_dir)

    def _check_placement(self) -> None:
        if self.placement not in ("pack", "spread"):
            raise ValueError(f"--placement is pack or spread, but got {self.placement!r}")
        if self.placement == "pack":
            return
        if self.cross_node != "auto":
            raise ValueError(
                f"--cross-node {self.cross_node} only pretends that workers are on several nodes, and --placement spread puts them "
                "there; leave one of them away"
            )

    @property
    def world(self) -> int:
        """Number of ranks: one in process, else one a worker."""
        return max(1, self.workers)

    @property
    def spread(self) -> Spread | None:
        """How workers are spread over nodes, if that is not left to where they are."""
        if self.cross_node == "auto":
            return None
        return (
            Spread.of(range(self.world)) if self.cross_node == "forced" else Spread.parse(self.cross_node, self.world)
        )

    @property
    def network(self) -> Network:
        """What is between nodes."""
        faults = Faults(self.pretend_delay or 0.0, self.pretend_loss or 0.0, self.seed)
        return Network(parse_size(self.chunk_size), self.carrier, faults)

    @property
    def warmup(self) -> int:
        return self.warmup_steps if self.warmup_steps is not None else self.steps // 20

    @property
    def bucket_nbytes(self) -> int | None:
        """Bytes of a bucket of gradients; None where there is nobody to reduce them with."""
        return parse_size(self.bucket_size) if self.workers > 1 else None

    @property
    def learning_rates(self) -> Schedule:
        """The learning rate by step."""
        if self.schedule == "constant":
            return WarmupConstant(self.learning_rate, self.warmup)
        kind = WarmupCosine if self.schedule == "cosine" else WarmupLinear
        return kind(self.learning_rate, self.steps, self.warmup)

    def parsed_policy(self) -> Policy | None:
        if self.plan is not None:
            return Planned.load(self.plan)
        return parse_policy(self.policy) if self.policy is not None else None

    def parsed_budget(self) -> MemoryBudget | None:
        return None if self.memory_budget in (None, "none") else parse_budget(str(self.memory_budget))

    def to_json(self) -> dict[str, Any]:
        """Returns the options as JSON-ready data."""
        return {k: str(v) if isinstance(v, Path) else v for k, v in dataclasses.asdict(self).items()}


def flag(name: str) -> str:
    return "--" + name.replace("_", "-")


def options_of(given: dict[str, Any]) -> TrainingOptions:
    """Returns options by name, checked.

    Raises:
        TypeError: There is no such option.
        ValueError, OffloadError: See `TrainingOptions.check`.
    """
    known = [field.name for field in dataclasses.fields(TrainingOptions)]
    for name in given:
        if name not in known:
            near = difflib.get_close_matches(name, known, 1)
            hint = f"did you mean {near[0]!r}?" if near else f"known: {', '.join(known)}"
            raise TypeError(f"the Trainer has no option {name!r}; {hint}")
    options = TrainingOptions(**given)
    options.check()
    return options
