"""The optimizer's state shared out over ranks: the bits, bytes and snapshots of replicated state. Ranks are threads of this process."""

from __future__ import annotations

import hashlib
import os
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from safetensors.numpy import load_file

from checkpointing import InfeasibleBudget, costs_of, parse_policy
from checkpointing.choices import Setting, choices
from distributed import RunFolder, SnapshotFailed, Trainer
from distributed.collectives.communicator import Communicator, slices_of
from distributed.collectives.spread import Spread
from distributed.collectives.transport import InProcess, Network
from distributed.sharded_state import (
    CHUNK,
    ShardedState,
    StateCarrier,
    across_nbytes,
    communication_nbytes,
    update_costs,
)
from distributed.snapshots import OPTIMIZER, read_manifest, snapshots_in
from framework import SGD, AdamW, BatchNorm, Chain, CrossEntropy, Dropout, Ledger, Linear, Optimizer, ReLU, Spec, build
from framework.data import clusters
from framework.losses import Loss
from framework.parameters import Constant, Layout, ParameterSpec
from framework.tensor_files import read_tensors, write_tensors
from tests.checkpointing.cases import all_cases
from tests.distributed.collectives.worlds import in_parallel
from tests.distributed.saved_runs import hashes, stopped
from tests.distributed.thread_group import threads

__all__ = ["threads"]  # the fixture

OPTIMIZERS: dict[str, Optimizer] = {
    "AdamW": AdamW(),
    "momentum": SGD(0.9, weight_decay=0.1, nesterov=True),
    "plain": SGD(),
}
#: 10,314 parameters, and so three blocks: with four ranks the third has a part of one, and the fourth has none.
RUN: dict[str, Any] = {"batch": 16, "shards": 8, "steps": 12, "clip_norm": 0.5, "seed": 3, "validation_examples": 16}


def trainer(folder: Path | None = None, optimizer: Optimizer | None = None, **options: Any) -> Trainer:
    chain = Chain(Linear(128), BatchNorm(), ReLU(), Dropout(0.1), Linear(64), ReLU(), Linear(10))
    run_folder = RunFolder(folder) if folder is not None else None
    given = {"validation_examples": 16, "report": False, **(options if "resume" in options else {**RUN, **options})}
    return Trainer(chain, CrossEntropy(), optimizer, clusters(160, 8, 10), run_folder=run_folder, **given)


def layout_of_sizes(sizes: list[int], dtype: str) -> Layout:
    return Layout(
        {f"p{n}.weight": ParameterSpec((size,), np.dtype(dtype), Constant(0)) for n, size in enumerate(sizes)}
    )


#: On one node, and on several.
spreads = st.lists(st.integers(0, 3), min_size=1, max_size=8).map(
    lambda nodes: Spread.of([max(0, n - 1) for n in nodes])
)


