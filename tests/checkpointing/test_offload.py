"""Values on disk: budgets that nothing else meets, the same bits, and every way in which a disk can fail."""

from __future__ import annotations

import errno
import gc
import json
import os
import re
import resource
import subprocess
import sys
import tempfile
import threading
from collections.abc import Callable, Iterator
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from checkpointing import InfeasibleBudget, OffloadError, Plan, PlanError, value_and_grad
from checkpointing.offload import OffloadFile, default_folder, lies_in_memory, measure_disk
from checkpointing.offload_schedule import offloading
from checkpointing.operations import Backward, Drop, Fetch, Forward, Load, Offload, Operation, Value, Wait
from checkpointing.policies import Offload as OffloadPolicy
from checkpointing.policies import StoreAll, offloading_candidates
from checkpointing.witness import Witness
from distributed import Trainer
from framework import Chain, Key, Ledger, Linear, MeanSquaredError, Parameters, ReLU, build
from framework.memory import Array
from tests.checkpointing.cases import Case, images, recurrent, tokens


@pytest.fixture(autouse=True)
def no_thread_is_left() -> Iterator[None]:
    yield
    gc.collect()
    assert not [thread for thread in threading.enumerate() if thread.name == "offload"]


def small() -> Case:
    return tokens("float64", dropout=0.2)


def step_of(case: Case, folder: Path, policy: str = "offload") -> tuple[Any, Callable[[], Any]]:
    """An engine, and a training step of it."""
    plan = case.plans(policy, shards=2).train[0]
    engine = case.engine(folder=folder)
    return engine, lambda: engine.train_step(plan, case.loader(2), 0, 1e-2)


# Budgets


def test_a_budget_that_recomputation_cannot_meet_is_met_with_values_on_disk_and_the_same_bits(tmp_path: Path) -> None:
    case = images()
    with pytest.raises(InfeasibleBudget, match=r"with values on disk ([\d,]+) bytes .* --offload-dir") as caught:
        case.plans(budget=50_000)
    least = min(
        case.plans(policy.name).peak for policy in offloading_candidates(case.plans("store-all").train[0].costs)
    )
    assert f"engine:{least}" in str(caught.value)
    assert least < caught.value.smallest
    plans = case.plans(budget=least, offload=True)
    assert plans.policy.name.startswith("offload")
    results = set()
    for block in (False, True):
        ledger = Ledger(limit=least)
        engine = case.engine(ledger, block=block, folder=tmp_path)
        outcomes = [engine.train_step(plans.train[0], case.loader(1), step, 1e-2) for step in range(3)]
        assert ledger.peak == least == plans.peak
        results.add((engine.parameters.sha256(), *(outcome.loss for outcome in outcomes)))
        engine.close()
    everything = case.engine()
    outcomes = [everything.train_step(case.plans("store-all").train[0], case.loader(1), s, 1e-2) for s in range(3)]
    assert results == {(everything.parameters.sha256(), *(outcome.loss for outcome in outcomes))}
    assert list(tmp_path.iterdir()) == []


@pytest.mark.parametrize("policy", ["offload", "offload:1"])
@pytest.mark.parametrize("block", [False, True], ids=["heap", "block"])
def test_prediction_ledger_and_numpy_agree_at_every_boundary(policy: str, block: bool, tmp_path: Path) -> None:
    case = small()
    plan = case.plans(policy).train[0]
    witness = Witness(ledger := Ledger())
    try:
        engine = case.engine(ledger, block=block, folder=tmp_path)
        engine.train_step(plan, case.loader(1), 0, 1e-2, witness)
    finally:
        witness.close()
        engine.close()
    assert witness.found.faults == []
    assert witness.found.largest_difference == 0
    assert witness.found.points == len(plan.operations)
    assert plan.simulation.disk_nbytes > 0


def test_a_gradient_of_one_s_own_loop_keeps_to_such_a_budget(tmp_path: Path) -> None:
    case = images()
    parameters = Parameters.initialize(case.chain.layout(case.specs(1)[0]), Key(1))
    wanted = value_and_grad(case.chain, case.loss)(parameters, case.x, case.targets, Key(2))
    plain = value_and_grad(case.chain, case.loss, budget="engine:1kB")
    with pytest.raises(InfeasibleBudget, match="with values on disk") as caught:
        plain(parameters, case.x, case.targets, Key(2))
    budget = f"engine:{caught.value.smallest - 1}"
    run = value_and_grad(case.chain, case.loss, budget=budget, offload_dir=tmp_path)
    loss, gradient = run(parameters, case.x, case.targets, Key(2))
    assert run.plan.policy.startswith("offload")
    assert run.ledger.peak <= caught.value.smallest - 1
    assert (loss, gradient.flat.tobytes()) == (wanted[0], wanted[1].flat.tobytes())


