"""Each of scripts/examples runs, says something true, and is short."""

from __future__ import annotations

import re
import runpy
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from checkpointing import Costs, Plan
from tests.docs.pages import ROOT

FOLDER = ROOT / "scripts" / "examples"
EXAMPLES = sorted(path.stem for path in FOLDER.glob("*.py"))


@pytest.fixture
def example(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Callable[[str], Callable[..., None]]:
    """Gives an example's function, to be run in a folder of its own."""
    monkeypatch.chdir(tmp_path)
    return lambda name: runpy.run_path(str(FOLDER / f"{name}.py"))["main"]


def numbers(pattern: str, text: str) -> list[float]:
    match = re.search(pattern, text)
    assert match is not None, text
    return [float(group.replace(",", "")) for group in match.groups()]


@pytest.mark.parametrize("name", EXAMPLES)
def test_examples_are_short_and_listed(name: str) -> None:
    text = (FOLDER / f"{name}.py").read_text()
    assert len(text.splitlines()) <= 80
    assert text.startswith('"""')
    assert f"(../scripts/examples/{name}.py)" in (ROOT / "docs" / "examples.md").read_text()


def test_a_network_learns_the_prices_of_houses(example: Any, capsys: pytest.CaptureFixture[str]) -> None:
    example("mlp_on_csv")(steps=150)
    error, of_mean = numbers(
        r"off by ([\d.]+) \(root mean square\), where the mean of all would be off by ([\d.]+)", capsys.readouterr().out
    )
    assert error < of_mean / 3
    example("mlp_on_csv")(data=Path("houses.csv"), target="area", steps=5)  # the file it wrote, another column


def test_a_network_reads_digits(example: Any, capsys: pytest.CaptureFixture[str]) -> None:
    pytest.importorskip("sklearn")
    example("cnn_on_digits")(steps=40, policy="every-k:1")
    told = capsys.readouterr().out
    right, held = numbers(r"(\d+) of (\d+) held-out digits", told)
    assert right > 0.8 * held
    assert told.count("read as") == min(3, held - right)


@pytest.mark.memory
def test_a_transformer_learns_a_text(example: Any, capsys: pytest.CaptureFixture[str]) -> None:
    Path("mine.txt").write_text("Pack my box with five dozen liquor jugs. " * 1000)
    example("gpt_on_text")(text=(Path("mine.txt"),), steps=40, prompt="Pack")
    told = capsys.readouterr().out
    assert numbers(r"validation: ([\d.]+)", told)[0] < 2
    assert "\nPack" in told


def test_a_layer_of_one_s_own_has_the_same_derivatives_by_hand(
    example: Any, capsys: pytest.CaptureFixture[str]
) -> None:
    example("own_layer")(steps=10)
    told = capsys.readouterr().out
    assert numbers(r"differ by (\S+)", told)[0] < 1e-12
    peaks = re.findall(r"peak ([\d,]+) bytes, predicted ([\d,]+)", told)
    assert len(peaks) == 2
    assert all(counted == predicted for counted, predicted in peaks)


def test_a_stored_chain_of_pytorch_s_is_planned(example: Any, capsys: pytest.CaptureFixture[str]) -> None:
    stored = FOLDER / "pytorch_mlp.json"
    example("plan_pytorch_chain")(costs=stored, out=Path("plan.json"))
    extra = [float(found) for found in re.findall(r"ms +([\d.]+)%", capsys.readouterr().out)]
    assert extra[0] == 0
    assert extra == sorted(extra)
    assert len(extra) > 2
    plan = Plan.load(Path("plan.json"))
    plan.check()
    assert len(plan.costs.steps) == len(Costs.load(stored).steps) == 25


@pytest.mark.peers
def test_a_chain_is_profiled_in_pytorch_and_planned(example: Any, capsys: pytest.CaptureFixture[str]) -> None:
    pytest.importorskip("torch")
    example("plan_pytorch_chain")()
    told = capsys.readouterr().out
    assert "25 layers" in told
    assert "PyTorch" in told
    assert "100 %" in told


def test_the_notebook_runs(capsys: pytest.CaptureFixture[str]) -> None:
    names = runpy.run_path(str(FOLDER / "notebook.py"))
    told = capsys.readouterr().out
    counted, predicted = numbers(r"peak ([\d,]+) bytes, predicted ([\d,]+)", told)
    assert counted == predicted
    assert "<table>" in names["summary"](names["chain"], (8, 32))._repr_html_()
    assert names["report"].ranks[0].measured.inside == names["report"].ranks[0].predicted.inside
    assert "<table>" in names["report"]._repr_html_()
    assert str(names["report"]) in told
