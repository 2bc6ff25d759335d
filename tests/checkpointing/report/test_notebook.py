"""A report as a notebook shows it: the numbers of its data, no script, and names that are no markup."""

from __future__ import annotations

from dataclasses import replace

from tests.checkpointing.cases import mlp
from tests.checkpointing.report.recorded import report_of


def test_it_has_the_words_and_the_numbers_of_the_report() -> None:
    report = report_of(mlp(), "every-k:1", shards=2)
    html = report._repr_html_()
    (rank,) = report.ranks
    assert rank.measured is not None
    peak = rank.measured.inside[rank.measured.peak]
    assert html.count(f">{peak:,}<") == 2  # predicted and measured
    for row in report.layers:
        assert f">{row.path}<" in html and f">{row.flops:,}<" in html and f">{row.kept}<" in html
    assert "every-k:1 (chosen)" in html
    assert "<script" not in html and "Failed" not in html


def test_names_are_no_markup_and_a_failure_is_told() -> None:
    report = report_of(mlp(), "store-all")
    layer = replace(report.layers[0], path="<script>alert('ä')</script>")
    changed = replace(report, title="a <b>", failure="it's <gone>", advice=("1 < 2",), layers=(layer,))
    html = changed._repr_html_()
    assert "<script" not in html and "<b>" not in html and "<gone>" not in html
    for words in ("a &lt;b&gt;", "it&#x27;s &lt;gone&gt;", "1 &lt; 2", "alert(&#x27;ä&#x27;)"):
        assert words in html
    assert "measured peak" in replace(report, ranks=(replace(report.ranks[0], measured=None),))._repr_html_()
