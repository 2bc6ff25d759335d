"""Two reports compared: what grew, where and by how much, adds up."""

from __future__ import annotations

import json
from dataclasses import replace

import pytest

from checkpointing.report import sums
from checkpointing.report.compare import Change, compare
from checkpointing.report.compare_text import told
from checkpointing.report.data import PolicyRow, Process
from tests.checkpointing.cases import tokens
from tests.checkpointing.report.recorded import report_of


def test_a_report_is_as_itself() -> None:
    report = report_of(tokens(), "every-k:1")
    found = compare(report, report)
    assert [change.grown for change in found.peaks] == [0, 0, 0]
    assert (found.at_peak, found.held, found.missing, found.above(0.0)) == ((), (), (), ())


@pytest.mark.parametrize("policies", [("every-k:1", "store-all"), ("store-all", "recompute-all")])
def test_what_grew_at_the_peak_adds_up_to_the_peaks_difference(policies: tuple[str, str]) -> None:
    before, after = (report_of(tokens(batch=16), policy) for policy in policies)
    found = compare(before, after)
    peak = found.peaks[0]
    sides = [max(report.ranks[0].predicted.inside) for report in (before, after)]
    assert (peak.what, peak.rank, peak.before, peak.after) == ("peak", 0, *sides)
    assert sum(change.grown for change in found.at_peak) == peak.grown != 0
    assert [abs(change.grown) for change in found.at_peak] == sorted(
        (abs(c.grown) for c in found.at_peak), reverse=True
    )
    assert len({(change.category, change.layer) for change in found.held}) == len(found.held) > 0
    json.dumps(found.to_json())


def test_growth_above_a_limit_is_told_of_peaks_alone() -> None:
    report = report_of(tokens(), "store-all")
    row = PolicyRow("every-k:1", None, 1000, 1.0, 1000, 5000, 1.0, 1.0, False)
    process = Process(5000, 1000, 3000, 0, 1000, (5000,), None)
    before, after = (
        replace(
            report,
            policies=(replace(row, ledger_peak=peak, step_seconds=seconds), replace(row, budget=2000, policy="budget")),
            ranks=(replace(report.ranks[0], process=replace(process, rss=rss)),),
        )
        for peak, seconds, rss in ((1000, 1.0, 5000), (1050, 9.0, 9000))
    )
    found = compare(before, after)
    assert found.above(0.05) == ()
    assert [(change.what, change.grown, change.part) for change in found.above(0.0499)] == [
        ("policy every-k:1", 50, 0.05)
    ]
    assert [(change.what, change.before, change.after) for change in found.others] == [
        ("process", 5000, 9000), ("step", 1.0, 9.0), ("step", 1.0, 1.0),
    ]  # fmt: skip
    assert [change.what for change in found.peaks] == ["peak", "policy every-k:1", "policy budget within 2.0 KiB"]


def test_what_only_one_report_has_is_named() -> None:
    one, other = report_of(tokens(), "every-k:1"), report_of(tokens(), "every-k:2")
    other = replace(other, ranks=(*other.ranks, replace(other.ranks[0], rank=1)))
    assert compare(one, other).missing == (
        "policy every-k:1 is in the first alone",
        "rank 1 is in the second alone",
        "policy every-k:2 is in the second alone",
    )


def test_a_change_in_words() -> None:
    assert told(Change("peak", "", "", 2048, 1024)) == ("2.0 KiB", "1.0 KiB", "-1.0 KiB", "-50.0%")
    assert told(Change("peak", "", "", 0, 1024)) == ("0 B", "1.0 KiB", "+1.0 KiB", "new")
    assert told(Change("step", "", "", 0.001, 0.0015)) == ("1 ms", "1.5 ms", "+500 µs", "+50.0%")
    assert told(Change("peak", "", "", 5, 5)) == ("5 B", "5 B", "0 B", "=")


@pytest.mark.parametrize("policy", ["store-all", "every-k:1"])
def test_the_most_that_each_holder_has_in_a_phase_is_what_a_search_finds(policy: str) -> None:
    timeline = report_of(tokens(), policy, shards=4).ranks[0].predicted
    found: dict[tuple[str, str, str], int] = {}
    for phase, now in zip(timeline.phases, sums.held(timeline), strict=True):
        for holder, nbytes in now.items():
            found[*holder, phase] = max(nbytes, found.get((*holder, phase), 0))
    assert sums.most_by_holder(timeline) == found
