"""The suite `policies` of scripts/benchmark.py: what is counted and compared, on a small model, and a run of our side."""

from __future__ import annotations

from collections.abc import Iterator
from itertools import pairwise
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from checkpointing import Bounds, Costs, EveryK, Plan, StoreAll, costs_of, parse_policy, plan_run
from checkpointing.simulation import backward_needs
from framework import AdamW, CrossEntropy, Model, Spec
from framework.layers import GELU, Chain, Linear, ReLU
from tests.scripts.helpers import last_json, run


def costs_of_blocks(count: int) -> Costs:
    """Blocks of Linear and ReLU whose every output takes 4 x 8 x 4 = 128 bytes, as the batch does."""
    chain = Chain(**{f"block{number}": Chain(Linear(8), ReLU()) for number in range(count)})
    return costs_of(chain, CrossEntropy(), Spec.of((4, 8), np.float32), Spec.of((4,), np.int64), AdamW())


@pytest.fixture
def small(modules: Any) -> Any:
    """A case of six blocks, whose activations are more than its parameters."""
    chain = Chain(**{f"block{number}": Chain(Linear(16), GELU()) for number in range(6)})
    cases = modules("engine_cases")
    model = Model("small", Chain(**chain.layers, head=Linear(4)), CrossEntropy(), cases.no_data)
    return cases.Case("small", "small", lambda: model, 256, Spec.of((16,), np.float32), Spec.of((), np.int64), 4)


def modelled_costs(case: Any) -> Costs:
    model = case.model()
    specs = [Spec((case.batch, *spec.shape), spec.dtype) for spec in (case.inputs, case.targets)]
    return costs_of(model.chain, model.loss, *specs, AdamW())


def test_store_all_saves_the_batch_and_what_each_activation_makes(modules: Any) -> None:
    # Linear's output is overwritten by ReLU's, which its own VJP and the next Linear's read.
    costs = costs_of_blocks(4)
    (plan,) = plan_run(costs, policy=StoreAll()).train
    assert modules("policies_plans").saved_nbytes(plan) == 5 * 128 + costs.loss.own_nbytes


def test_segments_save_their_input_and_what_is_computed_again(modules: Any) -> None:
    # At the loss: the batch, the input of the second segment, and the outputs of its blocks. Later: the batch and the first two blocks' outputs.
    costs = costs_of_blocks(4)
    (plan,) = plan_run(costs, policy=EveryK(2)).train
    assert modules("policies_plans").saved_nbytes(plan) == 4 * 128 + costs.loss.own_nbytes
    # With eight blocks and segments of six: the batch and six outputs at the first backward of a segment that was computed again.
    (plan,) = plan_run(costs_of_blocks(8), policy=EveryK(6)).train
    assert modules("policies_plans").saved_nbytes(plan) == 7 * 128


@pytest.mark.parametrize("name", ["store-all", "recompute-all", "every-k:1", "sqrt-n", "revolve:2", "selective:Linear"])
def test_what_is_saved_lies_between_one_backward_s_needs_and_all_that_is_held(
    modules: Any, small: Any, name: str
) -> None:
    costs = modelled_costs(small)
    (plan,) = plan_run(costs, policy=parse_policy(name)).train
    saved = modules("policies_plans").saved_nbytes(plan)
    held = max(moment.inside for moment in plan.simulation.timeline) - plan.simulation.static - costs.gradient_nbytes
    assert saved <= held
    for step in range(len(costs.steps)):
        values = backward_needs(costs, step)
        needs = [costs.output(v.at).nbytes if v.kind == "a" else costs.steps[v.at].footprint.own_nbytes for v in values]
        assert saved >= max(needs, default=0)


def test_known_plans_are_those_that_budgets_get(modules: Any, small: Any) -> None:
    costs = modelled_costs(small)
    known = modules("policies_plans").known_plans(costs)
    assert known[0].plan.policy == "store-all"
    for faster, plan in pairwise(known):
        assert plan.plan.peak < faster.plan.peak
        assert plan.seconds >= faster.seconds
    for each in known[1::5]:
        assert plan_run(costs, budget=each.plan.peak).train == (each.plan,)
    fastest = modules("policies_plans").fastest_within
    assert fastest(known, known[0].saved) == known[0]
    assert fastest(known, min(each.saved for each in known) - 1) is None


def test_plans_of_several_shards_or_with_a_disk_are_not_counted(modules: Any, small: Any) -> None:
    costs, saved = modelled_costs(small), modules("policies_plans").saved_nbytes
    for options in ({"shards": 2}, {"policy": parse_policy("offload")}):
        with pytest.raises(ValueError, match="a plan of one shard without a disk is expected"):
            saved(plan_run(costs, **options).train[0])


