"""What a process takes, what its container allows, and the budget that follows."""

import gc
import mmap
import os
import subprocess
import sys
import time
from pathlib import Path

import numpy as np
import psutil
import pytest

from checkpointing.memory_limits import automatic_budget, available_memory, container_limit, require_memory
from checkpointing.process_memory import (
    ProcessMemory,
    give_back_free_memory,
    measure_baseline,
    peak_rss,
    reset_peak_rss,
    warm_up,
)
from tests.checkpointing.containers import UNLIMITED_V1, V1_MOUNTS, V2_MOUNT, limited, tree, v1, v2

MIB, GIB = 2**20, 2**30


def touched(nbytes: int) -> np.ndarray:
    """Private memory of its own: the allocator may answer from what it mapped for an array that is gone."""
    block = np.frombuffer(mmap.mmap(-1, nbytes, flags=mmap.MAP_PRIVATE | mmap.MAP_ANONYMOUS), np.int8)
    block[:] = 1
    return block


def test_the_parts_of_resident_memory_add_up_and_grow_by_what_is_touched() -> None:
    gc.collect()
    give_back_free_memory()  # what tests before this one left would else be used, or go meanwhile
    before = ProcessMemory.read()
    assert before.rss == before.anonymous + before.file + before.shared
    assert 0 < before.uss <= before.rss <= before.peak_rss
    assert before.data > before.anonymous // 2
    block = touched(64 * MIB)
    after = ProcessMemory.read()
    for name in ("rss", "uss", "anonymous", "data"):
        grown = getattr(after, name) - getattr(before, name)
        assert block.nbytes - MIB <= grown <= block.nbytes + 2 * MIB, name
    assert after.file - before.file < MIB


def test_another_process_is_read_by_its_id() -> None:
    with subprocess.Popen([sys.executable, "-c", "input()"], stdin=subprocess.PIPE) as child:
        try:
            deadline = time.monotonic() + 10
            while (memory := ProcessMemory.read(child.pid)).rss < 4 * MIB and time.monotonic() < deadline:
                time.sleep(0.01)  # it is still starting
            assert 4 * MIB < memory.rss < ProcessMemory.read().rss
        finally:
            child.communicate(b"\n")
    with pytest.raises(psutil.NoSuchProcess):
        ProcessMemory.read(child.pid)


def test_shared_memory_is_divided_by_the_processes_that_map_it() -> None:
    before = ProcessMemory.read()
    descriptor = os.memfd_create("test")
    try:
        os.ftruncate(descriptor, 8 * MIB)
        block = mmap.mmap(descriptor, 8 * MIB)
        block.write(b"1" * (8 * MIB))
        alone = ProcessMemory.read()
        assert alone.shared - before.shared == alone.shared_part - before.shared_part == 8 * MIB
        other = f"import mmap, os; m = mmap.mmap(os.open('/proc/{os.getpid()}/fd/{descriptor}', os.O_RDWR), 0); len(m[:]); print(1, flush=True); input()"
        with subprocess.Popen([sys.executable, "-c", other], stdin=subprocess.PIPE, stdout=subprocess.PIPE) as child:
            assert child.stdout is not None
            assert child.stdout.readline() == b"1\n"
            both = ProcessMemory.read()
            child.communicate(b"\n")
        assert both.shared == alone.shared
        assert both.shared_part - before.shared_part == 4 * MIB
    finally:
        os.close(descriptor)


def test_without_proc_the_resident_bytes_are_still_known(tmp_path: Path) -> None:
    memory, exact = ProcessMemory.read(proc=tmp_path), ProcessMemory.read()
    assert abs(memory.rss - exact.rss) < MIB
    assert (memory.peak_rss, memory.anonymous, memory.file, memory.shared) == (memory.rss, 0, 0, 0)
    assert abs(peak_rss(tmp_path) - exact.rss) < MIB
    assert not reset_peak_rss(tmp_path)
    assert list(tmp_path.iterdir()) == []


def test_the_peak_of_resident_memory_sees_what_was_freed_and_can_start_again() -> None:
    assert reset_peak_rss()
    before = peak_rss()
    block = touched(64 * MIB)
    del block
    assert peak_rss() >= before + 60 * MIB
    assert reset_peak_rss()
    assert peak_rss() < before + 32 * MIB


def test_freed_pieces_of_the_heap_are_given_back() -> None:
    pieces = [bytes(2000) for _ in range(20_000)]
    held = ProcessMemory.read().anonymous
    kept = pieces[-1]  # the top of the heap is in use, so that glibc cannot shrink it
    del pieces
    give_back_free_memory()
    assert held - ProcessMemory.read().anonymous > 20 * MIB
    assert kept == bytes(2000)