@given(
    spread=spreads,
    sizes=st.lists(st.sampled_from([1, 7, 4095, 4096, 4097, 30_000]), min_size=1, max_size=4),
    dtype=st.sampled_from(["float32", "float64"]),
    name=st.sampled_from(sorted(OPTIMIZERS)),
)
def test_what_ranks_hold_together_is_written_hashed_and_read_as_if_one_held_it(
    tmp_path_factory: pytest.TempPathFactory, spread: Spread, sizes: list[int], dtype: str, name: str
) -> None:
    folder, optimizer, layout = tmp_path_factory.mktemp("state"), OPTIMIZERS[name], layout_of_sizes(sizes, dtype)
    whole = np.arange(optimizer.slots * layout.size, dtype=dtype).reshape(optimizer.slots, layout.size)
    world = len(spread.node_of)
    parts = slices_of(layout.size, world)

    def work(rank: Communicator) -> tuple[Any, str, bool]:
        shared = ShardedState(rank, layout, Ledger(), spread)
        state = whole[:, shared.part].copy()
        tensors = shared.tensors(optimizer, state)
        written = None
        if rank.rank:
            shared.pass_on(tensors)
        else:
            descriptor = os.open(folder / "state", os.O_CREAT | os.O_WRONLY)
            written = write_tensors(descriptor, tensors)
            os.close(descriptor)
        rank.barrier()  # state of no rows passes no rank, which would read the file before it is there
        found = shared.sha256(state)
        state.fill(-1)
        read_tensors(folder / "state", tensors, "file")
        parameters = np.full(layout.size, rank.rank, dtype)
        shared.gather(parameters)
        gathered = all((parameters[part] == owner).all() for owner, part in enumerate(parts))
        return written, found, gathered and state.tobytes() == whole[:, shared.part].tobytes()

    inboxes: list[Any] = []
    ranks = [StateCarrier(rank, spread, 30.0, Network(), Ledger()) for rank in range(world)]
    for leader in spread.leaders:
        inboxes.append(getattr(ranks[leader].communicator, "inbox", None))
    try:
        for rank in ranks:
            rank.connect([other.communicator.address for other in ranks], InProcess(inboxes))
        (written, *_), *_ = results = in_parallel([rank.communicator for rank in ranks], work)
        # The kernel's word for the shared memory that was touched.
        touched = [os.fstat(rank.communicator.address.descriptor).st_blocks * 512 for rank in ranks]
    finally:
        for rank in ranks:
            rank.communicator.close()
    gathering = communication_nbytes(layout, spread)["communication/gathering parameters"]
    for leader, nbytes in enumerate(touched):
        assert nbytes <= gathering + (CHUNK if across_nbytes(spread, leader) else 0)
    assert {found for _, found, _ in results} == {hashlib.sha256(whole.tobytes()).hexdigest()}
    assert all(same for _, _, same in results)
    descriptor = os.open(folder / "replicated", os.O_CREAT | os.O_WRONLY)
    assert write_tensors(descriptor, optimizer.state_by_name(layout, whole)) == written
    os.close(descriptor)
    assert (folder / "replicated").read_bytes() == (folder / "state").read_bytes()
    loaded = load_file(folder / "state")
    assert all((loaded[name] == view).all() for name, view in optimizer.state_by_name(layout, whole).items())


@pytest.mark.parametrize(
    ("name", "world"),
    [
        ("AdamW", 4),
        ("momentum", 3),
        *(pytest.param(name, world, marks=pytest.mark.memory) for name in sorted(OPTIMIZERS) for world in (2, 5, 8)),
    ],
)
def test_a_run_has_the_bits_of_one_process_and_each_rank_s_bytes_are_predicted(
    threads: None, name: str, world: int
) -> None:
    optimizer = OPTIMIZERS[name]
    alone = trainer(optimizer=optimizer).fit().summary
    made = trainer(optimizer=optimizer, workers=world, shard_optimizer=True, policy="sqrt-n", bucket_size="1KiB")
    summary = made.fit().summary
    assert hashes(summary) == hashes(alone)
    slices = slices_of(made.layout.size, world)
    for rank, plan, part in zip(summary["ranks"], made.plans.train, slices, strict=True):
        assert rank["ledger_peak_bytes"] == rank["predicted_peak_bytes"]
        assert rank["optimizer_sha256"] == alone["optimizer_sha256"]
        held = plan.simulation.timeline[-1].categories
        assert rank["optimizer_bytes"] == held.get("optimizer", 0) == optimizer.slots * (part.stop - part.start) * 4


def test_weight_decay_of_some_parameters_is_known_by_their_place(threads: None) -> None:
    optimizer = AdamW(weight_decay=0.5, decays=trainer().layout.select(least_axes=2))
    alone = trainer(optimizer=optimizer).fit().summary
    assert hashes(trainer(optimizer=optimizer, workers=4, shard_optimizer=True).fit().summary) == hashes(alone)
    assert hashes(trainer(optimizer=AdamW(weight_decay=0.5)).fit().summary) != hashes(alone)