# Schedules


def test_without_a_number_nothing_is_computed_twice_and_all_but_the_last_stage_goes_to_disk() -> None:
    case = small()
    plan, everything = case.plans("offload").train[0], case.plans("store-all").train[0]
    for kind in (Forward, Backward):
        told = [[o for o in each.operations if isinstance(o, kind)] for each in (plan, everything)]
        assert told[0] == told[1]
    moved = {o.value for o in plan.operations if isinstance(o, Offload)}
    last = plan.costs.steps_of(plan.costs.stages - 1, plan.costs.stages - 1).start
    read_by_last = {Value("a", source) for source in plan.costs.steps[last].inputs}
    lived = {
        o.value for o in everything.operations[: everything.operations.index(Backward(last))] if isinstance(o, Drop)
    }
    for step, cost in enumerate(plan.costs.steps[:last]):
        if cost.footprint.own_nbytes and cost.trains:
            assert Value("r", step) in moved
    assert not moved & (lived | read_by_last)


def test_the_number_says_of_which_stages_the_inputs_go_to_disk() -> None:
    chain, x = Chain(*[Linear(8) for _ in range(6)]), np.zeros((4, 8), np.float32)
    case = Case("six", chain, MeanSquaredError(), x, x)
    plan = case.plans("offload:2").train[0]
    # Segments are stages 0-1, 2-3, 4-5: the second's input goes; the batch is a batch, and the last segment's is needed at once.
    assert [str(o.value) for o in plan.operations if isinstance(o, Offload)] == ["a[1]"]


@pytest.mark.parametrize("make", [small, images, recurrent])
def test_writing_behind_and_reading_ahead_raises_no_peak_and_waits_less(
    make: Callable[[], Case], monkeypatch: pytest.MonkeyPatch
) -> None:
    costs = make().plans("store-all").train[0].costs
    found = []
    for patience in (0.0, 1.5):
        monkeypatch.setattr("checkpointing.offload_schedule._PATIENCE", patience)
        plan = make().plans("offload").train[0]
        found.append(plan.simulation)
    at_once, patient = found
    assert patient.peak == at_once.peak
    assert patient.stall < at_once.stall
    assert patient.disk_nbytes == at_once.disk_nbytes
    assert offloading(StoreAll().schedule(costs), costs, 0)  # nothing to move is no error


def test_waits_take_what_the_disk_is_behind() -> None:
    case = small()
    plan = case.plans("offload").train[0]
    s = plan.simulation
    slow = replace(plan, costs=replace(plan.costs, disk_bandwidth=1000)).simulation
    fast = replace(plan, costs=replace(plan.costs, disk_bandwidth=10**15)).simulation
    computing = s.seconds - s.stall
    assert fast.stall == pytest.approx(0, abs=1e-9)
    assert slow.seconds - slow.stall == pytest.approx(computing)
    # One transfer after the other: no less than all bytes take but for what overlaps with computing.
    assert s.disk_nbytes / 1000 - computing <= slow.stall <= s.disk_nbytes / 1000


def test_a_plan_on_disk_is_explained() -> None:
    plan = images().plans("offload").train[0]
    told, everything = plan.explain(), images().plans("store-all").train[0].simulation
    assert (told.on_disk, told.stall) == (plan.simulation.file_nbytes, plan.simulation.stall)
    assert told.seconds == plan.simulation.seconds
    assert told.bound == pytest.approx(everything.seconds)  # not what recomputation within so little would take
    assert told.again == ()
    assert "lie on disk meanwhile; a step waits" in str(told)
    assert "more than if nothing ran twice or waited" in str(told)
    assert told.larger is not None and told.larger.seconds < told.seconds
    assert told.smaller is None or told.smaller.seconds >= told.seconds


# Plans


def edited(plan: Plan, change: Callable[[list[Operation]], None]) -> Plan:
    operations = list(plan.operations)
    change(operations)
    return replace(plan, operations=tuple(operations))


