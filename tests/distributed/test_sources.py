"""Which files are the code of a run, what goes to nodes without it, and that a difference is found."""

from __future__ import annotations

import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path

import pytest

from distributed import cluster, sources
from distributed.sources import MOST_NBYTES, collect, different, own_modules


@pytest.fixture
def own(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[Path]:
    """A folder on Python's path with a module and a package of a person's own, and much that is no code."""
    (tmp_path / "mine_alone.py").write_text("WIDTH = 3\n")
    package = tmp_path / "mine_package"
    for name in (
        ".git",
        ".venv",
        "runs/first",
        "build",
        "docs",
        "__pycache__",
        ".pytest_cache",
        "x.egg-info",
        "layers",
    ):
        (package / name).mkdir(parents=True)
        (package / name / "inside.py").write_text("")
    (package / "__init__.py").write_text("from mine_package.layers import inside\n")
    (package / "words.json").write_text("[]")
    (package / "table.npy").write_bytes(bytes(MOST_NBYTES + 1))
    (package / ".gitignore").write_text("*.py\n")
    monkeypatch.syspath_prepend(str(tmp_path))
    yield tmp_path
    for name in [name for name in sys.modules if name.startswith("mine_")]:
        del sys.modules[name]


def test_own_modules_are_those_of_no_package_that_is_installed(own: Path) -> None:
    before = own_modules()
    assert not {"numpy", "json", "pytest", "framework", "distributed", "__main__"} & {*before}
    __import__("mine_alone")
    __import__("mine_package")
    assert {*own_modules()} == {*before, "mine_alone", "mine_package"}


def test_code_is_copied_without_what_is_none_and_runs_elsewhere(
    own: Path, tmp_path_factory: pytest.TempPathFactory
) -> None:
    folder = tmp_path_factory.mktemp("node")
    size = collect(folder, ("mine_alone", "mine_package", "not_there"))
    files = {str(path.relative_to(folder)) for path in folder.rglob("*") if path.is_file()}
    assert {name for name in files if name.startswith("mine")} == {
        "mine_alone.py", "mine_package/__init__.py", "mine_package/words.json", "mine_package/layers/inside.py",
    }  # fmt: skip
    assert {"framework/py.typed", "checkpointing/report/page/report.css", "distributed/trainer.py"} <= files
    assert size == sum((folder / name).stat().st_size for name in files) < 5 * MOST_NBYTES
    program = "import distributed, mine_package, mine_alone; print(distributed.__file__, mine_alone.__file__)"
    done = subprocess.run(
        [sys.executable, "-c", program], cwd=folder, env={"PYTHONPATH": ""}, capture_output=True, text=True, check=True
    )
    assert done.stdout.split() == [str(folder / "distributed" / "__init__.py"), str(folder / "mine_alone.py")]
    there = {name: digest for name, digest in sources.sources(("mine_alone",)).items() if "mine" in name}
    assert [*there] == ["mine_alone.py"]


def test_a_file_that_was_changed_is_found(own: Path) -> None:
    names = ("mine_alone", "mine_package")
    before = sources.sources(names)
    (own / "mine_alone.py").write_text("WIDTH = 4\n")
    (own / "mine_package" / "more.py").write_text("")
    assert different(before, sources.sources(names)) == ["mine_alone.py", "mine_package/more.py"]
    assert different(before, before) == []


def test_more_than_code_is_refused(
    own: Path, tmp_path_factory: pytest.TempPathFactory, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(sources, "_MOST_ALL_NBYTES", 1000)
    with pytest.raises(ValueError, match=r"more than 1000 B.* keep your own modules in a folder of their own"):
        collect(tmp_path_factory.mktemp("node"))


def test_code_is_shipped_to_a_cluster_that_was_named_unless_a_job_brings_it(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.delenv("RAY_JOB_CONFIG_JSON_ENV_VAR", raising=False)
    with cluster._shipped(None, ()) as environment:
        assert environment is None
    monkeypatch.setenv("RAY_JOB_CONFIG_JSON_ENV_VAR", '{"runtime_env": {"working_dir": "gcs://x.zip"}}')
    with cluster._shipped("auto", ()) as environment:
        assert environment is None
    monkeypatch.setenv("RAY_JOB_CONFIG_JSON_ENV_VAR", '{"runtime_env": {"env_vars": {}}}')
    with cluster._shipped("auto", ()) as environment:
        assert environment is not None
        folder = Path(environment["working_dir"])
        assert (folder / "framework" / "__init__.py").is_file()
    assert not folder.exists()