@pytest.mark.parametrize("workers", [0, 1])
def test_with_one_rank_the_option_changes_nothing(threads: None, workers: int) -> None:
    plain, shared = (trainer(workers=workers, shard_optimizer=on, steps=3) for on in (False, True))
    assert plain.plans == shared.plans
    assert hashes(plain.fit().summary) == hashes(shared.fit().summary)


@pytest.mark.parametrize(
    "workers", [2, 4, *(pytest.param(world, marks=pytest.mark.memory) for world in (3, 5, 6, 7, 8))]
)
@pytest.mark.parametrize("model", ["byte-gpt-tiny", pytest.param("byte-gpt-small", marks=pytest.mark.memory)])
def test_each_rank_holds_its_part_of_the_state_and_no_more_than_a_twentieth_besides(model: str, workers: int) -> None:
    options = {"batch": 8, "shards": 8, "validation_examples": 8, "policy": "every-k:1"}
    made = Trainer(build(model), workers=workers, shard_optimizer=True, **options)
    parts = [plan.simulation.timeline[-1].categories["optimizer"] for plan in made.plans.train]
    assert sum(parts) == 2 * made.layout.nbytes
    assert max(parts) <= 1.05 * sum(parts) / workers


def test_a_budget_is_met_that_replicated_state_cannot_meet(threads: None) -> None:
    model, options = build("mlp-deep"), {"batch": 8, "shards": 4, "steps": 2, "validation_examples": 8, "workers": 4}
    with pytest.raises(InfeasibleBudget) as replicated:
        Trainer(model, memory_budget="engine:1KiB", share_weights="no", **options)
    with pytest.raises(InfeasibleBudget) as shared:
        Trainer(model, memory_budget="engine:1KiB", shard_optimizer=True, **options)
    smallest = shared.value.smallest
    saved = Trainer(model, **options).optimizer.state_nbytes(Trainer(model, **options).layout)
    assert replicated.value.smallest - smallest > 0.7 * saved
    with pytest.raises(InfeasibleBudget):
        Trainer(model, memory_budget=f"engine:{smallest}", share_weights="no", **options)
    summary = Trainer(model, memory_budget=f"engine:{smallest}", shard_optimizer=True, **options).fit().summary
    assert [rank["ledger_peak_bytes"] for rank in summary["ranks"]] == [
        rank["predicted_peak_bytes"] for rank in summary["ranks"]
    ]
    assert summary["ledger_peak_bytes"] <= smallest
    assert hashes(summary) == hashes(Trainer(model, **{**options, "workers": 0}).fit().summary)


CASES = {case.name: case for case in all_cases() if case.name.endswith("float32")}


def sharded(chain: Chain, loss: Loss, specs: tuple[Spec, Spec], shards: int, world: int) -> tuple[Setting, int]:
    """What is planned where the state of AdamW is shared out, and by how many bytes of it ranks differ."""
    optimizer, layout = AdamW(), chain.layout(specs[0])
    updates = update_costs(optimizer, layout, world)
    held = [each.state for each in updates]
    return Setting(costs_of(chain, loss, *specs, optimizer), shards, world, updates=updates), max(held) - min(held)


@pytest.mark.parametrize("world", [3, *(pytest.param(world, marks=pytest.mark.memory) for world in (2, 5, 8))])
@pytest.mark.parametrize(
    "name", [name if name == "tokens-float32" else pytest.param(name, marks=pytest.mark.memory) for name in CASES]
)
def test_plans_within_a_budget_fit_every_rank(name: str, world: int) -> None:
    case = CASES[name]
    setting, apart = sharded(case.chain, case.loss, case.specs(8), 8, world)
    known = choices(setting)
    assert known.within(known.least - 1) is None
    for number in range(6):
        budget = known.least + (known.store_all - known.least) * number // 5
        choice = known.within(budget)
        if choice is None:
            assert budget < known.least + apart
            continue
        plans = known.plans(choice.policy, choice.point)
        for plan in plans:
            plan.check()
        assert choice.peak - apart <= max(plan.peak for plan in plans) <= choice.peak <= budget


