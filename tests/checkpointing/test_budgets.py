"""Budgets as people write them, and what they leave to the engine."""

from pathlib import Path

import pytest
from hypothesis import given
from hypothesis import strategies as st

from checkpointing import InfeasibleBudget, parse_budget
from checkpointing.budgets import EngineBudget, ProcessBudget, ProcessUse, require_engine_budget
from tests.checkpointing.cases import images, tokens
from tests.checkpointing.containers import limited

MIB, GIB = 2**20, 2**30


def test_budgets_are_of_the_engine_in_bytes_or_as_a_part_of_store_alls_activations() -> None:
    plans = tokens().plans("store-all")
    assert parse_budget("engine:64MiB").resolve(plans) == 64 * MIB
    lasting = plans.peak - plans.store_all_activation_nbytes
    assert parse_budget("engine:50%").resolve(plans) == lasting + plans.store_all_activation_nbytes // 2
    assert parse_budget("engine:100%").resolve(plans) == plans.peak


def test_a_bare_size_and_auto_are_of_the_whole_process() -> None:
    assert parse_budget("512MiB") == ProcessBudget("512MiB", 512 * MIB)
    assert parse_budget(" 1.5GB ") == ProcessBudget("1.5GB", 1_500_000_000)
    assert parse_budget("536870912") == ProcessBudget("536870912", 512 * MIB)
    assert parse_budget("auto") == ProcessBudget("auto", None)


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("engine:", "is no size"),
        ("engine:64XiB", "is no size"),
        ("engine:0%", "no percentage"),
        ("engine:101%", "no percentage"),
        ("engine:x%", "no percentage"),
        ("engine:0B", "at least one byte"),
        ("engine:60", "did you mean engine:60%"),
        ("engine:auto", "auto is for the whole process; write auto"),
        ("process:64MiB", "unknown budget scope"),
        ("60%", "write engine:60%"),
        ("512", "512 bytes holds no process.* did you mean 512MiB?"),
        ("512kB", "512,000 bytes holds no process"),
        ("12 apples", "is no size"),
        ("-5GiB", "is no size"),
        ("Auto", "is no size"),
        ("", "is no size"),
    ],
)
def test_a_wrong_budget_is_a_clear_error(text: str, message: str) -> None:
    with pytest.raises(ValueError, match=message):
        parse_budget(text)


def test_the_engine_gets_what_the_process_leaves() -> None:
    plans = tokens().plans("store-all")
    use = ProcessUse(baseline=100 * MIB, outside=10 * MIB, reserve=10 * MIB, heap_percent=0)
    assert parse_budget("512MiB").resolve(plans, use) == 392 * MIB
    use = ProcessUse(baseline=100 * MIB, outside=10 * MIB, reserve=10 * MIB, heap_percent=4)
    assert parse_budget("512MiB").resolve(plans, use) == 392 * MIB * 100 // 104
    assert parse_budget("engine:64MiB").resolve(plans, use) == 64 * MIB  # whatever the process takes


sizes = st.integers(0, 2**45)


@given(sizes, sizes, st.integers(0, 30), sizes, st.integers(-(2**40), 2**45))
def test_both_ways_between_engine_and_process_agree(
    baseline: int, outside: int, percent: int, engine: int, process: int
) -> None:
    use = ProcessUse(baseline, outside, heap_percent=percent)
    needed = use.with_engine(engine)
    assert use.left_to_engine(needed) == engine
    assert use.left_to_engine(needed - 1) < engine  # so it is the least
    # The engine and its share of the heap's gaps never pass what is there.
    left = use.left_to_engine(process)
    assert use.fixed * 100 + left * (100 + percent) <= process * 100


def test_where_nothing_is_left_the_error_names_the_baseline_and_a_budget_that_is_enough() -> None:
    plans = tokens().plans("store-all")
    use = ProcessUse(baseline=100 * MIB, outside=3 * MIB)
    with pytest.raises(
        InfeasibleBudget, match=r"too small for the whole process: 100\.0 MiB .* before the first"
    ) as caught:
        parse_budget("64MiB").resolve(plans, use)
    assert "3.0 MiB lie outside the engine" in str(caught.value)
    assert f"{caught.value.smallest:,} bytes" in str(caught.value)
    enough = ProcessBudget("", caught.value.smallest).resolve(plans, use)
    assert enough == plans.peak


def test_a_plan_that_does_not_fit_is_told_in_bytes_of_the_process() -> None:
    case, use = tokens(), ProcessUse(baseline=100 * MIB)
    budget = ProcessBudget("107MiB", use.with_engine(1000))
    limit = budget.resolve(case.plans("store-all"), use)
    assert limit == 1000
    with pytest.raises(InfeasibleBudget) as caught:
        case.plans(budget=limit)
    told = budget.explain(caught.value, use)
    assert "1000 B are left for the engine, which needs" in str(told)
    assert str(told.smallest) in str(told)
    fitting = ProcessBudget("", told.smallest).resolve(case.plans("store-all"), use)
    assert case.plans(budget=fitting).peak == fitting


def test_a_plan_that_does_not_fit_the_process_says_what_a_disk_would_do() -> None:
    case, use = images(), ProcessUse(baseline=100 * MIB)
    with pytest.raises(InfeasibleBudget) as caught:
        case.plans(budget=1000)
    told = ProcessBudget("107MiB", use.with_engine(1000)).explain(caught.value, use)
    needed = caught.value.with_disk
    assert needed is not None
    assert f"with values on disk the engine needs {needed:,} bytes" in str(told)
    assert "--offload-dir" in str(told)
    assert case.plans(budget=needed, offload=True).peak == needed


def test_auto_gets_its_size_on_the_node_and_keeps_its_reason(tmp_path: Path) -> None:
    auto = ProcessBudget("auto", None).on_this_node(2, held=100 * MIB, root=limited(tmp_path, GIB))
    assert auto.nbytes == (GIB + 100 * MIB - 128 * MIB) // 2
    assert "container leaves 1.0 GiB" in auto.reason
    plans, use = tokens().plans("store-all"), ProcessUse(baseline=GIB)
    with pytest.raises(InfeasibleBudget, match="container leaves"):
        auto.resolve(plans, use)


def test_a_size_that_the_machine_cannot_give_is_refused() -> None:
    with pytest.raises(ValueError, match=r"2 x 1024\.0 TiB is more than the .*or auto"):
        parse_budget("1024TiB").on_this_node(2)
    assert parse_budget("16MiB").on_this_node(2) == ProcessBudget("16MiB", 16 * MIB)
    assert parse_budget("engine:1024TiB").on_this_node() == EngineBudget("engine:1024TiB", nbytes=2**50)


@pytest.mark.parametrize(("text", "instead"), [("64MiB", "engine:64MiB"), ("auto", "engine:64MiB")])
def test_who_knows_nothing_of_its_process_refuses_budgets_of_it(text: str, instead: str) -> None:
    for refuse in (
        lambda: require_engine_budget(parse_budget(text)),
        lambda: parse_budget(text).resolve(tokens().plans("store-all")),
    ):
        with pytest.raises(ValueError, match=f"whole process.* write {instead} "):
            refuse()
    assert require_engine_budget(parse_budget("engine:64MiB")).nbytes == 64 * MIB
