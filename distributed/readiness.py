"""Whether all nodes of a cluster are ready for a run, asked before its first step: their code, versions, memory, and the files they need."""

from __future__ import annotations

import os
import platform
import uuid
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path

from checkpointing.memory_limits import available_memory, container_limit
from distributed.cluster import ClusterError
from distributed.fingerprint import differences
from distributed.records import versions
from distributed.sources import different, sources
from framework.sizes import format_size

#: How many files an error names.
_MOST_TOLD = 5


@dataclass(frozen=True)
class Needs:
    """What workers are asked to look at.

    Attributes:
        own: A person's own modules that the run takes, by their outermost names.
        files: Files and folders that all workers read: weights to start from, a snapshot to go on from.
        mark: A file of this moment beside the run folder, which rank 0 must see to write snapshots there; None where it writes none.
    """

    own: tuple[str, ...] = ()
    files: tuple[Path, ...] = ()
    mark: Path | None = None


@dataclass(frozen=True)
class State:
    """What a process sees of its node.

    Attributes:
        node: Which it is; processes that share memory give the same.
        host: Its name.
        versions: Of Python and packages.
        sources: A hash of each file of the code.
        free: Bytes of memory that can be taken.
        without: Of the files that are needed those that are not there.
        marked: Whether the run folder's place is there, and can be written to.
    """

    node: str
    host: str
    versions: dict[str, str]
    sources: dict[str, str]
    free: int
    without: tuple[Path, ...] = ()
    marked: bool = True


def look(node: str, needs: Needs) -> State:
    """Looks at the node that this process is on."""
    free, container = available_memory(), container_limit()
    mark = needs.mark
    return State(
        node,
        platform.node(),
        versions(),
        sources(needs.own),
        free if container is None else min(free, container.left),
        tuple(path for path in needs.files if not path.exists()),
        mark is None or (mark.exists() and os.access(mark.parent, os.W_OK)),
    )


@contextmanager
def marked(folder: Path) -> Iterator[Path]:
    """Puts a file of a name that was never there beside the place of a folder, for the time of the block.

    The folder itself may not be there yet; a node may have another one of the same name.
    """
    place = next(path for path in folder.absolute().parents if path.is_dir())
    mark = place / f".retape-{uuid.uuid4().hex}"
    mark.touch(exist_ok=False)
    try:
        yield mark
    finally:
        mark.unlink(missing_ok=True)


def require_ready(
    here: State, ranks: Sequence[State], planned: Sequence[int], folder: Path | None, mixed: bool
) -> None:
    """Raises unless all nodes are ready.

    Args:
        here: What the driver sees.
        ranks: What each rank sees.
        planned: Bytes that each rank will take at most, besides what its process has.
        folder: The run's folder, if rank 0 writes snapshots there.
        mixed: Whether versions may differ.

    Raises:
        ClusterError: The message says which rank on which node, what is wrong there, and what to do.
    """
    for rank, state in enumerate(ranks):
        _require_code(here, state, f"rank {rank}, on {state.host}")
    told = differences({"this process": here.versions, **{f"rank {r}": s.versions for r, s in enumerate(ranks)}})
    if told and not mixed:
        raise ClusterError(
            "\n  ".join(["the nodes have other versions than this process:", *told, "install the same on all of them"])
        )
    _require_memory(ranks, planned)
    for rank, state in enumerate(ranks):
        if state.without:
            raise ClusterError(
                f"rank {rank}, on {state.host}, does not see {', '.join(map(str, state.without))}, which all workers read; put it on a "
                "file system that the nodes share, by the same name"
            )
    if not ranks[0].marked:
        raise ClusterError(
            f"rank 0, on {ranks[0].host}, cannot write to the place of the run folder {folder}, where it writes snapshots: only this machine "
            "sees it. Name a folder on a file system that the nodes share with --run-dir, or take no snapshots "
            "(--snapshot-every None --snapshot-minutes None); all else is written by this process"
        )


def _require_code(here: State, there: State, who: str) -> None:
    files = different(here.sources, there.sources)
    if files:
        more = f" and {len(files) - _MOST_TOLD} more" if len(files) > _MOST_TOLD else ""
        raise ClusterError(
            f"{who}, has other code than this process: {', '.join(files[:_MOST_TOLD])}{more} differ. A run that joins the cluster by --address "
            "ships its code; where a job or a program has brought its own, submit it from this very code"
        )


def _require_memory(ranks: Sequence[State], planned: Sequence[int]) -> None:
    for node in dict.fromkeys(state.node for state in ranks):
        on_it = [rank for rank, state in enumerate(ranks) if state.node == node]
        free = max(ranks[rank].free for rank in on_it)
        takes = [planned[rank] for rank in on_it]
        if sum(takes) > free:
            raise ClusterError(
                f"{ranks[on_it[0]].host} has {format_size(free)} of memory free, less than the {' + '.join(map(format_size, takes))} that are "
                f"planned for the workers there, of rank {', '.join(map(str, on_it))}: lower --memory-budget, use fewer workers a node "
                "(--placement spread), or free memory there"
            )
