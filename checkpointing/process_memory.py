"""What a process takes from the machine: resident memory now and at its peak, and its baseline before the first array.

The system says it in /proc (proc(5)); where that is missing, psutil gives the resident bytes and the rest is less exact.
"""

from __future__ import annotations

import contextlib
import ctypes
import gc
import mmap
import os
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import psutil
from numpy.typing import DTypeLike
from threadpoolctl import threadpool_limits

from framework.memory import Array

_PROC = Path("/proc")

#: What BLAS packs grows no further with products of more rows, or wider ones.
_MOST_ROWS, _MOST_WIDTH = 16_384, 1_024


@dataclass(frozen=True)
class ProcessMemory:
    """The memory of a process at one moment, in bytes.

    Attributes:
        rss: Resident: all pages in memory, those shared with other processes included.
        uss: What would be free if the process ended: resident pages that no other process maps.
        peak_rss: The most that was ever resident, or since `reset_peak_rss`.
        anonymous: Resident pages of heap, stacks and anonymous maps.
        file: Resident pages of mapped files: libraries, and data read through a memory map. The system may drop them at
            any time, and no container is ended for them.
        shared: Resident pages of shared memory (memfd, /dev/shm).
        shared_part: The same with each page divided by the processes that map it, so that it adds up over processes.
        data: Private writable address space, resident or not: what RLIMIT_DATA limits.
        swap: Pages that were swapped out.

    ``rss = anonymous + file + shared``. Where the system does not say, a part is 0, the peak is `rss`, and `uss` is at most `rss`.
    """

    rss: int
    uss: int
    peak_rss: int
    anonymous: int
    file: int
    shared: int
    shared_part: int
    data: int
    swap: int

    @classmethod
    def read(cls, pid: int | None = None, proc: Path = _PROC) -> ProcessMemory:
        """Reads the memory of this process, or of another one of the same user.

        It takes about a millisecond, most of it for `uss`; `peak_rss` alone is quicker.

        Args:
            pid: The process; None for this one.
            proc: Where the system's process files are mounted.

        Raises:
            psutil.NoSuchProcess: There is no such process.
        """
        status = _status(pid, proc)
        process = psutil.Process(pid)
        rss = status.get("VmRSS") or int(process.memory_info().rss)
        anonymous, file, shared = (status.get(key, 0) for key in ("RssAnon", "RssFile", "RssShmem"))
        try:
            uss = int(process.memory_full_info().uss)
        except (psutil.AccessDenied, AttributeError):
            uss = anonymous or rss
        return cls(
            rss,
            uss,
            status.get("VmHWM", rss),
            anonymous,
            file,
            shared,
            _status(pid, proc, "smaps_rollup").get("Pss_Shmem", shared),
            status.get("VmData", 0),
            status.get("VmSwap", 0),
        )


def peak_rss(proc: Path = _PROC) -> int:
    """Returns the peak resident memory of this process in bytes (VmHWM), or the present one where the system keeps none."""
    return _status(None, proc).get("VmHWM") or int(psutil.Process().memory_info().rss)


def reset_peak_rss(proc: Path = _PROC) -> bool:
    """Starts the peak of `peak_rss` again from the present resident memory.

    Returns:
        Whether the system lets us; where it does not, the peak stays that of the process's whole life.
    """
    try:
        with (proc / "self" / "clear_refs").open("r+") as file:  # never creates it
            file.write("5")
    except OSError:
        return False
    return True


def give_back_free_memory() -> None:
    """Lets the C library return freed memory to the system, which glibc does not do by itself for most of it."""
    with contextlib.suppress(OSError, AttributeError):  # another C library
        ctypes.CDLL(None).malloc_trim(0)


def warm_up(dtype: DTypeLike = "float32", threads: int = 1, rows: int = 4096, width: int = 1024) -> None:
    """Makes NumPy and BLAS take now what they would take at their first use.

    OpenBLAS maps 32 MiB of scratch at the first product and touches as much of it as the tallest product needs: packed, about
    rows x min(width, 256..384) elements, 8 MiB for the defaults in float32, the whole 32 MiB from 16,384 rows. So give the
    sizes that the run will have. Random generators load 2.5 MiB of libraries.

    Args:
        dtype: Of the products.
        threads: BLAS threads of the products: with more than one, narrow products take the scratch as well.
        rows: Rows of the tallest product: positions of a shard.
        width: Columns of the widest.
    """
    dtype = np.dtype(dtype)
    rows, width = (
        min(rows, _MOST_ROWS),
        min(width, _MOST_WIDTH),
    )  # more takes no more scratch, and these operands are taken, too
    a, b, out = (_outside_the_heap(shape, dtype) for shape in ((rows, width), (width, width), (rows, width)))
    with threadpool_limits(threads):
        np.matmul(a, b, out=out)
    np.einsum("ij,ij->i", b[:8], b[:8])
    np.random.Generator(np.random.Philox(key=0)).standard_normal(8, dtype=np.float32)


def measure_baseline(dtype: DTypeLike = "float32", threads: int = 1, rows: int = 4096, width: int = 1024) -> int:
    """Returns the resident bytes of this process before its first array: interpreter, NumPy, BLAS, and Ray where it is loaded.

    Warms up first (see `warm_up` for the arguments), gives free memory back, and starts the peak of `peak_rss` again.
    Call it after the imports and before the first array; what the process holds by then counts as baseline.
    """
    warm_up(dtype, threads, rows, width)
    gc.collect()
    # Else what was freed so far would be used again, and the first arrays would seem to cost nothing.
    give_back_free_memory()
    reset_peak_rss()
    return _status(None, _PROC).get("VmRSS") or int(psutil.Process().memory_info().rss)


def _outside_the_heap(shape: tuple[int, int], dtype: np.dtype[np.generic]) -> Array:
    """Returns ones in a memory map of their own.

    A large array of the heap, once freed, makes glibc serve later ones of its size from the heap instead of from maps (its
    threshold moves), and the run would be measured under another rule than it has.
    """
    array = np.frombuffer(mmap.mmap(-1, shape[0] * shape[1] * dtype.itemsize), dtype).reshape(shape)
    array.fill(1)
    return array


def _status(pid: int | None, proc: Path, file: str = "status") -> dict[str, int]:
    """Returns the sizes of a file of /proc/PID in bytes; none where there is no such file."""
    sizes = {}
    with contextlib.suppress(OSError):
        for line in (proc / str(pid or os.getpid()) / file).read_text().splitlines():
            name, _, value = line.partition(":")
            words = value.split()
            if len(words) == 2 and words[1] == "kB":
                sizes[name] = int(words[0]) * 1024
    return sizes
