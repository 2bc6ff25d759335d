"""The memory limits that other tests run programs in."""

import sys
from pathlib import Path

import pytest

from tests.limits import VARIABLE, data_gap, make_group, memory_limit

MIB = 2**20
TAKE = (
    "import sys; block = bytearray(int(sys.argv[1])); block[::4096] = bytes([1]) * len(block[::4096]); print('alive')"
)


def test_a_program_that_takes_less_lives_and_one_that_takes_more_does_not() -> None:
    with memory_limit(64 * MIB) as limit:
        less = limit.run([sys.executable, "-c", TAKE, str(16 * MIB)])
        more = limit.run([sys.executable, "-c", TAKE, str(96 * MIB)])
    assert (less.returncode, less.stdout) == (0, "alive\n"), less.stderr
    assert more.returncode != 0
    assert not more.stdout
    assert limit.means != "RLIMIT_DATA" or "MemoryError" in more.stderr


def test_the_gap_lets_a_process_reach_its_baseline_and_no_more_than_the_limit() -> None:
    gap, limit = data_gap(), 96 * MIB
    code = (
        "import sys, numpy as np\n"
        "from checkpointing.process_memory import measure_baseline\n"
        "baseline = measure_baseline(rows=256, width=256)\n"
        "np.ones(int(sys.argv[1]) - baseline, np.int8)\n"
        "print('alive')"
    )
    with memory_limit(limit, gap) as limited:
        less = limited.run([sys.executable, "-c", code, str(limit - 4 * MIB)])
        # A group is charged only for pages that no other touched first, so libraries may cost it nothing.
        more = limited.run([sys.executable, "-c", code, str(limit + 64 * MIB)])
    assert less.stdout == "alive\n", less.stderr
    assert more.returncode != 0


@pytest.mark.parametrize(("version", "name"), [("cgroup v2", "memory.max"), ("cgroup v1", "memory.limit_in_bytes")])
def test_a_group_set_aside_gets_the_limit_and_the_process(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, version: str, name: str
) -> None:
    """Plain files stand for those of the kernel."""
    if version == "cgroup v1":
        (tmp_path / name).write_text("9223372036854771712")
    assert make_group(tmp_path / "made", 5 * MIB) == version
    assert (tmp_path / "made" / name).read_text() == str(5 * MIB)

    monkeypatch.setenv(VARIABLE, str(tmp_path))
    with memory_limit(64 * MIB) as limit:
        done = limit.run([sys.executable, "-c", "import os; print(os.getpid())"])
        (group,) = tmp_path.glob("retape-test-*")
        assert (group / "cgroup.procs").read_text() == done.stdout
        for path in group.iterdir():  # the kernel's files go with their folder
            path.unlink()
    assert limit.means == version
    assert not group.exists()
