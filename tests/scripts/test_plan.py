"""plan.py, and train.py with its plans."""

from __future__ import annotations

import json
import re
import tracemalloc
from pathlib import Path
from typing import Any

import pytest
from plotly.offline import get_plotlyjs

from checkpointing import Costs, Plan, costs_of, parse_policy, plan_run
from checkpointing.curve import CurvePoint
from checkpointing.holdings import ALL, COTANGENT, NOTHING, PART, holdings
from checkpointing.operations import PlanError
from checkpointing.planned import Planned
from checkpointing.report.text import plain
from distributed import Trainer
from framework import AdamW, Spec, build, format_size
from framework.layers import flatten
from tests.checkpointing.cases import POLICIES, all_cases, mlp, tokens
from tests.scripts.helpers import ROOT, last_json, run
from tests.scripts.programs import Runner

#: Dtypes change sizes alone.
CASES = {case.name: case for case in all_cases() if case.name.endswith("float32")}


def test_the_report_and_its_json(tmp_path: Path) -> None:
    options = (
        "--model",
        "mlp-deep",
        "--batch",
        "512",
        "--memory-budget",
        "engine:70%",
        "--frontier",
        "--points",
        "5",
        "--json",
    )
    done = run("plan", *options, "--html", "page.html", "--costs-out", "costs.json", "--out", "plan.json", cwd=tmp_path)
    data = last_json(done)
    rows = {row["policy"]: row for row in data["policies"]}
    assert {
        "store-all",
        "every-k:1",
        "every-k:2",
        "every-k:4",
        "sqrt-n",
        "recompute-all",
        "offload",
        "offload:1",
    } <= set(rows)
    assert rows["offload"]["peak_bytes"] <= rows["recompute-all"]["peak_bytes"] < rows["store-all"]["peak_bytes"]
    plan = Plan.load(tmp_path / "plan.json")
    assert plan.costs == Costs.load(tmp_path / "costs.json")
    for name, row in rows.items():
        assert row["seconds"] >= row["bound_seconds"] * (1 - 1e-12)
        assert row["extra_time"] == pytest.approx(row["seconds"] / rows["store-all"]["seconds"] - 1)
        assert row["fits"] == (row["peak_bytes"] <= data["budget_bytes"])
        if row["chosen"]:
            assert name == plan.policy
            assert row["peak_bytes"] == plan.peak == data["plan"]["peak"] <= data["budget_bytes"]
    assert sum(row["chosen"] for row in rows.values()) == 1
    assert len(data["frontier"]) == 5
    assert [point["budget"] for point in data["frontier"]] == sorted(point["budget"] for point in data["frontier"])
    # What the person reads has the same figures.
    assert f"{plan.peak / 2**20:.1f} MiB" in done.stdout
    assert format_size(data["budget_bytes"]) in done.stdout
    assert "the memory-time curve" in done.stdout
    assert data["plan"]["words"]["costs"].split(";")[0] in " ".join(done.stdout.split())
    page = (tmp_path / "page.html").read_text(encoding="utf-8")
    assert page.startswith("<!doctype html>")
    assert page.count(get_plotlyjs()) == 1
    own = page.replace(get_plotlyjs(), "")
    assert own.count("Plotly.newPlot(") == 3
    assert all(outside not in own for outside in ("http:", "https:", "src=", "<link", "@import"))
    assert plan.policy in own