@pytest.mark.parametrize(
    ("change", "message"),
    [
        (lambda o: o.insert(1, Offload(Value("t"))), "only outputs and residuals are offloaded, and t is neither"),
        (lambda o: o.insert(1, Offload(Value("a", 5))), r"needs a\[5\], which is not held"),
        (lambda o: o.insert(1, Fetch(Value("a", 0))), r"a\[0\] is not on disk"),
        (lambda o: o.insert(1, Wait(Value("a", 0))), r"a\[0\] is neither being written nor read"),
        (
            lambda o: o.remove(next(x for x in o if isinstance(x, Wait))),
            "while it is being written or read|is on disk already",
        ),
    ],
)
def test_what_a_plan_cannot_move_is_told(change: Callable[[list[Operation]], None], message: str) -> None:
    with pytest.raises(PlanError, match=message):
        edited(small().plans("offload").train[0], change).check()


def test_what_is_still_being_read_cannot_be_used() -> None:
    plan = small().plans("offload").train[0]
    fetched = next(o.value for o in plan.operations if isinstance(o, Fetch))
    place = max(i for i, o in enumerate(plan.operations) if o == Wait(fetched))

    def late(operations: list[Operation]) -> None:
        operations.append(operations.pop(place))

    with pytest.raises(PlanError, match=re.escape(str(fetched)) + ".*, which is still being read; wait for it"):
        edited(plan, late).check()


def test_what_is_being_written_is_not_overwritten() -> None:
    """An operation that would write over its input waits for nobody: it takes memory of its own as long as that is on its way."""
    x = np.ones((64, 8))
    case = Case("in place", Chain(Linear(8), ReLU(), Linear(8)), MeanSquaredError(), x, x)
    plan = case.plans("store-all").train[0]
    made = plan.operations.index(Forward(0))
    assert made + 1 in plan.simulation.in_place
    operations = list(plan.operations)
    operations[made + 1 : made + 1] = [Offload(Value("a", 0))]
    drop = operations.index(Drop(Value("a", 0)))
    operations.insert(drop, Wait(Value("a", 0)))
    moved = replace(plan, operations=tuple(operations))
    assert made + 2 not in moved.simulation.in_place
    assert case.bits_after(moved) == case.bits_after(plan)


# The file


def test_arrays_come_back_in_the_order_in_memory_that_they_had(tmp_path: Path) -> None:
    generator = np.random.default_rng(3)
    base = generator.standard_normal((3, 4, 5)).astype(np.float32)
    arrays = [
        base,
        base.transpose(2, 0, 1),
        np.zeros((0, 3)),
        np.array(1.5),
        base[:, :1].copy(),
        np.array([True, False]),
    ]
    file = OffloadFile(tmp_path, 1 << 16)
    file.wait(file.write("x", "x", arrays, 4096))
    transfer, back = file.read("x", "x", lambda shape, dtype: np.empty(shape, dtype))
    file.wait(transfer)
    for a, b in zip(arrays, back, strict=True):
        assert (a.dtype, a.shape, a.tobytes()) == (b.dtype, b.shape, b.tobytes())
        assert a.size <= 1 or [s for s, n in zip(a.strides, a.shape, strict=True) if n > 1] == [
            s for s, n in zip(b.strides, b.shape, strict=True) if n > 1
        ]
    with pytest.raises(OffloadError, match="the output of x has gaps in memory"):
        file.write("y", "the output of x", [base[:, ::2]], 0)
    file.close()