class _Sides:
    """Stands in for the processes: what they return is known beforehand. PyTorch's configurations save tenths of what ours saves."""

    #: Of each: kind, segments, tenths of the bytes, children computed again, seconds of three steps.
    PEERS = (
        ("store-all", 1, 10, 0, [2.0, 2.5, 4.0]),
        ("per-block", 1, 5, 3, [3.0, 3.25, 3.5]),
        ("sequential", 2, 8, 2, [2.4, 3.5, 3.6]),
        ("sequential", 3, 7, 3, [9.0, 9.0, 9.0]),
        ("sequential", 4, 5, 4, [3.1, 3.0, 3.2]),
        ("sequential", 5, 5, 5, []),  # more is computed again for as many bytes
    )
    #: Our steps take so many times what is planned, but for store-all.
    LONGER = 1.25

    def __init__(self, full: int) -> None:
        self.full = full
        self.plans: list[Plan] = []

    def __call__(self, function: Any, *arguments: Any) -> Any:
        return getattr(self, function.__name__)(*arguments)

    def pytorch_bytes_here(self, case: str) -> Any:
        names = ("kind", "segments", "nbytes", "again")
        rows = [(kind, count, self.full * tenths // 10, again) for kind, count, tenths, again, _ in self.PEERS]
        return [{**dict(zip(names, row, strict=True)), "name": f"{row[0]} {row[1]}"} for row in rows]

    def pytorch_here(self, case: str, some: Any, steps: int) -> Any:
        seconds = {(kind, count): seconds for kind, count, *_, seconds in self.PEERS}
        found = [seconds[each["kind"], each["segments"]] for each in some]
        beside = [self.PEERS[0][-1]] * len(found)
        return {"seconds": found, "beside": beside, "cpu_seconds": found, "loss": 5.5}

    def ours_here(self, case: str, files: list[str], steps: int, folder: str | None) -> Any:
        self.plans = [Plan.load(Path(file)) for file in files]
        planned = [plan.simulation.seconds * (self.LONGER if number else 1) for number, plan in enumerate(self.plans)]
        found = [[seconds, 0.5 * seconds, 9 * seconds] for seconds in planned]
        others = {"cpu_seconds": found, "pass_seconds": found}
        return {"seconds": found, "beside": [found[0]] * len(found), **others, "loss": 5.5}


@pytest.fixture
def sides(modules: Any, small: Any, monkeypatch: pytest.MonkeyPatch) -> Iterator[_Sides]:
    policies, plans = modules("policies"), modules("policies_plans")
    found = _Sides(plans.known_plans(modelled_costs(small))[0].saved)
    for name, value in {
        "in_fresh_process": found,
        "measured_costs": modelled_costs,
        "chosen": lambda only: [small],
        "installed": lambda package: True,
        "COMPARED": ("small",),
        "DISK": "small",
    }.items():
        monkeypatch.setattr(policies, name, value)
    yield found


def test_each_tenth_is_held_against_the_fastest_peer_that_fits(modules: Any, sides: _Sides, small: Any) -> None:
    told: list[tuple[int, int]] = []
    records: list[dict[str, Any]] = []
    rows = list(
        modules("policies").rows(3, 1, None, lambda done, total, words: told.append((done, total)), records.append)
    )
    assert told == [(0, 3), (1, 3), (2, 3)]
    tenths = {row.name.split(",")[1].split("(")[0].strip(): [] for row in rows if " % (" in row.name}
    for row in rows:
        if " % (" in row.name:
            tenths[row.name.split(",")[1].split("(")[0].strip()].append(row)
    for percent, (step, shortest, above) in tenths.items():
        number = int(percent.removesuffix(" %")) // 10
        fits = [(name, count, s) for name, count, part, _, s in sides.PEERS if part <= number and s]
        if number < 5:
            assert step.peer is shortest.peer is None
            assert step.peer_name == "PyTorch: none fits"
        elif number == 10:
            assert (step.peer, shortest.peer) == (1.0, 1.0)
            assert step.ours_name == "store-all"
            assert (step.ours, shortest.ours, above.ours) == (1.0, 1.0, 0.0)
        else:
            first = sides.PEERS[0][-1]
            assert step.peer == min(sorted(a / b for a, b in zip(s, first, strict=True))[1] for *_, s in fits)
            assert shortest.peer == min(min(s) for *_, s in fits) / min(first)
    ours = [step.ours for step, _, _ in tenths.values()]
    assert ours == sorted(ours, reverse=True)
    assert records[0]["name"] == "store-all"
    assert {each["side"] for each in records} == {"ours", "pytorch"}
    assert not any(each["name"] == "sequential 5" for each in records)


def test_gaps_to_bounds_and_to_plans_are_told(modules: Any, sides: _Sides, small: Any) -> None:
    rows = list(modules("policies").rows(3, 1, None, lambda *progress: None, lambda row: None))
    (off,) = (row for row in rows if "off the planned" in row.name)
    assert off.ours == pytest.approx(sides.LONGER - 1)
    costs = modelled_costs(small)
    (largest,) = (row for row in rows if "largest" in row.name)
    above = [row for row in rows if "above the lower bound" in row.name and row is not largest]
    assert above
    assert all(row.ours <= largest.ours for row in above if row.peer is not None)
    assert above[-2].ours >= 0 == above[-1].ours
    by_bound = {
        plan.simulation.seconds / Bounds(costs).seconds(plan.peak) - 1
        for plan in sides.plans
        if plan.policy == "budget"
    }
    assert all(any(row.ours == pytest.approx(gap, abs=1e-9) for gap in by_bound) for row in above if row.ours)


def test_the_price_of_a_disk_is_a_figure(modules: Any, sides: _Sides) -> None:
    rows = list(modules("policies").rows(3, 1, None, lambda *progress: None, lambda row: None))
    disk = [row for row in rows if "on disk" in row.name]
    assert len({row.name for row in rows}) == len(rows)
    assert [row.peer_name for row in disk[::3]] == ["store-all", "the least without a disk", "recompute-all"]
    assert {row.unit for row in disk} == {"s", "bytes"}
    (plan,) = (plan for plan in sides.plans if plan.simulation.file_nbytes)
    assert disk[2].ours == plan.simulation.activation_nbytes < disk[2].peer
    planned = [each.simulation.seconds * sides.LONGER for each in (plan, sides.plans[-1])]
    assert [disk[6].ours, disk[6].peer] == planned
    assert sides.plans[-1].policy == disk[6].peer_name


def test_sides_that_do_not_compute_the_same_are_not_compared(
    modules: Any, sides: _Sides, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(sides, "pytorch_here", lambda *a: {**_Sides.pytorch_here(sides, *a), "loss": float("nan")})
    with pytest.raises(RuntimeError, match="small: the sides do not compute the same"):
        list(modules("policies").rows(3, 1, None, lambda *progress: None, lambda row: None))


def test_each_step_is_held_against_the_store_all_step_before_it(modules: Any, monkeypatch: pytest.MonkeyPatch) -> None:
    sides = modules("policies_sides")
    monkeypatch.setattr(sides, "LEAST_SECONDS", 0.0)
    ran: list[int] = []

    def step_of(which: int) -> Any:
        return lambda number: ran.append(which) or float(number)

    found = sides._in_turn([step_of(which) for which in range(5)], 2)
    assert ran == [0] + [0, 1, 2, 3, 0, 4] * 3  # one more to begin with, a turn that is not timed, and two that are
    assert found["loss"] == 0.0
    base = found["seconds"][0]
    assert found["beside"] == [base, base[::2], base[::2], base[::2], base[1::2]]
    assert [len(seconds) for seconds in found["seconds"]] == [4, 2, 2, 2, 2]


def test_our_side_is_measured_without_pytorch(tmp_path: Path, without_torch: None) -> None:
    done = run("benchmark", "policies", "--only", "mlp-deep", "--steps", "1", "--rounds", "1", "--json", cwd=tmp_path)
    data = last_json(done)
    assert data["versions"]["torch"] is None
    assert ["largest" in row["name"] for row in data["rows"]] == [True, False]
    each = data["configurations"]
    assert {one["side"] for one in each} == {"ours"}
    assert len(each) > 3
    assert all(one["pass_seconds_median"] < one["seconds_median"] for one in each)
    assert all(one["saved_bytes"] <= each[0]["saved_bytes"] for one in each)
    assert each[0]["runs"] > each[1]["runs"] >= 1


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (("policies", "--only", "mlp"), "the suite policies has no model 'mlp'; it has byte-gpt-small, mlp-50"),
        (("memory", "--only", "mlp"), "--only is for the suites engine, policies, scaling, but the suite is memory"),
    ],
)
def test_bad_input_is_a_clear_error(tmp_path: Path, arguments: tuple[str, ...], message: str) -> None:
    done = run("benchmark", *arguments, cwd=tmp_path, code=2)
    assert message in " ".join(done.stderr.split())