def test_a_plan_that_was_made_before_is_run_and_holds_what_it_says(tmp_path: Path) -> None:
    chosen = ("--model", "mlp-deep", "--batch", "16", "--shards", "2", "--last-batch", "pad")
    run("plan", *chosen, "--policy", "every-k:2", "--out", "plan.json", cwd=tmp_path)
    training = (*chosen, "--workers", "0", "--steps", "2", "--plan", "plan.json", "--json", "--run-dir")
    summary = last_json(run("train", *training, "run", "--verify-memory", cwd=tmp_path))
    plan = Plan.load(tmp_path / "plan.json")
    assert summary["policy"] == "every-k:2"
    assert summary["predicted_peak_bytes"] == summary["ledger_peak_bytes"]
    assert Plan.load(tmp_path / "run" / "plan.json") == plan  # to the last byte that lasts through the step
    assert plan.costs.weights == Spec.of((8,), "float32")
    # A plan of a run is one, too; and its results are those of the policy.
    again = last_json(run("train", *training[:-2], "--run-dir", "again", "--json", "--quiet", cwd=tmp_path))
    assert again["parameters_sha256"] == summary["parameters_sha256"]
    for options, message in (
        (
            ("--model", "mlp-small", *chosen[2:]),
            "plan.json was made for another model, batch or number of shards: its step 0 is '0' (Linear)",
        ),
        (
            (*chosen[:2], "--batch", "32", "--shards", "2"),
            "float32[8, 512], but here it is '0' (Linear) with an output of float32[16, 512]",
        ),
        ((*chosen, "--policy", "sqrt-n"), "leave --policy sqrt-n away"),
        ((*chosen, "--memory-budget", "engine:1MB"), "is too small: the policy every-k:2 needs"),
    ):
        done = run("train", *options, "--workers", "0", "--plan", "plan.json", "--run-dir", "bad", cwd=tmp_path, code=2)
        assert message in " ".join(done.stderr.split())
        assert not (tmp_path / "bad").exists()


@pytest.mark.parametrize("policy", POLICIES)
def test_a_plan_as_a_policy_is_the_plan_for_any_shards_and_ranks(policy: str, tmp_path: Path) -> None:
    for case in CASES.values():
        costs = costs_of(case.chain, case.loss, *case.specs(4), AdamW())
        made = plan_run(costs, policy=parse_policy(policy), shards=4).train[0]
        made.save(tmp_path / "plan.json")
        planned = Planned.load(tmp_path / "plan.json")
        for shards, world in ((4, 1), (8, 3)):
            expected = plan_run(costs, policy=parse_policy(policy), shards=shards, world=world)
            again = plan_run(costs, policy=planned, shards=shards, world=world)
            assert again.train == expected.train
            assert again.policy.name == policy


def test_a_plan_for_other_steps_says_what_differs(tmp_path: Path) -> None:
    case, other = mlp(), mlp(dropout=0.0)
    planned = Planned(case.plans("sqrt-n").train[0])
    for costs, message in (
        (
            costs_of(tokens().chain, tokens().loss, *tokens().specs(1)),
            "its step 0 is '0' (Linear) .* but here it is '0' (Embedding)",
        ),
        (
            costs_of(case.chain, case.loss, *case.specs(2)),
            "output of float32[8, 13], but here it is .* output of float32[4, 13]",
        ),
        (costs_of(other.chain, other.loss, *other.specs(1)), "differ)"),
    ):
        with pytest.raises(PlanError, match=re.escape(message).replace(r"\.\*", ".*")):
            planned.schedule(costs)
    case.plans("sqrt-n").evaluate[0].save(tmp_path / "evaluate.json")
    with pytest.raises(PlanError, match=r"evaluate\.json is a plan of an evaluation"):
        Planned.load(tmp_path / "evaluate.json")
    (tmp_path / "evaluate.json").write_text("[]")
    with pytest.raises(PlanError, match=r"evaluate\.json: a plan is a JSON object"):
        Planned.load(tmp_path / "evaluate.json")


def elsewhere() -> dict[str, Any]:
    x = {"shape": [1024, 1024], "dtype": "float16"}
    step = {"footprint": {"output": x, "needs_input": [True], "forward_workspace": 1000}, "seconds": [0.001, 0.002]}
    return {
        "format": "retape.costs",
        "version": 1,
        "measured": "a GPU",
        "batch": x,
        "targets": x,
        "steps": [{"path": f"block{number}", "kind": "Block", **step} for number in range(16)],
        "loss": {"seconds": [0.0, 0.0]},
    }