def test_the_file_has_no_name_on_any_file_system(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    for works in (True, False):
        monkeypatch.setattr(tempfile, "_O_TMPFILE_WORKS", works)
        file = OffloadFile(tmp_path, 8192)
        assert list(tmp_path.iterdir()) == []
        file.close()


def test_an_engine_that_is_forgotten_closes_its_file(tmp_path: Path) -> None:
    engine, step = step_of(small(), tmp_path)
    step()
    descriptor = engine._executor.disk._file.fileno()
    assert os.fstat(descriptor).st_nlink == 0
    del engine, step
    gc.collect()
    with pytest.raises(OSError, match="Bad file descriptor"):
        os.fstat(descriptor)


def test_a_disk_is_measured(tmp_path: Path) -> None:
    assert measure_disk(tmp_path, 2**22) > 2**20
    assert list(tmp_path.iterdir()) == []


def test_memory_is_no_disk(tmp_path: Path) -> None:
    device = tmp_path.stat().st_dev
    row = f"36 35 {os.major(device)}:{os.minor(device)} / /x rw - {{}} none rw"
    for kind, expected in (("tmpfs", True), ("ext4", False)):
        (tmp_path / "mounts").write_text(row.format(kind) + "\n")
        assert lies_in_memory(tmp_path, tmp_path / "mounts") is expected
    assert not lies_in_memory(tmp_path, tmp_path / "none")
    assert default_folder().is_dir()


# What fails


def test_a_folder_that_is_none_or_cannot_be_written_to_is_refused_before_any_work(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    (tmp_path / "file").write_text("")
    for folder, message in ((tmp_path / "none", "does not exist"), (tmp_path / "file", "is no folder")):
        with pytest.raises(OffloadError, match=f"{message}; name another folder with --offload-dir"):
            Trainer(build("mlp-small"), policy="offload", offload_dir=folder)
    monkeypatch.setattr(os, "access", lambda *_: False)  # who tests may be root, who may all
    with pytest.raises(OffloadError, match="may not be written to; name another folder"):
        Trainer(build("mlp-small"), policy="offload", offload_dir=tmp_path)
    monkeypatch.undo()
    monkeypatch.setattr(tempfile, "TemporaryFile", _fails(errno.EROFS))
    engine, step = step_of(small(), tmp_path)
    before = engine.parameters.sha256()
    with pytest.raises(OffloadError, match=r"no file .* can be made in .*: Read-only file system"):
        step()
    assert engine.parameters.sha256() == before


def _fails(number: int) -> Callable[..., Any]:
    def fail(*_: Any, **__: Any) -> Any:
        raise OSError(number, os.strerror(number))

    return fail


def test_a_full_disk_is_seen_before_the_step(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(os, "posix_fallocate", _fails(errno.ENOSPC))
    engine, step = step_of(small(), tmp_path)
    with pytest.raises(OffloadError, match=r"no room of .*: No space left on device; .* are free there; free some"):
        step()
    assert engine.ledger.by_category().keys() == {"parameters", "optimizer"}
    assert list(tmp_path.iterdir()) == []


@pytest.mark.parametrize("block", [False, True], ids=["heap", "block"])
def test_a_disk_that_fills_while_it_is_written_ends_the_step_with_words_and_nothing_held(
    block: bool, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    case = small()
    plan, engine = case.plans("offload", shards=2).train[0], case.engine(block=block, folder=tmp_path)
    before, live, count = engine.parameters.sha256(), engine.ledger.live, 0
    write = os.pwrite

    def fills(*arguments: Any) -> int:
        nonlocal count
        count += 1
        return write(*arguments) if count < 4 else _fails(errno.ENOSPC)()

    with monkeypatch.context() as patch:
        patch.setattr(os, "posix_fallocate", _fails(errno.EOPNOTSUPP))
        patch.setattr(os, "pwrite", fills)
        with pytest.raises(
            OffloadError, match=r"could not be written: No space left on device; .* are free there"
        ) as caught:
            engine.train_step(plan, case.loader(2), 0, 1e-2)
    assert f"in {tmp_path}" in str(caught.value)
    assert "wait" in caught.value.__notes__[0]
    assert engine.ledger.live == live
    assert engine.parameters.sha256() == before
    assert list(tmp_path.iterdir()) == []
    engine.train_step(plan, case.loader(2), 0, 1e-2)  # there is room again
    assert engine.parameters.sha256() != before
    engine.close()


def test_a_limit_of_file_sizes_is_a_full_disk(tmp_path: Path) -> None:
    limits = resource.getrlimit(resource.RLIMIT_FSIZE)
    _, step = step_of(small(), tmp_path)
    resource.setrlimit(resource.RLIMIT_FSIZE, (4096, limits[1]))
    try:
        with pytest.raises(OffloadError, match=r"no room of .*: File too large; .* raise the limit"):
            step()
    finally:
        resource.setrlimit(resource.RLIMIT_FSIZE, limits)


def _spoiled(how: str) -> Callable[..., Any]:
    """Reads of a file that somebody has spoiled before the first."""
    read, spoiled = OffloadFile.read, False

    def spoil(self: OffloadFile, key: Any, what: str, empty: Callable[..., Array]) -> Any:
        nonlocal spoiled
        start = self._kept[key][0][0].start
        if spoiled:
            pass
        elif how == "truncated":
            os.ftruncate(self._file.fileno(), start + 8)
        else:
            byte = os.pread(self._file.fileno(), 1, start)
            os.pwrite(self._file.fileno(), bytes([byte[0] ^ 1]), start)
        spoiled = True
        return read(self, key, what, empty)

    return spoil


@pytest.mark.parametrize("block", [False, True], ids=["heap", "block"])
@pytest.mark.parametrize(
    ("how", "message"),
    [
        (
            "truncated",
            r"could not be read: the file is truncated: of the .* of .*, .* bytes from .* on, 8 are there; check the disk",
        ),
        ("altered", r"could not be read: the .* was altered in the file: its checksum is another .*; check the disk"),
    ],
)
def test_a_file_that_somebody_changed_is_refused(
    how: str, message: str, block: bool, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    case = small()
    plan, engine = case.plans("offload", shards=2).train[0], case.engine(block=block, folder=tmp_path)
    before, live = engine.parameters.sha256(), engine.ledger.live
    with monkeypatch.context() as patch:
        patch.setattr(OffloadFile, "read", _spoiled(how))
        with pytest.raises(OffloadError, match=message):
            engine.train_step(plan, case.loader(2), 0, 1e-2)
    assert engine.ledger.live == live
    assert engine.parameters.sha256() == before
    engine.train_step(plan, case.loader(2), 0, 1e-2)
    reference = case.engine()
    reference.train_step(case.plans("store-all", shards=2).train[0], case.loader(2), 0, 1e-2)
    assert engine.parameters.sha256() == reference.parameters.sha256()
    engine.close()


def test_an_interrupt_while_values_are_on_their_way_leaves_nothing(tmp_path: Path) -> None:
    case = small()
    plan, engine = case.plans("offload", shards=2).train[0], case.engine(folder=tmp_path)
    live = engine.ledger.live

    def interrupted(shard: int, x: Array, targets: Array) -> None:
        if shard:
            raise KeyboardInterrupt
        case.loader(2)(shard, x, targets)

    first = next(i for i, o in enumerate(plan.operations) if isinstance(o, Offload))
    early = edited(plan, lambda operations: operations.insert(first + 1, Load(1)))
    for each, load in ((plan, interrupted), (early, case.loader(2))):
        with pytest.raises((KeyboardInterrupt, PlanError)):
            engine.train_step(each, load, 0, 1e-2)
        assert engine.ledger.live == live
    engine.close()
    assert list(tmp_path.iterdir()) == []


# Runs


def test_a_run_within_a_budget_of_disk_alone_has_the_bits_of_store_all(tmp_path: Path) -> None:
    options = {"batch": 8, "shards": 2, "steps": 2, "validation_examples": 8}
    model = build("byte-gpt-tiny", dropout=0.1)
    everything = Trainer(model, **options).fit().summary
    with pytest.raises(InfeasibleBudget, match="with values on disk") as caught:
        Trainer(model, memory_budget="engine:1MiB", **options)
    budget = f"engine:{caught.value.smallest - 1}"
    trainer = Trainer(model, memory_budget=budget, offload_dir=tmp_path, **options)
    summary = trainer.fit().summary
    assert summary["policy"].startswith("offload")
    assert summary["ledger_peak_bytes"] == summary["predicted_peak_bytes"] < caught.value.smallest
    assert summary["offload_file_bytes"] > 0
    for name in ("parameters_sha256", "losses_sha256", "validation_loss"):
        assert summary[name] == everything[name]
    assert list(tmp_path.iterdir()) == []


def test_a_program_that_is_ended_leaves_no_file(tmp_path: Path) -> None:
    command = [
        sys.executable,
        "scripts/train.py",
        "--workers",
        "0",
        "--steps",
        "2000",
        "--policy",
        "offload",
        "--debug",
    ]
    command += ["--offload-dir", str(tmp_path), "--run-dir", str(tmp_path / "run")]
    with subprocess.Popen(command, stdout=subprocess.PIPE, stderr=subprocess.STDOUT, text=True) as process:
        assert process.stdout is not None
        lines = []
        for line in process.stdout:
            lines.append(line)
            if line.startswith("step 1/"):
                break
        assert [path.name for path in tmp_path.iterdir()] == ["run"], lines
        process.terminate()
        lines += process.stdout.readlines()
    assert process.returncode == 75, "".join(lines)  # it can be resumed
    assert [path.name for path in tmp_path.iterdir()] == ["run"]
    rows = [json.loads(row) for row in (tmp_path / "run" / "metrics.jsonl").read_text().splitlines()]
    assert rows[0]["step"] == 0


def test_policies_that_hold_values_on_disk_say_how_they_are_spelled() -> None:
    assert [OffloadPolicy().name, OffloadPolicy(3).name] == ["offload", "offload:3"]
