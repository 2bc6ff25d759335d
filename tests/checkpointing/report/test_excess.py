"""A rogue allocation planted in a layer is blamed on that layer, for each kind of layer."""

from __future__ import annotations

from dataclasses import dataclass, replace
from typing import Any

import numpy as np
import pytest

from checkpointing.report import build, text
from checkpointing.report.compare import compare
from checkpointing.report.data import Report
from checkpointing.report.excess import at_peak, excess
from framework import Attention, Chain, Ledger, Linear, MeanSquaredError
from framework.layers import Context, Layer, flatten
from framework.memory import Array
from tests.checkpointing.cases import Case, all_cases, mlp
from tests.checkpointing.report.recorded import recorded_beside, report_of
from tests.framework.every import concrete

ROGUE = 123_457


def attending() -> Case:
    """Attention that sees all tokens."""
    x = np.random.default_rng(0).standard_normal((4, 6, 8)).astype("float32")
    chain = Chain(Linear(24), Attention(2), Linear(8))
    return Case("attending", chain, MeanSquaredError(), x, x)


#: For each kind of layer a case that has it, and the place of a step of this kind there, one with a backward.
PLACES = {
    step.layer.kind: (case, number)
    for case in (attending(), *all_cases()[::-1])
    for costs in (case.plans("store-all").train[0].costs,)
    for number, step in reversed(list(enumerate(flatten(case.chain))))
    if costs.steps[number].trains
}


class Rogue:
    """A layer that allocates more than its footprint says.

    Args:
        layer: The layer.
        rule: In which of its rules, forward or vjp.
        stays: Whether the array is kept, or given up when the rule ends.
    """

    def __init__(self, layer: Layer, rule: str, stays: bool) -> None:
        self._layer, self._rule, self._stays = layer, rule, stays
        self._kept: list[Array] = []

    def __getattr__(self, name: str) -> Any:
        return getattr(self._layer, name)

    def _planted(self, rule: str, context: Context) -> Array | None:
        if rule != self._rule:
            return None
        planted = context.empty((ROGUE,), "uint8", "workspace")
        if self._stays:
            self._kept.append(planted)
        return planted

    def forward(self, params: Any, x: Any, context: Context) -> Any:
        planted = self._planted("forward", context)
        found = self._layer.forward(params, x, context)
        del planted
        return found

    def vjp(self, params: Any, x: Any, y: Any, own: Any, cotangent: Any, grads: Any, context: Context) -> Any:
        planted = self._planted("vjp", context)
        found = self._layer.vjp(params, x, y, own, cotangent, grads, context)
        del planted
        return found


def planted_report(case: Case, place: int, rule: str, stays: bool) -> Report:
    """The report of a step with a rogue layer at a place."""
    plan = case.plans("store-all").train[0]
    ledger = Ledger()
    engine = case.engine(ledger)
    steps = engine._executor.steps
    rogue: Any = Rogue(steps[place].layer, rule, stays)
    engine._executor.steps = (*steps[:place], replace(steps[place], layer=rogue), *steps[place + 1 :])
    ledger.start_recording()
    engine.train_step(plan, case.loader(1), 0, 1e-2)
    rank = build.rank_of(plan, ledger.stop_recording())
    return build.report(case.name, [plan], case.chain.layout(case.specs(1)[0]), ranks=[rank])


def test_a_case_is_known_for_each_kind_of_layer() -> None:
    # Adding is a layer of another kind that shares parameters: see `Shared`.
    assert {kind.__name__ for kind in concrete(Layer)} - set(PLACES) == {"Adding"}


@pytest.mark.parametrize(
    ("rule", "stays"),
    [
        ("forward", True),
        ("vjp", False),
        pytest.param("forward", False, marks=pytest.mark.memory),
        pytest.param("vjp", True, marks=pytest.mark.memory),
    ],
)
@pytest.mark.parametrize("kind", PLACES)
def test_a_rogue_allocation_is_blamed_on_its_layer(kind: str, rule: str, stays: bool) -> None:
    case, place = PLACES[kind]
    path = flatten(case.chain)[place].path
    report = planted_report(case, place, rule, stays)
    (rank,) = report.ranks
    assert rank.measured is not None
    label = f"{'forward' if rule == 'forward' else 'backward'} {path}"
    (found,) = excess(rank.predicted, rank.measured)
    assert (found.category, found.layer, found.nbytes, found.operation) == ("workspace", path, ROGUE, label)
    assert found.stays is stays
    assert f"{path} holds" in report.advice[0]
    assert f"({ROGUE:,} bytes) more of workspace" in report.advice[0]
    assert label in report.advice[0]
    rows = text.text(report).split("what holds more or less than predicted")[1].splitlines()
    assert any(path in row and f"+{ROGUE:,}" in row and ("later" if stays else "its end") in row for row in rows)
    # The largest of all, it is at the peak, whose holders name it, too.
    assert rank.measured.inside[rank.measured.peak] >= rank.predicted.inside[rank.predicted.peak]
    assert ("workspace", path) in [(row.category, row.layer) for row in at_peak(rank.predicted, rank.measured)]


def test_nothing_is_blamed_where_the_plan_is_kept() -> None:
    report = report_of(mlp(), "every-k:2", shards=2)
    assert report.ranks[0].measured is not None
    assert excess(report.ranks[0].predicted, report.ranks[0].measured) == ()
    assert not any("not what was predicted" in sentence for sentence in report.advice)


def test_what_is_held_beside_the_plan_is_no_layers_fault() -> None:
    case = mlp()
    plan = case.plans("store-all").train[0]
    rank = build.rank_of(plan, recorded_beside(case, plan, 1000))
    report = build.report(case.name, [plan], case.chain.layout(case.specs(1)[0]), ranks=[rank])
    assert report.advice[0] == (
        "Measured memory is not what was predicted: beside holds 1000 B more of data than the plan says, first in load 0."
    )


@dataclass(frozen=True)
class Own(Layer):
    """A layer of somebody's own, whose arrays plain NumPy allocates."""

    planted: int = 0

    def apply(self, params: Any, x: Any, context: Context) -> Any:
        scratch = np.ones(self.planted)
        return x * (2 + scratch[:0].size)


def test_a_numpy_array_in_a_layer_of_ones_own_is_blamed_on_it() -> None:
    """What such a layer takes is probed, so it is in prediction and ledger alike: reports before and after tell it."""
    reports = []
    for planted in (0, 50_000):
        chain = Chain(first=Linear(6), own=Own(planted), last=Linear(3))
        x, targets = np.ones((4, 5), "float32"), np.zeros((4, 3), "float32")
        reports.append(report_of(Case("own", chain, MeanSquaredError(), x, targets), "store-all"))
    before, after = reports
    rows = [next(row for row in report.layers if row.path == "own") for report in reports]
    assert rows[1].workspace - rows[0].workspace == pytest.approx(50_000 * 8, abs=8192)
    found = compare(before, after)
    grown = found.at_peak[0]
    assert (grown.category, grown.layer) == ("workspace", "own")
    assert grown.grown == pytest.approx(50_000 * 8, abs=8192)
    assert found.above(0.05)
    for report in reports:
        rank = report.ranks[0]
        assert rank.measured is not None
        assert excess(rank.predicted, rank.measured) == ()
