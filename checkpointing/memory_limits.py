"""How much memory there is: what is free on the machine, what the container leaves, and the budget that follows from both.

A container's limit is that of its control group (cgroup) or of a group above it, in the files of cgroup v2 ("Control Group v2" in
the kernel's documentation) or of v1's memory controller. A machine may have both mounted; the memory controller is in one.
"""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path, PurePosixPath

import psutil

from framework.sizes import format_size

#: Of what is free a tenth stays free, and at least this. Page tables and sockets are charged to a container too; the driver keeps
#: the history and receives the parameters; other programs breathe. Ray's own processes took 340 MiB on a node: a budget
#: should be measured when they run.
MARGIN_PART, MARGIN_NBYTES = 10, 128 * 2**20

#: v1 writes "no limit" as the largest number of whole pages, about 2⁶³. No machine has this much.
_NO_LIMIT = 2**60


@dataclass(frozen=True)
class ContainerLimit:
    """What a container lets its processes take, in bytes.

    Attributes:
        nbytes: The smallest limit of the process's group and those above it.
        left: How much more may be taken before one of them is met. Clean file pages that nobody maps do not count as taken: the
            system drops them first.
        source: The file that sets the limit.
    """

    nbytes: int
    left: int
    source: Path


@dataclass(frozen=True)
class AutomaticBudget:
    """A whole-process budget for each worker of a node, from what is free, in bytes.

    Attributes:
        nbytes: The budget of each worker.
        free: What is free on the machine.
        container_limit: What the container leaves, or None if it sets no limit.
        held: What the workers hold already, which is theirs to keep.
        margin: What is left alone.
        workers: Workers on the node.
    """

    nbytes: int
    free: int
    container_limit: int | None
    held: int
    margin: int
    workers: int

    @property
    def reason(self) -> str:
        """A sentence that says where the number comes from."""
        if self.container_limit is None:
            source = f"{format_size(self.free)} of memory are free, with no limit by a container"
        elif self.container_limit < self.free:
            source = f"the container leaves {format_size(self.container_limit)} of the machine's free {format_size(self.free)}"
        else:
            source = f"{format_size(self.free)} of memory are free, less than the {format_size(self.container_limit)} that the container leaves"
        held = f", and {format_size(self.held)} are held already" if self.held else ""
        each = f", divided by {self.workers} workers: {format_size(self.nbytes)} each"
        return (
            f"{source}{held}; less a margin of {format_size(self.margin)}"
            f"{each if self.workers > 1 else f': {format_size(self.nbytes)}'}"
        )


def available_memory() -> int:
    """Returns the bytes that can be taken without swapping (MemAvailable)."""
    return int(psutil.virtual_memory().available)


