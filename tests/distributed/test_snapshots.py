"""Whatever fails, and wherever a program is killed, the newest whole snapshot is found, and never a wrong one."""

from __future__ import annotations

import errno
import itertools
import json
import logging
import os
import resource
import shutil
import signal
import subprocess
import tracemalloc
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from distributed import SnapshotCorrupt, SnapshotFailed
from distributed.snapshot_writer import SnapshotWriter
from distributed.snapshots import (
    LOSSES,
    MANIFEST,
    OPTIMIZER,
    WEIGHTS,
    clean,
    load,
    newest_whole,
    sealed,
    snapshots_in,
    verify,
)
from tests.distributed.saved_runs import hashes, stopped, trainer

CONFIG = {"run": "one", "options": {"learning_rate": 0.1}}
#: What writes of the system a snapshot is made of.
CALLS = ("mkdir", "open", "write", "fsync", "rename")


def state(step: int, size: int = 1000) -> dict[str, dict[str, np.ndarray]]:
    """The state after so many steps of a run that does nothing."""
    return {
        WEIGHTS: {"a": np.full((size // 10, 10), step, np.float32), "b": np.full(7, -step, np.float32)},
        OPTIMIZER: {"mean/a": np.full((size // 10, 10), step / 2, np.float32)},
        LOSSES: {"losses": np.arange(step, dtype=np.float64)},
    }


def write(writer: SnapshotWriter, step: int) -> None:
    writer.write({"step": step, "configuration": CONFIG}, state(step))
    writer.wait()


def require_whole(folder: Path, steps: set[int]) -> int:
    """Loads the newest whole snapshot, which is one of these and has its state, and returns which."""
    found = newest_whole(folder, CONFIG)
    assert found is not None and not found.damaged
    step: int = found.manifest["step"]
    assert step in steps
    loaded = {name: {key: np.empty_like(a) for key, a in arrays.items()} for name, arrays in state(step).items()}
    load(found.path, loaded)
    for name, arrays in state(step).items():
        assert all(loaded[name][key].tobytes() == a.tobytes() for key, a in arrays.items())
    return step


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    """A folder with the snapshot of step 1."""
    path = tmp_path / "snapshots"
    path.mkdir()
    write(SnapshotWriter(path, 2), 1)
    return path


def failing(monkeypatch: pytest.MonkeyPatch, number: int, fail: Callable[[str, Any], Any]) -> Iterator[int]:
    """Lets the call `number` of those that write, counted from 0, fail; gives how many there were so far."""
    count = itertools.count()
    last = [0]

    def replaced(name: str, call: Any) -> Any:
        def counted(*arguments: Any, **options: Any) -> Any:
            last[0] = next(count)
            if last[0] == number:
                fail(name, arguments)
            return call(*arguments, **options)

        return counted

    for name in CALLS:
        monkeypatch.setattr(os, name, replaced(name, getattr(os, name)))
    try:
        while True:
            yield last[0]
    finally:
        monkeypatch.undo()


def test_a_failing_call_at_each_place_in_turn_leaves_the_newest_whole_state(
    folder: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def fail(name: str, arguments: Any) -> None:
        if name == "write":  # a part of it had room
            os.pwrite(arguments[0], memoryview(arguments[1])[: len(arguments[1]) // 2], 0)
        raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))

    places: list[int] = []
    for number in range(200):
        shutil.rmtree(folder / "step-00000002", ignore_errors=True)
        calls = failing(monkeypatch, number, fail)
        next(calls)
        writer, failed = SnapshotWriter(folder, 2), False
        try:
            write(writer, 2)
        except SnapshotFailed as error:
            failed = True
            assert "snapshot step-00000002 could not be written" in str(error)
            assert "No space left on device; make room" in str(error)
        count = next(calls)
        calls.close()  # type: ignore[attr-defined]
        places.append(require_whole(folder, {1, 2}))
        assert {path.name for path in folder.iterdir()} <= {"step-00000001", "step-00000002"}
        if not failed:
            break
        write(writer, 3)  # the writer goes on
        assert require_whole(folder, {3}) == 3
        shutil.rmtree(folder / "step-00000003")
        if not (folder / "step-00000001").exists():
            write(SnapshotWriter(folder, 9), 1)
    assert count < number < 200  # it did not come to the call that should fail
    assert number > 15
    assert places[0] == 1 and places[-1] == 2
    assert places == sorted(places)  # before the rename the old one, from then on the new one


@pytest.mark.filterwarnings("ignore:.*fork.*:DeprecationWarning")
def test_a_program_that_is_killed_at_each_place_in_turn_leaves_the_newest_whole_state(
    folder: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def die(name: str, arguments: Any) -> None:
        if name == "write":
            os.pwrite(arguments[0], memoryview(arguments[1])[: len(arguments[1]) // 2], 0)
        os.kill(os.getpid(), signal.SIGKILL)

    places: list[int] = []
    for number in range(200):
        shutil.rmtree(folder / "step-00000002", ignore_errors=True)
        if (child := os.fork()) == 0:  # a child is a program that can be killed
            calls = failing(monkeypatch, number, die)
            next(calls)
            write(SnapshotWriter(folder, 2), 2)
            os._exit(0)
        code = os.waitstatus_to_exitcode(os.waitpid(child, 0)[1])
        assert code in (0, -signal.SIGKILL)
        places.append(require_whole(folder, {1, 2}))
        if code == 0:
            break
        clean(folder)
        assert {path.name for path in folder.iterdir()} <= {"step-00000001", "step-00000002"}
    assert number > 15
    assert places[0] == 1 and places[-1] == 2
    assert places == sorted(places)


def test_only_the_last_snapshots_stay_and_a_removal_that_is_cut_short_is_no_snapshot(
    folder: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    writer = SnapshotWriter(folder, 2)
    for step in (2, 3, 4):
        write(writer, step)
    assert [path.name for path in snapshots_in(folder)] == ["step-00000004", "step-00000003"]
    monkeypatch.setattr(shutil, "rmtree", lambda path, ignore_errors=False: (path / WEIGHTS).unlink(missing_ok=True))
    write(writer, 5)
    assert [path.name for path in snapshots_in(folder)] == ["step-00000005", "step-00000004"]
    monkeypatch.undo()
    clean(folder)
    assert len(list(folder.iterdir())) == 2
    require_whole(folder, {5})


DAMAGES: dict[str, Callable[[Path], Any]] = {
    "cut": lambda path: os.truncate(path, path.stat().st_size - 1),
    "empty": lambda path: os.truncate(path, 0),
    "longer": lambda path: path.write_bytes(path.read_bytes() + b"\0"),
    "flipped": lambda path: _flip(path, path.stat().st_size // 2),
    "last bit": lambda path: _flip(path, path.stat().st_size - 2),
    "missing": lambda path: path.unlink(),
    "folder": lambda path: (path.unlink(), path.mkdir()),
}


def _flip(path: Path, place: int) -> None:
    content = bytearray(path.read_bytes())
    content[place] ^= 1
    path.write_bytes(content)


@pytest.mark.parametrize("damage", DAMAGES)
@pytest.mark.parametrize("name", [WEIGHTS, OPTIMIZER, LOSSES, MANIFEST])
def test_a_damaged_file_is_noticed_named_and_the_snapshot_before_is_taken(folder: Path, name: str, damage: str) -> None:
    write(SnapshotWriter(folder, 2), 2)
    DAMAGES[damage](folder / "step-00000002" / name)
    with pytest.raises(SnapshotCorrupt, match=rf"step-00000002: {name}"):
        verify(folder / "step-00000002")
    arrays = {WEIGHTS: state(1)[WEIGHTS]}
    with pytest.raises(SnapshotCorrupt):
        load(folder / "step-00000002", arrays)
    assert (arrays[WEIGHTS]["a"] == 1).all()
    found = newest_whole(folder, CONFIG)
    assert found is not None and found.manifest["step"] == 1
    assert name in found.damaged[folder / "step-00000002"]
    DAMAGES[damage](folder / "step-00000001" / name)
    with pytest.raises(SnapshotCorrupt, match=r"(?s)no snapshot in .* is whole.*step-00000002.*step-00000001"):
        newest_whole(folder, CONFIG)


def test_each_flipped_bit_of_a_manifest_is_noticed(folder: Path) -> None:
    path = folder / "step-00000001" / MANIFEST
    content = path.read_bytes()
    for place in range(len(content)):
        changed = bytearray(content)
        changed[place] ^= 1 << place % 8
        path.write_bytes(changed)
        try:
            read = verify(folder / "step-00000001")
        except SnapshotCorrupt:
            continue
        # White space for other white space, or a number in another spelling.
        assert read == json.loads(content), place


def test_a_manifest_of_another_version_is_no_damage_but_an_error(folder: Path) -> None:
    path = folder / "step-00000001" / MANIFEST
    manifest = json.loads(path.read_text()) | {"version": 2}
    path.write_text(json.dumps(manifest | {"sha256": sealed(manifest)}))
    with pytest.raises(ValueError, match="of version 2, but this program reads version 1"):
        newest_whole(folder, CONFIG)


def test_a_damaged_newest_snapshot_of_a_run_is_told_and_the_run_ends_with_the_same_bits(
    tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    whole = trainer().fit().summary
    stopped(12, trainer(tmp_path / "run", snapshot_every=5))
    weights = tmp_path / "run" / "snapshots" / "step-00000012" / WEIGHTS
    _flip(weights, 999)
    with caplog.at_level(logging.WARNING):
        result = trainer(resume=tmp_path / "run", snapshot_every=2).fit()
    assert "a snapshot is damaged, and the one before is taken" in caplog.text
    assert str(weights.parent) in caplog.text
    assert (result.summary["resumed_after_step"], hashes(result.summary)) == (10, hashes(whole))
    assert WEIGHTS in result.summary["damaged_snapshots"][0]
    names = {path.name for path in (tmp_path / "run" / "snapshots").iterdir()}
    assert names == {"step-00000012.damaged", "step-00000026", "step-00000028"}


@pytest.mark.parametrize("place", ["write", "fsync"])
def test_a_disk_that_fills_up_ends_the_run_with_its_words_and_the_run_goes_on_from_before(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, place: str
) -> None:
    whole = trainer().fit().summary
    call = getattr(os, place)

    def full(descriptor: int, *arguments: Any) -> Any:
        if "step-00000010" in str(Path(f"/proc/self/fd/{descriptor}").readlink()):
            raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))
        return call(descriptor, *arguments)

    monkeypatch.setattr(os, place, full)
    made = trainer(tmp_path / "run", snapshot_every=5)
    with pytest.raises(SnapshotFailed, match=r"snapshot step-00000010 could not be written: .*No space left on device"):
        made.fit()
    monkeypatch.undo()
    assert [path.name for path in (tmp_path / "run" / "snapshots").iterdir()] == ["step-00000005"]
    summary = trainer(resume=tmp_path / "run").fit().summary
    assert (summary["resumed_after_step"], hashes(summary)) == (5, hashes(whole))


@pytest.fixture
def small_disk(tmp_path: Path) -> Iterator[Path]:
    """A disk of 24 KiB, or where none can be mounted, a limit of 5,000 bytes on files."""
    path = tmp_path / "disk"
    path.mkdir()
    mounted = subprocess.run(
        ["mount", "-t", "tmpfs", "-o", "size=24k", "tmpfs", str(path)], capture_output=True, check=False
    )
    before = resource.getrlimit(resource.RLIMIT_FSIZE)
    handler = signal.getsignal(signal.SIGXFSZ)
    if mounted.returncode:
        signal.signal(signal.SIGXFSZ, signal.SIG_IGN)
        resource.setrlimit(resource.RLIMIT_FSIZE, (5_000, before[1]))
    try:
        yield path
    finally:
        if mounted.returncode:
            resource.setrlimit(resource.RLIMIT_FSIZE, before)
            signal.signal(signal.SIGXFSZ, handler)
        else:
            subprocess.run(["umount", str(path)], check=True)


def test_on_a_disk_that_is_really_full_the_snapshot_before_stays_whole(small_disk: Path) -> None:
    writer = SnapshotWriter(small_disk, 2)
    write(writer, 1)
    with pytest.raises(SnapshotFailed, match=r"could not be written.*make room"):
        writer.write({"step": 2, "configuration": CONFIG}, state(2, 3_000))
    assert [path.name for path in small_disk.iterdir()] == ["step-00000001"]
    require_whole(small_disk, {1})


def test_writing_copies_nothing(tmp_path: Path) -> None:
    writer, large = SnapshotWriter(tmp_path, 2), state(2, 10**6)  # 4 MB twice
    write(writer, 1)
    tracemalloc.start()
    try:
        writer.write({"step": 2, "configuration": CONFIG}, large)
        writer.wait()
        assert tracemalloc.get_traced_memory()[1] < 2**17
    finally:
        tracemalloc.stop()


def test_a_run_is_saved_and_resumed_within_the_least_budget(tmp_path: Path) -> None:
    peak = trainer(policy="recompute-all").plans.peak
    options: dict[str, Any] = {"memory_budget": f"engine:{peak}", "policy": "recompute-all"}
    stopped(9, trainer(tmp_path / "run", snapshot_every=1, **options))
    summary = trainer(resume=tmp_path / "run", **options).fit().summary
    assert summary["ledger_peak_bytes"] == summary["predicted_peak_bytes"] == peak


def test_a_worker_that_does_not_see_the_folder_says_so(tmp_path: Path) -> None:
    with pytest.raises(SnapshotFailed, match=r"does not see the folder .*share"):
        write(SnapshotWriter(tmp_path / "elsewhere", 2), 1)
