"""profile_torch.py: what autograd saves is what the file says, and what Retape's own layers keep."""

from __future__ import annotations

import subprocess
import sys
from pathlib import Path

import pytest

from checkpointing import Costs, costs_of, plan_run
from framework import Chain, CrossEntropy, Flatten, LayerNorm, Linear, ReLU, Spec, Tanh
from tests.scripts.helpers import ROOT, last_json, run

torch = pytest.importorskip("torch")
pytestmark = pytest.mark.peers

MINE = """
import torch
from torch import nn

def build():
    torch.manual_seed(0)
    chain = nn.Sequential(
        nn.Flatten(), nn.Linear(64, 256), nn.ReLU(), nn.LayerNorm(256), nn.Linear(256, 256), nn.Tanh(), nn.Linear(256, 10),
    )
    return chain, torch.randn(32, 8, 8), torch.randint(10, (32,)), nn.functional.cross_entropy

def inplace():
    return nn.Sequential(nn.Linear(4, 4), nn.ReLU(inplace=True)), torch.randn(2, 4), torch.randn(2, 4), nn.functional.mse_loss

def lacking():
    return nn.Sequential(nn.Linear(4, 4)), torch.randn(2, 4)

class Last(nn.Module):
    def forward(self, x):
        return x[:, -1]

def parts():
    chain = nn.Sequential(nn.Conv1d(1, 3, 3), nn.BatchNorm1d(3), nn.MaxPool1d(2), Last(), nn.Linear(7, 4))
    return chain, torch.randn(2, 1, 16), torch.randn(2, 4), nn.functional.mse_loss

def half():
    chain = nn.Sequential(nn.Linear(4, 4), nn.Dropout(0.5), nn.GELU()).to(torch.bfloat16)
    return chain, torch.randn(2, 4, dtype=torch.bfloat16), torch.randn(2, 4, dtype=torch.bfloat16), nn.functional.mse_loss
"""


def profiled(tmp_path: Path, function: str, code: int = 0) -> subprocess.CompletedProcess[str]:
    (tmp_path / "mine.py").write_text(MINE)
    command = [
        sys.executable,
        str(ROOT / "scripts" / "profile_torch.py"),
        f"mine:{function}",
        "costs.json",
        "--runs",
        "2",
        "--force",
    ]
    done = subprocess.run(command, cwd=tmp_path, capture_output=True, text=True, check=False)
    assert done.returncode == code, done.stderr
    return done


def test_the_file_has_the_bytes_of_our_own_layers_and_is_planned(tmp_path: Path) -> None:
    profiled(tmp_path, "build")
    costs = Costs.load(tmp_path / "costs.json")
    assert costs.source.startswith(f"measured: PyTorch {torch.__version__}")
    chain = Chain(Flatten(), Linear(256), ReLU(), LayerNorm(), Linear(256), Tanh(), Linear(10))
    ours = costs_of(chain, CrossEntropy(), Spec.of((32, 8, 8), "float32"), Spec.of((32,), "int64"))
    assert [step.kind for step in costs.steps] == [step.kind for step in ours.steps]
    for theirs, mine in zip(costs.steps, ours.steps, strict=True):
        a, b = theirs.footprint, mine.footprint
        assert (a.output, a.needs_input, a.needs_output, a.own_nbytes) == (
            b.output,
            b.needs_input,
            b.needs_output,
            b.own_nbytes,
        ) or mine.kind == "ReLU"
        assert a.output_aliases_input == b.output_aliases_input
        assert (theirs.trains, theirs.wanted) == (mine.trains, mine.wanted)
        assert min(costs.seconds(costs.steps.index(theirs))) >= 0
    relu = costs.steps[2].footprint
    assert (relu.needs_output, relu.own) == (True, ())
    assert costs.gradient_nbytes == ours.gradient_nbytes
    assert costs.static["parameters/model"] == ours.static["parameters/model"]
    everything = plan_run(costs).train[0]
    data = last_json(
        run("plan", "--costs", "costs.json", "--memory-budget", f"engine:{everything.peak - 1}", "--json", cwd=tmp_path)
    )
    assert data["plan"]["peak"] < everything.peak


def test_a_mask_and_halves(tmp_path: Path) -> None:
    profiled(tmp_path, "half")
    linear, dropout, gelu = (step.footprint for step in Costs.load(tmp_path / "costs.json").steps)
    assert linear.output.nbytes == 2 * 4 * 2
    assert (dropout.needs_input, len(dropout.own)) == ((False,), 1)
    assert (gelu.needs_input, gelu.own) == ((True,), ())


def test_a_view_of_a_part_is_planned(tmp_path: Path) -> None:
    profiled(tmp_path, "parts")
    costs = Costs.load(tmp_path / "costs.json")
    last = costs.steps[3].footprint
    assert (last.output_aliases_input, last.output.nbytes * 3) == (True, costs.output(2).nbytes)
    plan_run(costs).train[0].check()


def test_what_works_in_place_is_refused(tmp_path: Path) -> None:
    assert "'1' (ReLU) works in place" in profiled(tmp_path, "inplace", code=2).stderr
    assert "has no attribute 'nothing'" in profiled(tmp_path, "nothing", code=2).stderr


def test_what_is_no_model_with_batch_targets_and_loss_is_told(tmp_path: Path) -> None:
    told = " ".join(profiled(tmp_path, "lacking", code=2).stderr.split())
    assert "mine:lacking must return a torch.nn.Sequential, a batch, its targets, and a function" in told
    assert told.endswith("but returned Sequential, Tensor")