def test_what_a_node_takes_is_what_the_workers_of_a_run_take_however_they_hold_weights_and_state(
    tmp_path: Path,
) -> None:
    options = ("--model", "mlp-deep", "--shards", "8", "--workers", "3", "--policy", "sqrt-n", "--share-weights", "yes")
    done = run("plan", *options, "--json", cwd=tmp_path)
    data = last_json(done)
    for row, how in zip(
        data["node"], ({"share_weights": "no"}, {"shard_optimizer": True}, {"share_weights": "yes"}), strict=True
    ):
        trainer = Trainer(build("mlp-deep"), workers=3, policy="sqrt-n", batch=8, shards=8, **how)
        assert row["peak_bytes"] == [plan.peak for plan in trainer.plans.train]
        assert row["bytes"] == sum(row["peak_bytes"])
        for held, plan in zip(row["optimizer_bytes"], trainer.plans.train, strict=True):
            assert held == plan.simulation.timeline[-1].categories["optimizer"]
        for held, plan in zip(row["parameters_bytes"], trainer.plans.train, strict=True):
            assert held == plan.simulation.timeline[-1].categories.get("parameters", 0)
        assert f"{row['bytes'] / 2**20:.1f} MiB" in done.stdout
    replicated, shared_out, shared = data["node"]
    assert [row["chosen"] for row in data["node"]] == [False, False, True]
    assert "the plan is for: weights shared too" in done.stdout
    assert sum(shared_out["optimizer_bytes"]) * 3 == sum(replicated["optimizer_bytes"])
    assert shared_out["optimizer_bytes"] == shared["optimizer_bytes"]
    model = sum(replicated["parameters_bytes"]) // 3
    assert shared["parameters_bytes"] == [model + 4096, model + 4096, 0]
    assert data["plan"]["peak"] == max(shared["peak_bytes"]) < max(replicated["peak_bytes"])
    assert shared["bytes"] < shared_out["bytes"] < replicated["bytes"]