def test_a_choice_fits_all_ranks_where_one_has_most_gradients_and_another_most_of_the_state() -> None:
    """Which of the three has the peak depends on the policy here."""
    chain = Chain(Linear(300), *(layer for _ in range(6) for layer in (ReLU(), Linear(64))), ReLU(), Linear(10))
    specs = Spec.of((64, 64), "float32"), Spec.of((64,), "int64")
    setting, apart = sharded(chain, CrossEntropy(), specs, 16, 3)
    known, peaks = choices(setting), set()
    for name in ("store-all", "every-k:1", "sqrt-n", "recompute-all"):
        policy = parse_policy(name)
        plans = known.plans(policy)
        most = max(plans, key=lambda plan: plan.peak)
        peaks.add(most.rank)
        assert most.peak <= known.of(policy).peak <= most.peak + apart
    assert len(peaks) > 1


@pytest.mark.parametrize(
    ("first", "then"),
    [
        ({"workers": 4, "shard_optimizer": True}, {"workers": 3, "shard_optimizer": False}),
        ({"workers": 3}, {"workers": 4, "shard_optimizer": True}),
        ({"workers": 4, "share_weights": "yes"}, {"workers": 3}),
        ({"workers": 3}, {"workers": 4, "share_weights": "yes"}),
        pytest.param(
            {"workers": 2, "shard_optimizer": True},
            {"workers": 8, "shard_optimizer": True, "policy": "recompute-all"},
            marks=pytest.mark.memory,
        ),
    ],
    ids=[
        "shared out, then not",
        "not, then shared out",
        "weights too, then not",
        "not, then weights too",
        "shared out otherwise",
    ],
)
def test_a_run_goes_on_however_the_state_was_held_when_it_was_saved(
    tmp_path: Path, threads: None, first: dict[str, Any], then: dict[str, Any]
) -> None:
    whole = trainer().fit().summary
    stopped(7, trainer(tmp_path / "run", snapshot_every=5, **first))
    stopped(7, trainer(tmp_path / "alone", snapshot_every=5))
    assert len(snapshots_in(tmp_path / "run" / "snapshots")) == 2
    for one, other in zip(*(snapshots_in(tmp_path / name / "snapshots") for name in ("run", "alone")), strict=True):
        assert one.name == other.name
        assert read_manifest(one)["files"] == read_manifest(other)["files"]
    summary = trainer(resume=tmp_path / "run", **then).fit().summary
    assert summary["resumed_after_step"] == 7
    assert hashes(summary) == hashes(whole)


def test_a_run_is_saved_and_resumed_within_the_least_budget(tmp_path: Path, threads: None) -> None:
    options: dict[str, Any] = {"policy": "recompute-all", "workers": 3, "shard_optimizer": True}
    budget = {"memory_budget": f"engine:{trainer(**options).plans.peak}"}
    stopped(5, trainer(tmp_path / "run", snapshot_every=1, **options, **budget))
    summary = trainer(resume=tmp_path / "run", **options, **budget).fit().summary
    for rank in summary["ranks"]:
        assert rank["ledger_peak_bytes"] == rank["predicted_peak_bytes"]


def test_ranks_that_wait_to_send_their_state_are_told_when_it_cannot_be_written(
    tmp_path: Path, threads: None, monkeypatch: pytest.MonkeyPatch
) -> None:
    made = trainer(tmp_path / "run", workers=3, shard_optimizer=True, snapshot_every=4, timeout=60)
    write = os.write

    def full(descriptor: int, data: Any) -> int:
        if OPTIMIZER in str(Path(f"/proc/self/fd/{descriptor}").readlink()):
            raise OSError(28, os.strerror(28))
        return write(descriptor, data)

    monkeypatch.setattr(os, "write", full)
    with pytest.raises(SnapshotFailed, match=r"step-00000004 could not be written: .*No space left on device"):
        made.fit()
    assert list((tmp_path / "run" / "snapshots").iterdir()) == []
    for rank in (1, 2):
        assert "rank 0 gave up" in (tmp_path / "run" / "logs" / f"rank-{rank}.log").read_text()
