"""differentiate.py as a person runs it."""

from __future__ import annotations

from pathlib import Path

import pytest
from plotly.offline import get_plotlyjs

from tests.scripts.helpers import last_json, run

NAMES = ["example", "sizes", "crossover", "elementwise", "network", "cost", "depth", "gradient", "custom", "hessian"]


def test_all_sections_are_computed_and_told(tmp_path: Path) -> None:
    done = run("differentiate", "--quick", "--repetitions", "1", "--json", "--html", "page.html", cwd=tmp_path)
    data = last_json(done)
    assert {name: data[name] for name in ("seed", "quick", "repetitions", "threads")} == {
        "seed": 0,
        "quick": True,
        "repetitions": 1,
        "threads": 1,
    }
    assert list(data["sections"]) == NAMES
    assert "trace" not in data
    network = data["sections"]["network"]
    assert network["loss"] == pytest.approx(network["engine_loss"], abs=1e-12)
    assert network["largest_difference"] <= 1e-12
    assert all(g["norm"] > 0 for g in network["gradients"])
    for number, title in ((1, "The products of a small Jacobian"), (11, "JVP and VJP side by side")):
        assert f"{number}. {title}" in done.stdout
    assert "268,435,456" in done.stdout
    # What Python's objects take differs by some bytes between depths, up or down: no growth.
    grown = round(data["sections"]["depth"]["reverse_bytes_per_layer"])
    told = " ".join(done.stdout.split())
    assert f"Each further layer adds nothing to forward mode's peak and {grown:,} bytes to reverse mode's" in told

    text = (tmp_path / "page.html").read_text(encoding="utf-8")
    assert text.count(get_plotlyjs()) == 1
    own = text.replace(get_plotlyjs(), "")
    for name in ("sizes", "crossover", "cost", "depth"):
        assert f'id="{name}"' in own
    assert own.count("Plotly.newPlot(") == 4
    assert all(outside not in own for outside in ("http:", "https:", "src=", "<link", "@import"))
    assert "prefers-color-scheme: dark" in own


def test_some_sections_with_the_trace(tmp_path: Path) -> None:
    done = run("differentiate", "--only", "custom", "example", "--trace", "--json", cwd=tmp_path)
    data = last_json(done)
    assert list(data["sections"]) == ["example", "custom"]
    assert data["trace"][0]["inputs"] == ["x", "0"]
    assert data["trace"][-1]["tangent"] == pytest.approx(data["sections"]["example"]["jvp"]["result"], abs=1e-12)
    for step in data["trace"]:
        assert any(step["output"] in line and step["name"] in line for line in done.stdout.splitlines())
    assert "2. Rules of one's own" in done.stdout


def test_a_page_is_overwritten_only_by_force(tmp_path: Path) -> None:
    (tmp_path / "page.html").write_text("mine")
    options = ("--only", "custom", "--html", "page.html")
    assert "--force" in run("differentiate", *options, cwd=tmp_path, code=2).stderr
    assert (tmp_path / "page.html").read_text() == "mine"
    assert run("differentiate", *options, "--force", "--quiet", cwd=tmp_path).stdout == ""
    assert "Σ my_square(x)" in (tmp_path / "page.html").read_text(encoding="utf-8")


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (("--only", "jacobians"), "invalid choice 'jacobians'"),
        (("--repetitions", "0"), "repetitions and threads must be positive"),
        (("--only", "depth", "--trace"), "add example to --only"),
        (("--html", "."), "is a folder"),
        (("--html", "nowhere/page.html"), "there is no folder nowhere"),
    ],
)
def test_bad_input_is_a_clear_error(tmp_path: Path, arguments: tuple[str, ...], message: str) -> None:
    done = run("differentiate", *arguments, cwd=tmp_path, code=2)
    assert message in " ".join(done.stderr.replace("│", "").split())
    assert "Traceback" not in done.stderr
    assert done.stdout == ""