def test_after_the_baseline_products_and_random_numbers_take_no_more_than_their_arrays() -> None:
    code = """if True:
        from checkpointing.process_memory import ProcessMemory, measure_baseline, peak_rss
        import numpy as np
        from threadpoolctl import threadpool_limits
        threads = threadpool_limits(1)
        before = ProcessMemory.read()
        baseline = measure_baseline("float32", 1, 2048, 1024)
        warm = ProcessMemory.read()
        a, b, out = np.ones((2048, 1024), np.float32), np.ones((1024, 1024), np.float32), np.ones((2048, 1024), np.float32)
        np.matmul(a, b, out=out)
        np.matmul(a.T, out, out=b)
        np.random.Generator(np.random.Philox(key=1)).random(dtype=np.float32, out=b)
        print(warm.rss - before.rss, warm.rss - baseline, peak_rss() - baseline - a.nbytes - b.nbytes - out.nbytes)
    """
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, timeout=60, check=True)
    warming, drift, surplus = map(int, done.stdout.split())
    assert warming > 2 * MIB  # scratch of BLAS and libraries of random numbers
    assert abs(drift) < MIB // 2
    assert -MIB < surplus < MIB


def test_the_baseline_starts_the_peak_again_and_leaves_nothing_behind() -> None:
    block = touched(64 * MIB)
    del block
    first = measure_baseline(rows=256, width=256)
    assert peak_rss() - first < 4 * MIB
    assert abs(measure_baseline(rows=256, width=256) - first) < 4 * MIB


# Containers.


def test_no_container_no_limit(tmp_path: Path) -> None:
    assert container_limit(tmp_path) is None  # no /proc
    root = tree(tmp_path, "0::/user.slice/a.scope\n", V2_MOUNT.format(root="/"), {"user.slice/a.scope": v2("max")})
    assert container_limit(root) is None


def test_v2_takes_the_tightest_of_the_group_and_those_above(tmp_path: Path) -> None:
    files = {
        "pod": v2(str(2 * GIB), 1500 * MIB),
        "pod/app": v2(str(3 * GIB), 500 * MIB),
        "pod/other": v2(str(MIB), MIB),
    }
    root = tree(tmp_path, "0::/pod/app\n", V2_MOUNT.format(root="/"), files)
    limit = container_limit(root)
    assert limit is not None
    assert (limit.nbytes, limit.left) == (2 * GIB, 2 * GIB - 1500 * MIB)  # a neighbour's limit is not ours
    assert limit.source == root / "sys/fs/cgroup/pod/memory.max"


def test_what_is_left_may_be_decided_by_another_group_than_the_smallest_limit(tmp_path: Path) -> None:
    files = {"pod": v2(str(4 * GIB), 4 * GIB - 100 * MIB), "pod/app": v2(str(GIB), 200 * MIB)}
    limit = container_limit(tree(tmp_path, "0::/pod/app\n", V2_MOUNT.format(root="/"), files))
    assert limit is not None
    assert (limit.nbytes, limit.left) == (GIB, 100 * MIB)


def test_clean_file_pages_that_nobody_maps_are_left(tmp_path: Path) -> None:
    stat = f"anon 1\nactive_file {300 * MIB}\ninactive_file {100 * MIB}\nfile_mapped {60 * MIB}\nfile_dirty {40 * MIB}"
    root = tree(tmp_path, "0::/\n", V2_MOUNT.format(root="/"), {".": v2(str(GIB), 700 * MIB, stat)})
    limit = container_limit(root)
    assert limit is not None
    assert limit.left == GIB - (700 - 300) * MIB


def test_high_is_a_limit_and_a_full_group_leaves_nothing(tmp_path: Path) -> None:
    root = tree(tmp_path, "0::/a\n", V2_MOUNT.format(root="/"), {"a": v2(str(GIB), 600 * MIB, high=str(512 * MIB))})
    limit = container_limit(root)
    assert limit is not None
    assert (limit.nbytes, limit.left) == (512 * MIB, 0)
    assert limit.source.name == "memory.high"


@pytest.mark.parametrize(
    ("path", "mounted"),
    [
        ("/", "/"),  # a namespace of its own
        ("/docker/abc", "/docker/abc"),  # none, but only its group is mounted
        ("/docker/abc", "/"),  # none, and the path from outside is not there
        ("/../../elsewhere", "/"),  # seen from a namespace that it is outside of
        ("/kubepods/x", "/docker/abc"),
    ],
)
@pytest.mark.parametrize("version", [1, 2])
def test_a_container_sees_its_limit_however_its_group_is_mounted(
    tmp_path: Path, version: int, path: str, mounted: str
) -> None:
    if version == 2:
        root = tree(tmp_path, f"0::{path}\n", V2_MOUNT.format(root=mounted), {".": v2(str(GIB))})
    else:
        cgroup = f"5:cpu,cpuacct:/x\n4:memory:{path}\n0::/\n"
        root = tree(tmp_path, cgroup, V1_MOUNTS.format(root=mounted), {"memory": v1(str(GIB))})
    limit = container_limit(root)
    assert limit is not None
    assert (limit.nbytes, limit.left) == (GIB, GIB)


