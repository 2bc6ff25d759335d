"""The limits that other tests put workers in."""

import sys
from pathlib import Path

import pytest

from tests.limits import VARIABLE
from tests.limits_from_outside import LimitEach, Unlimited, run_watched

MIB = 2**20

#: Two processes with a title of their own; each takes memory when it has had time to be limited.
TAKE = """
import sys, time
time.sleep(0.3)
block = bytearray(int(sys.argv[1]))
block[::4096] = bytes([1]) * len(block[::4096])
time.sleep(0.3)
print('alive')
"""
START = """
import subprocess, sys
each = [subprocess.Popen([sys.executable, '-c', sys.argv[1], sys.argv[2], 'retape-child']) for _ in range(2)]
sys.exit(max(process.wait() for process in each))
"""


def start(nbytes: int) -> list[str]:
    return [sys.executable, "-c", START, TAKE, str(nbytes)]


def test_each_process_has_a_limit_of_its_own() -> None:
    unlimited = Unlimited()
    done = run_watched(start(64 * MIB), unlimited, title="retape-child")
    assert done.returncode == 0
    assert len(unlimited.gaps) == 2
    baseline = 16 * MIB  # more than the interpreter takes
    less, more = LimitEach(64 * MIB + baseline, unlimited), LimitEach(48 * MIB, unlimited)
    lives = run_watched(start(64 * MIB), less, title="retape-child")
    dies = run_watched(start(64 * MIB), more, title="retape-child")
    assert (lives.returncode, lives.stdout) == (0, "alive\nalive\n"), lives.stderr
    assert dies.returncode != 0
    assert dies.stdout == ""
    for each in (less, more):
        assert len(each.limited) == 2
        for limit in each.limited.values():
            assert limit.read_back == limit.nbytes >= limit.most
    assert all(limit.most > 64 * MIB for limit in less.limited.values())


@pytest.mark.parametrize(("version", "name"), [("cgroup v2", "memory.max"), ("cgroup v1", "memory.limit_in_bytes")])
@pytest.mark.parametrize("moves", [True, False])
def test_a_group_of_each_process_has_a_limit_lowered_by_what_stays_behind(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, version: str, name: str, moves: bool
) -> None:
    """Plain files stand for those of the kernel."""
    if version == "cgroup v1":
        (tmp_path / name).write_text("9223372036854771712")
    monkeypatch.setenv(VARIABLE, str(tmp_path))
    seen: dict[Path, str] = {}

    def remove(group: Path) -> None:
        seen[group] = (group / "cgroup.procs").read_text()

    def write_text(self: Path, text: str) -> int:
        if self.name == "memory.move_charge_at_immigrate" and not moves:
            raise OSError(22, "Invalid argument")
        if self.name == "cgroup.procs":  # the kernel counts
            usage = "memory.max_usage_in_bytes" if version == "cgroup v1" else "memory.peak"
            (self.parent / usage).write_bytes(b"4096")
        return self.write_bytes(text.encode())

    monkeypatch.setattr("tests.limits_from_outside.remove_group", remove)
    monkeypatch.setattr(Path, "write_text", write_text)
    each = LimitEach(64 * MIB, measured())
    done = run_watched(start(MIB), each, title="retape-child")
    assert done.returncode == 0, done.stderr
    assert len(seen) == 2
    assert {int(pid) for pid in seen.values()} == set(each.limited)
    for group in seen:
        limit = each.limited[int(seen[group])]
        assert (limit.means, limit.most, limit.read_back) == (version, 4096, limit.nbytes)
        assert 32 * MIB < limit.nbytes < 64 * MIB
        assert int((group / name).read_text()) == limit.nbytes


def measured() -> Unlimited:
    unlimited = Unlimited()
    unlimited.gaps, unlimited.shared = {1: 0}, {1: 0}
    return unlimited


def test_what_a_watcher_raises_is_raised_where_the_program_is_waited_for(monkeypatch: pytest.MonkeyPatch) -> None:
    def see(pid: int) -> None:
        raise RuntimeError("no limit to be had")

    unlimited = Unlimited()
    monkeypatch.setattr(unlimited, "see", see)
    with pytest.raises(RuntimeError, match="no limit to be had"):
        run_watched(start(MIB), unlimited, title="retape-child")
