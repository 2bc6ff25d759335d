"""Run folders: one run has one, also where several begin at the same time."""

from __future__ import annotations

import json
import subprocess
import sys
import threading
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any

import pytest

from distributed import RunFolder

ROOT = Path(__file__).parents[2]


def opened_together(folders: list[RunFolder]) -> list[FileExistsError | None]:
    """Opens folders in threads at the same time; the error of each."""
    barrier = threading.Barrier(len(folders))

    def work(folder: RunFolder) -> FileExistsError | None:
        barrier.wait()
        try:
            folder.open()
        except FileExistsError as error:
            return error
        return None

    with ThreadPoolExecutor(len(folders)) as pool:
        return list(pool.map(work, folders))


def test_runs_of_one_moment_get_folders_of_their_own(tmp_path: Path) -> None:
    for _ in range(20):
        folders = [RunFolder.new("a:b/c", tmp_path) for _ in range(8)]
        assert opened_together(folders) == [None] * 8
        assert len({folder.path for folder in folders}) == 8
        for folder in folders:
            assert folder.path.parent == tmp_path and folder.path.name.endswith("-a-b-c")
            folder.write("config.json", {})
            folder.close()
    assert len(list(tmp_path.iterdir())) == 160


def test_a_folder_whose_run_was_killed_while_it_wrote_its_first_file_is_overwritten_with_force(tmp_path: Path) -> None:
    (tmp_path / "run").mkdir()
    (tmp_path / "run" / "config.json.part").write_text("{")
    RunFolder(tmp_path / "run", force=True).open()
    (tmp_path / "run" / "mine.txt").touch()
    with pytest.raises(FileExistsError, match="is no run folder"):
        RunFolder(tmp_path / "run", force=True)


def test_a_run_that_is_overwritten_leaves_no_snapshot_behind(tmp_path: Path) -> None:
    path = tmp_path / "run"
    (path / "snapshots" / "step-00000050").mkdir(parents=True)
    for name in ("config.json", "resumes.jsonl"):
        (path / name).write_text("{}")
    folder = RunFolder(path, force=True)
    folder.open()
    folder.close()
    assert list(path.iterdir()) == []


def test_of_two_runs_that_are_told_one_folder_one_gets_it(tmp_path: Path) -> None:
    for number in range(20):
        folders = [RunFolder(tmp_path / str(number)) for _ in range(4)]
        errors = opened_together(folders)
        assert errors.count(None) == 1
        assert all("exists; name another" in str(error) for error in errors if error)


def test_a_folder_is_not_overwritten_while_its_run_goes_on(tmp_path: Path) -> None:
    first, second = RunFolder(tmp_path / "run"), RunFolder(tmp_path / "run", force=True)
    first.open()
    first.write("config.json", {"mine": 1})
    with pytest.raises(FileExistsError, match=r"another run is writing to .*run; wait"):
        second.open()
    assert json.loads((tmp_path / "run" / "config.json").read_text()) == {"mine": 1}
    first.close()
    second.open()
    assert list((tmp_path / "run").iterdir()) == []
    second.close()


@pytest.mark.parametrize("workers", [0, pytest.param(2, marks=pytest.mark.memory)])
def test_two_programs_at_the_same_time_do_not_disturb_each_other(tmp_path: Path, workers: int) -> None:
    options = [
        "--model",
        "mlp-small",
        "--steps",
        "30",
        "--workers",
        str(workers),
        "--policy",
        "offload",
        "--offload-dir",
        ".",
    ]
    command = [sys.executable, str(ROOT / "scripts" / "train.py"), *options, "--quiet", "--json"]
    runs = [subprocess.Popen(command, cwd=tmp_path, stdout=subprocess.PIPE, text=True) for _ in range(2)]
    outputs = [run.communicate(timeout=300)[0] for run in runs]
    assert [run.returncode for run in runs] == [0, 0]
    summaries: list[dict[str, Any]] = [json.loads(output.splitlines()[-1]) for output in outputs]
    assert len({(summary["parameters_sha256"], summary["losses_sha256"]) for summary in summaries}) == 1
    folders = list((tmp_path / "runs").iterdir())
    assert len(folders) == 2
    for folder in folders:
        assert len((folder / "metrics.jsonl").read_text().splitlines()) == 30
        assert (folder / "weights.safetensors").is_file()
    assert sorted(path.name for path in tmp_path.iterdir()) == ["runs"]  # the files of offloaded values have no name


def test_the_metrics_of_ranks_are_cut_back_and_go_on(tmp_path: Path) -> None:
    folder = RunFolder(tmp_path / "run")
    folder.open()
    folder.write("config.json", {})
    path = tmp_path / "run" / "rank-metrics.jsonl"
    for step in range(5):
        folder.add_rank_metrics(step, [{"live_bytes": step}, {"live_bytes": 2 * step}])
    assert json.loads(path.read_text().splitlines()[3]) == {"step": 3, "ranks": [{"live_bytes": 3}, {"live_bytes": 6}]}
    folder.close()
    path.write_text(path.read_text().rstrip() + '\n{"step": 5, "ra')  # killed while it wrote
    again = RunFolder.of_stopped(tmp_path / "run")
    again.open()
    again.cut_metrics([0.5, 0.4, 0.3])
    again.add_rank_metrics(3, [{"live_bytes": 7}])
    again.close()
    rows = [json.loads(line) for line in path.read_text().splitlines()]
    assert [row["step"] for row in rows] == [0, 1, 2, 3] and rows[2]["ranks"][1] == {"live_bytes": 4}
    assert rows[3]["ranks"] == [{"live_bytes": 7}]
    RunFolder(tmp_path / "run", force=True).open()
    assert not path.exists()