def test_v1_takes_the_tightest_and_knows_groups_above_that_are_not_mounted(tmp_path: Path) -> None:
    stat = f"total_active_file {100 * MIB}\ntotal_inactive_file 0\ntotal_mapped_file 0\nhierarchical_memory_limit {GIB}"
    files = {"memory": v1(UNLIMITED_V1, 9 * GIB), "memory/job": v1(str(2 * GIB), 300 * MIB, stat)}
    limit = container_limit(tree(tmp_path, "4:memory:/job\n", V1_MOUNTS.format(root="/"), files))
    assert limit is not None
    assert (limit.nbytes, limit.left) == (GIB, GIB - 200 * MIB)


def test_v1_without_hierarchy_does_not_bind_groups_below(tmp_path: Path) -> None:
    files = {
        "memory/above": {**v1(str(GIB)), "memory.use_hierarchy": "0"},
        "memory/above/job": v1(UNLIMITED_V1),
    }
    assert container_limit(tree(tmp_path, "4:memory:/above/job\n", V1_MOUNTS.format(root="/"), files)) is None


def test_where_both_are_mounted_the_one_with_the_memory_controller_decides(tmp_path: Path) -> None:
    mounts = V1_MOUNTS.format(root="/") + (
        "\n41 31 0:38 / /sys/fs/cgroup/unified rw - cgroup2 cgroup2 rw,nsdelegate"
        "\n40 31 0:37 / /sys/fs/cgroup/systemd rw - cgroup cgroup rw,name=systemd"
    )
    cgroup = "9:name=systemd:/a\n4:memory:/a\n0::/a\n"
    files = {"memory/a": v1(str(GIB)), "unified/a": {"cgroup.procs": ""}, "systemd/a": {"cgroup.procs": ""}}
    limit = container_limit(tree(tmp_path, cgroup, mounts, files))
    assert limit is not None
    assert limit.nbytes == GIB


# The automatic budget.


def test_auto_divides_the_smaller_of_free_memory_and_the_containers_rest(tmp_path: Path) -> None:
    root = limited(tmp_path, 4 * GIB, GIB)
    found = automatic_budget(2, free=8 * GIB, root=root)
    assert (found.free, found.container_limit, found.margin) == (8 * GIB, 3 * GIB, 3 * GIB // 10)
    assert found.nbytes == (3 * GIB - found.margin) // 2
    assert "container leaves 3.0 GiB" in found.reason
    assert "8.0 GiB" in found.reason
    assert "divided by 2 workers: 1.3 GiB each" in found.reason

    found = automatic_budget(1, free=2 * GIB, root=root)
    assert found.nbytes == 2 * GIB - 2 * GIB // 10
    assert "2.0 GiB of memory are free, less than the 3.0 GiB" in found.reason


def test_auto_leaves_a_least_margin_and_counts_what_workers_hold(tmp_path: Path) -> None:
    assert automatic_budget(1, free=512 * MIB, root=tmp_path).nbytes == (512 - 128) * MIB
    assert automatic_budget(2, held=200 * MIB, free=512 * MIB, root=tmp_path).nbytes == (512 + 200 - 128) * MIB // 2
    assert automatic_budget(4, free=100 * MIB, root=tmp_path).nbytes == 0
    assert "no limit by a container" in automatic_budget(1, free=GIB, root=tmp_path).reason
    with pytest.raises(ValueError, match="at least 1, but got 0"):
        automatic_budget(0)


def test_auto_on_this_machine_leaves_something_and_no_more_than_there_is() -> None:
    found = automatic_budget(2)
    assert 0 < found.nbytes * 2 + found.margin <= psutil.virtual_memory().total
    assert abs(available_memory() - found.free) < GIB


def test_more_than_the_machine_or_the_container_could_give_is_refused(tmp_path: Path) -> None:
    require_memory(GIB, 2, total=2 * GIB, root=tmp_path)
    with pytest.raises(
        ValueError, match=r"2 x 1\.5 GiB is more than the 2\.0 GiB that the machine has .* at most 1\.0 GiB"
    ):
        require_memory(3 * GIB // 2, 2, total=2 * GIB, root=tmp_path)
    root = limited(tmp_path, GIB)
    with pytest.raises(ValueError, match=r"2\.0 GiB is more than the 1\.0 GiB that the container allows .*memory\.max"):
        require_memory(2 * GIB, total=8 * GIB, root=root)


def test_warming_up_takes_little_however_wide_the_run() -> None:
    warm_up()
    if not reset_peak_rss():
        pytest.skip("the system does not let us reset the peak")
    before = ProcessMemory.read().rss
    warm_up(rows=100_000, width=50_000)  # a square of the width would be 10 GB
    assert peak_rss() - before < 192 * MIB