def automatic_budget(
    workers_on_node: int = 1, held: int = 0, *, free: int | None = None, root: Path = Path("/")
) -> AutomaticBudget:
    """Divides what is free among the workers of this node.

    The smaller of free memory and what the container leaves, less a margin (a tenth, at least 128 MiB), divided by the
    workers. Measure on the workers' node when Ray's processes run.

    Args:
        workers_on_node: Workers that share the node.
        held: Bytes that these workers hold already (the sum of their unique bytes): part of their budgets.
        free: Bytes that are free; by default they are measured.
        root: Where the file system begins.

    Returns:
        The budget and its reason; of 0 bytes where nothing is left.

    Raises:
        ValueError: There are no workers.
    """
    if workers_on_node < 1:
        raise ValueError(f"memory is divided by the workers of a node, at least 1, but got {workers_on_node}")
    free = available_memory() if free is None else free
    container = container_limit(root)
    left = None if container is None else container.left
    smaller = free if left is None else min(free, left)
    margin = max(smaller // MARGIN_PART, MARGIN_NBYTES)
    nbytes = max(0, smaller + held - margin) // workers_on_node
    return AutomaticBudget(nbytes, free, left, held, margin, workers_on_node)


def require_memory(nbytes: int, workers_on_node: int = 1, *, total: int | None = None, root: Path = Path("/")) -> None:
    """Refuses a budget that the machine could never give.

    Args:
        nbytes: The budget of each worker's process.
        workers_on_node: Workers that share the node.
        total: Bytes of memory and swap; by default they are measured.
        root: Where the file system begins.

    Raises:
        ValueError: All workers together would pass the machine's memory and swap, or the container's limit.
    """
    total = int(psutil.virtual_memory().total + psutil.swap_memory().total) if total is None else total
    container = container_limit(root)
    most, what = total, "the machine has with its swap"
    if container is not None and container.nbytes < total:
        most, what = container.nbytes, f"the container allows ({container.source})"
    if nbytes * workers_on_node > most:
        product = f"{workers_on_node} x " if workers_on_node > 1 else ""
        raise ValueError(
            f"a budget of {product}{format_size(nbytes)} is more than the {format_size(most)} that {what}; give at most "
            f"{format_size(most // workers_on_node)}, or auto"
        )


def container_limit(root: Path = Path("/")) -> ContainerLimit | None:
    """Returns the tightest memory limit of this process's control group and those above it, or None if there is none.

    ``memory.high`` of v2 counts as a limit too: beyond it a process is not ended but hardly runs.

    Args:
        root: Where the file system begins; another one is for tests.
    """
    levels = [level for folder, top in control_groups(root, "memory") for level in _limits(folder, top)]
    if not levels:
        return None
    tightest = min(levels, key=lambda level: level.nbytes)
    return ContainerLimit(tightest.nbytes, min(level.left for level in levels), tightest.source)


def control_groups(root: Path, wanted: str) -> Iterator[tuple[Path, Path]]:
    """Yields the folder of this process's group in each mounted hierarchy that may limit something, and the hierarchy's top folder.

    Args:
        root: Where the file system begins.
        wanted: The controller as version 1 names it, as "memory", "cpu" or "pids"; version 2 has all in one hierarchy.
    """
    try:
        memberships = (root / "proc/self/cgroup").read_text().splitlines()
        mounts = (root / "proc/self/mountinfo").read_text().splitlines()
    except OSError:
        return
    paths: dict[str, str] = {}  # by v1's controller, "" for v2
    for membership in memberships:
        _, controllers, path = membership.split(":", 2)
        paths.update(dict.fromkeys(controllers.split(","), path))
    for mount in mounts:
        # ID PARENT MAJOR:MINOR ROOT POINT OPTIONS ... - TYPE SOURCE SUPER-OPTIONS; see proc(5)
        place, _, kind = mount.partition(" - ")
        mounted, point = place.split()[3:5]
        type_, *_, options = kind.split()
        if type_ == "cgroup2":
            controller = ""
        elif type_ == "cgroup" and wanted in options.split(","):
            controller = wanted
        else:
            continue
        if group := paths.get(controller):
            top = root / point.replace("\\040", " ").lstrip("/")
            yield top / _inside(PurePosixPath(group), PurePosixPath(mounted)), top


def _inside(path: PurePosixPath, mounted: PurePosixPath) -> PurePosixPath:
    """Returns a group's path below a mount that shows the hierarchy from `mounted` on.

    A container may see no more than its own group, mounted as the top, under a path that is written from outside.
    """
    if ".." in path.parts or not path.is_relative_to(mounted):
        return PurePosixPath()
    return path.relative_to(mounted)


def _limits(folder: Path, top: Path) -> Iterator[ContainerLimit]:
    """Yields the limits of a group and of those above it, as far as they are mounted."""
    for place in (folder, *folder.parents):
        if place == folder or _number(place / "memory.use_hierarchy") != 0:  # v1 can leave its children alone
            statistics = _statistics(place / "memory.stat")
            for used, names in (
                ("memory.current", ("memory.max", "memory.high")),
                ("memory.usage_in_bytes", ("memory.limit_in_bytes",)),
            ):
                taken = (_number(place / used) or 0) - _droppable(statistics)
                found = {place / name: _number(place / name) for name in names}
                if place == folder:  # v1 tells of groups above that are not mounted here
                    found[place / "memory.stat"] = statistics.get("hierarchical_memory_limit")
                for source, limit in found.items():
                    if limit is not None and limit < _NO_LIMIT:
                        yield ContainerLimit(limit, max(0, limit - max(0, taken)), source)
        if place == top:
            return


def _droppable(statistics: dict[str, int]) -> int:
    """Returns the bytes of clean file pages that nobody maps; v1's names of a whole subtree begin with total."""
    total = "total_" if "total_active_file" in statistics else ""
    mapped = statistics.get("total_mapped_file" if total else "file_mapped", 0)
    files = sum(statistics.get(f"{total}{kind}_file", 0) for kind in ("active", "inactive"))
    dirty = statistics.get("total_dirty" if total else "file_dirty", 0)
    return max(0, files - mapped - dirty)


def _statistics(path: Path) -> dict[str, int]:
    try:
        pairs = [line.split() for line in path.read_text().splitlines()]
    except OSError:
        return {}
    return {pair[0]: int(pair[1]) for pair in pairs if len(pair) == 2 and pair[1].isdecimal()}


def _number(path: Path) -> int | None:
    """Returns the number in a file; None where there is no file, or where it says "max"."""
    try:
        text = path.read_text().strip()
    except OSError:
        return None
    return int(text) if text.isdecimal() else None