def test_sizes_of_a_column_have_one_unit_in_which_they_can_be_told_apart(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.syspath_prepend(str(ROOT / "scripts"))
    from _plan_drawing import in_one_unit  # type: ignore[import-not-found]

    assert in_one_unit([1022 * 2**20, 2**19]) == ["1022.0 MiB", "0.5 MiB"]
    assert in_one_unit([172_726, 166_400]) == ["168.7 KiB", "162.5 KiB"]
    assert in_one_unit([9 * 2**20, 2**20]) == ["9216.0 KiB", "1024.0 KiB"]
    assert in_one_unit([10 * 2**40, 2**40, 0]) == ["10.0 TiB", "1.0 TiB", "0.0 TiB"]
    assert in_one_unit([5]) == ["0.0 KiB"] and in_one_unit([]) == []


def test_in_a_terminal_a_long_curve_is_thinned_from_its_ends_and_says_so(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.syspath_prepend(str(ROOT / "scripts"))
    import _plan_drawing  # type: ignore[import-not-found]

    curve = [CurvePoint(n * 2**20, n * 2**20, 1.0 / n, 0.5 / n, f"policy-{n}.") for n in range(1, 101)]
    drawn = plain([_plan_drawing.curve_table(curve, 25)], 132)
    shown = [n for n in range(1, 101) if f"policy-{n}." in drawn]
    assert shown == list(range(4, 101, 4))
    assert "25 of 100 points" in drawn
    every = plain([_plan_drawing.curve_table(curve)], 132)
    assert all(f"policy-{n}." in every for n in range(1, 101)) and "points" not in every


def test_a_chain_from_elsewhere_is_planned(tmp_path: Path) -> None:
    (tmp_path / "costs.json").write_text(json.dumps(elsewhere()))
    done = run("plan", "--costs", "costs.json", "--memory-budget", "engine:20MiB", "--json", cwd=tmp_path)
    data = last_json(done)
    assert data["costs"] == "measured: a GPU"
    assert data["plan"]["peak"] <= 20 * 2**20 < data["policies"][0]["peak_bytes"]
    assert data["policies"][0]["seconds"] == pytest.approx(16 * 0.003)
    assert "Block" in done.stdout


@pytest.mark.parametrize(
    ("options", "message"),
    [
        (("--model", "gpt-9"), "unknown model"),
        (("--batch", "6"), "divisible by the shards, but got 6 examples in 4 shards"),
        (("--shards", "3"), "power of two"),
        (("--workers", "8"), "8 workers cannot share 4 virtual shards"),
        (("--policy", "keep"), "unknown policy 'keep'"),
        (("--policy", "selective:Conv9"), "the pattern 'Conv9' names no step of this chain"),
        (("--policy", "sqrt-n", "--plan", "x.json"), "leave --policy sqrt-n away"),
        (("--memory-budget", "engine:1MB"), "is too small: every known plan needs"),
        (("--memory-budget", "8MiB"), "is too small for the whole process"),
        (("--memory-budget", "64MiB", "--workers", "2"), "is measured when it starts; write engine:64MiB"),
        (("--frontier", "--points", "1"), "--points must be at least 2, but got 1"),
        (("--out", "there.json"), "there.json exists; name another file with --out"),
        (("--html", "nowhere/page.html"), "there is no folder nowhere"),
        (("--costs", "there.json"), "there.json is no JSON file"),
        (("--costs", "there.json", "--batch", "4"), "--costs tells all of a chain, so --batch cannot change it"),
        (("--costs", "missing.json"), "missing.json"),
        (("--costs", "there.json", "--shard-optimizer"), "so --shard-optimizer cannot change it"),
        (("--plan", "there.json"), "there.json is no JSON file"),
    ],
)
def test_bad_input_is_a_clear_error(program: Runner, tmp_path: Path, options: tuple[str, ...], message: str) -> None:
    (tmp_path / "there.json").touch()
    done = program("plan", *options)
    assert done.returncode == 2
    assert message in " ".join(done.stderr.split())
    assert "Traceback" not in done.stderr


@pytest.mark.parametrize(("model", "parameters"), [("byte-gpt-medium", 38_353_920), ("byte-gpt-large", 303_884_288)])
def test_large_models_are_planned_without_their_arrays(model: str, parameters: int) -> None:
    tracemalloc.start()
    try:
        built = build(model)
        x = Spec((8, *built.dataset(()).inputs.shape), built.dataset(()).inputs.dtype)
        costs = costs_of(built.chain, built.loss, x, x, AdamW())
        plan = plan_run(costs, policy=parse_policy("every-k:1")).train[0]
        assert plan.peak > 4 * 4 * parameters  # float32 parameters, gradient, and two moments
        assert tracemalloc.get_traced_memory()[1] < plan.peak / 50
    finally:
        tracemalloc.stop()
    assert len(flatten(built.chain)) == len(costs.steps)


@pytest.mark.parametrize("name", CASES)
def test_what_is_drawn_is_what_is_held(name: str) -> None:
    case = CASES[name]
    for policy in POLICIES:
        plan = case.plans(policy, shards=2).train[0]
        found = holdings(plan)
        steps = len(plan.costs.steps)
        assert found.held.shape == (len(found.labels), steps) == (len(found.running), len(found.steps))
        forwards = [runs[0] for runs in found.running if runs and runs[1] == "F"]
        assert sorted(forwards) == list(range(steps))
        backwards = [runs[0] for runs in found.running if runs and runs[1] == "B"]
        assert backwards == [step for step in reversed(range(steps)) if plan.costs.steps[step].trains]
        assert ("R" in {runs[1] for runs in found.running if runs}) == (
            plan.simulation.flops > case.plans("store-all", shards=2).train[0].simulation.flops
        )
        assert (found.held[-1] == NOTHING).all()
        assert set(map(int, found.held.ravel())) <= {NOTHING, COTANGENT, PART, ALL}
        assert max(found.inside) <= plan.peak
        assert all(live <= inside for live, inside in zip(found.live, found.inside, strict=True))
