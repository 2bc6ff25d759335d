"""Batches that are not whole: gradients of exactly the true examples, each example once an epoch, the same for any number of workers."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from contextlib import contextmanager
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from checkpointing.operations import Load
from distributed import RunFolder, Trainer
from distributed.worker import Worker
from framework import (
    L1,
    SGD,
    ArrayDataset,
    BatchNorm,
    BinaryCrossEntropy,
    Chain,
    CrossEntropy,
    Dropout,
    Huber,
    Key,
    LayerNorm,
    Ledger,
    Linear,
    MeanSquaredError,
    NegativeLogLikelihood,
    SoftTargetCrossEntropy,
    Spec,
    Tanh,
)
from framework.differentiation import value_and_grad
from framework.layers import Context
from framework.losses import Loss
from framework.memory import Array
from tests.distributed.saved_runs import hashes, stopped

CLASSES = 5
LOSSES: dict[str, Loss] = {
    "cross-entropy": CrossEntropy(),
    "smoothed": CrossEntropy(label_smoothing=0.1),
    "ignoring": CrossEntropy(ignore=-100),
    "smoothed, ignoring a class": CrossEntropy(label_smoothing=0.2, ignore=0),
    "log-likelihood": NegativeLogLikelihood(),
    "log-likelihood ignoring a class": NegativeLogLikelihood(ignore=1),
    "soft targets": SoftTargetCrossEntropy(),
    "squared": MeanSquaredError(),
    "l1": L1(),
    "huber": Huber(0.7),
    "binary": BinaryCrossEntropy(),
}


class Recorded:
    """A data set that writes down what is loaded of it."""

    def __init__(self, data: ArrayDataset) -> None:
        self.data, self.loaded = data, list[tuple[str, list[int]]]()
        self.inputs, self.targets, self.classes = data.inputs, data.targets, data.classes
        self.nbytes = data.nbytes

    def size(self, split: str) -> int:
        return self.data.size(split)

    def describe(self) -> dict[str, Any]:
        return self.data.describe()

    def load(self, split: str, indices: Sequence[int], x: Array, targets: Array) -> None:
        self.loaded.append((split, list(indices)))
        self.data.load(split, indices, x, targets)


def examples(count: int, loss: Loss, held: int = 24) -> ArrayDataset:
    """So many examples for training, of vectors in which each place has a target; of integer targets some may be ignored."""
    generator = Key(4).fold(count).generator()
    x = generator.standard_normal((count + held, 3, 4))
    ignore = getattr(loss, "ignore", None)
    if isinstance(loss, CrossEntropy | NegativeLogLikelihood):
        targets: Array = generator.integers(CLASSES, size=x.shape[:2])
        if ignore is not None:
            targets[generator.random(targets.shape) < 0.3] = ignore
    else:
        targets = generator.random((*x.shape[:2], CLASSES))
    return ArrayDataset(x, targets, held)


def trainer(count: int, batch: int, shards: int, loss: Loss | None = None, **options: Any) -> Trainer:
    loss = loss or CrossEntropy()
    chain = Chain(Linear(6), Tanh(), LayerNorm(), Linear(CLASSES))
    given = {"last_batch": "pad", "learning_rate": 1.0, "clip_norm": None, "validation_examples": 8, **options}
    data = examples(count, loss)
    return Trainer(chain, loss, SGD(momentum=0.0), data, batch=batch, shards=shards, **given)


@contextmanager
def workers_of(trainer: Trainer) -> Iterator[tuple[list[Worker], list[Recorded]]]:
    """The workers of a run as threads of this process, and what each loads."""
    assert isinstance(trainer.data, ArrayDataset)
    data = [Recorded(trainer.data) for _ in range(trainer.options.world)]
    workers: list[Worker] = []
    try:
        for rank, recorded in enumerate(data):
            workers.append(Worker(replace(trainer._task(rank), data=recorded)))
        addresses = [address for worker in workers if (address := worker.address())]
        for worker in workers:
            worker.connect(addresses)
        yield workers, data
    finally:
        for worker in workers:
            worker.close()


def together(workers: Sequence[Worker], work: Callable[[Worker], Any]) -> list[Any]:
    with ThreadPoolExecutor(len(workers)) as pool:
        return [future.result() for future in [pool.submit(work, worker) for worker in workers]]


def traced(trainer: Trainer, flat: Array, split: str, indices: Sequence[int]) -> tuple[float, Array]:
    """The mean loss over exactly these examples and its gradient, traced from the definitions."""
    data, loss, layout = trainer.data, trainer.model.loss, trainer.layout
    x, targets = (np.empty((len(indices), *spec.shape), spec.dtype) for spec in (data.inputs, data.targets))
    data.load(split, indices, x, targets)
    ignore = getattr(loss, "ignore", None)
    count = targets.size if not isinstance(loss, SoftTargetCrossEntropy) else targets[..., 0].size
    if ignore is not None:
        count = np.count_nonzero(targets != ignore) or 1  # where all are ignored, the loss is zero

    def mean(params: dict[str, Array]) -> Any:
        y = trainer.model.chain.apply(params, x, Context(Ledger()))
        return loss.apply(y, targets, None) / count

    value, gradient = value_and_grad(mean)({name: view.copy() for name, view in layout.views(flat).items()})
    return float(value), np.concatenate([gradient[name].reshape(-1) for name in layout.specs])


@pytest.mark.parametrize("loss", LOSSES.values(), ids=LOSSES)
@pytest.mark.parametrize(
    ("world", "shards", "left"), [(0, 1, 3), (1, 4, 5), (2, 2, 9), (3, 8, 1), (3, 4, 8), (8, 8, 13)]
)
def test_the_last_gradient_of_an_epoch_is_that_of_its_true_examples(
    loss: Loss, world: int, shards: int, left: int
) -> None:
    """Of 16 examples in a batch some are left: whole shards of padding, and shards with a part of it."""
    run = trainer(32 + left, 16, shards, loss, workers=world, memory="block" if left % 2 else "heap")
    with workers_of(run) as (workers, data):
        before = workers[0].parameters()[0].copy()
        rows = together(workers, lambda worker: worker.step(2))
        after = workers[0].parameters()[0]
        seen = [index for recorded in data for _, indices in recorded.loaded for index in indices]
        true = workers[0]._feed.order.indices(2, 0, left)
        assert len(seen) == 16 and len(set(true)) == left and set(true) <= set(seen)
        loss_, expected = traced(run, before, "train", true)
        assert {row["loss"] for row in rows} == {rows[0]["loss"]}
        np.testing.assert_allclose(rows[0]["loss"], loss_, rtol=1e-12)
        np.testing.assert_allclose((before - after) / rows[0]["learning_rate"], expected, rtol=1e-12, atol=1e-12)
        for worker, plan in zip(workers, run.plans.train, strict=True):
            assert worker.finish()["ledger_peak_bytes"] == plan.peak


sizes = {"rows": st.integers(1, 3), "shards": st.sampled_from([1, 2, 4, 8]), "size": st.integers(1, 60)}


@settings(max_examples=40)
@given(**sizes, world=st.integers(0, 8), last=st.sampled_from(["drop", "pad"]))
def test_every_example_is_seen_once_an_epoch_by_exactly_one_shard(
    rows: int, shards: int, size: int, world: int, last: str
) -> None:
    batch, world = rows * shards, min(world, shards)
    if last == "drop":
        size = max(size, batch)
    run = trainer(size, batch, shards, workers=world, last_batch=last, steps=5)
    with workers_of(run) as (workers, data):
        batches = workers[0]._feed.order.batches
        epochs = []
        for epoch in range(2):
            counted: list[int] = []
            for number in range(len(batches)):
                step = epoch * len(batches) + number
                for worker, recorded in zip(workers, data, strict=True):
                    counted += loaded_by(worker, recorded, run, step)
            assert len(counted) == len(set(counted)) == (size if last == "pad" else size // batch * batch)
            epochs.append(counted)
        assert size < 8 or epochs[0] != epochs[1]  # a new epoch has a new order


def shards_of(worker: Worker) -> list[int]:
    """The shards that a worker's plan loads."""
    return [operation.shard for operation in worker._task.train.operations if isinstance(operation, Load)]


def loaded_by(worker: Worker, recorded: Recorded, run: Trainer, step: int) -> list[int]:
    """The examples that a worker loads for a step with a weight that is not zero, as its plan's Loads ask."""
    costs, found = run.plans.train[0].costs, list[int]()
    for shard in shards_of(worker):
        x, *rest = (np.full(spec.shape, 7, spec.dtype) for spec in (costs.batch, *costs.target_specs))
        recorded.loaded.clear()
        worker._feed.train(step)(shard, x, *rest)
        ((split, indices),) = recorded.loaded
        weights = rest[1] if len(rest) > 1 else np.ones(len(indices))
        assert split == "train" and set(weights) <= {0, 1}
        found += [index for index, weight in zip(indices, weights, strict=True) if weight]
    return found


@settings(max_examples=20)
@given(
    **sizes, steps=st.integers(1, 12), warmup=st.integers(0, 3), seed=st.integers(0, 3),
    last=st.sampled_from(["drop", "pad"]),
)  # fmt: skip
def test_neither_learning_rate_nor_order_of_examples_depends_on_the_number_of_workers(
    rows: int, shards: int, size: int, steps: int, warmup: int, seed: int, last: str
) -> None:
    batch = rows * shards
    size, warmup = (max(size, batch) if last == "drop" else size), min(warmup, steps - 1)
    options: dict[str, Any] = {"steps": steps, "warmup_steps": warmup, "seed": seed, "last_batch": last}
    found = set()
    for world in sorted({0, 1, min(3, shards), shards}):
        run = trainer(size, batch, shards, workers=world, **options)
        rates, order = set(), dict[tuple[int, int], tuple[int, ...]]()
        with workers_of(run) as (workers, _):
            for worker in workers:
                rates.add(tuple(worker._task.schedule(step) for step in range(steps)))
                for step in range(steps):
                    for shard in shards_of(worker):
                        assert (step, shard) not in order
                        order[step, shard] = tuple(worker._feed.order.indices(step, shard * rows, rows))
        assert len(rates) == 1
        found.add((rates.pop(), tuple(sorted(order.items()))))
    assert len(found) == 1


def test_padding_has_the_same_bits_for_any_number_of_workers_and_any_policy() -> None:
    """More than an epoch, with dropout, whose masks go by places in the batch, and with a validation that is padded, too."""
    chain = Chain(Linear(6), Tanh(), Dropout(0.2), Linear(CLASSES))
    loss = CrossEntropy(ignore=2)
    found = set()
    for world, policy in ((0, "store-all"), (1, "recompute-all"), (2, "every-k:1"), (3, "sqrt-n"), (8, "store-all")):
        run = Trainer(
            chain, loss, data=examples(19, loss, 13), batch=8, shards=8, workers=world, last_batch="pad", policy=policy,
            validation_examples=13, clip_norm=0.5,
        )  # fmt: skip
        with workers_of(run) as (workers, _):
            losses = [together(workers, lambda worker, step=step: worker.step(step))[0]["loss"] for step in range(7)]
            validated = together(workers, lambda worker: worker.validate(0, 2))
            found.add((tuple(losses), workers[0].finish()["parameters_sha256"], str(validated[0])))
    assert len(found) == 1


def test_a_padded_run_that_is_stopped_goes_on_with_the_same_bits_on_other_workers(
    ray_cluster: None, tmp_path: Path
) -> None:
    """Stopped right after a padded batch."""
    whole = hashes(trainer(20, 8, 4, steps=8).fit().summary)
    folder, first = tmp_path / "run", trainer(20, 8, 4, steps=8, run_folder=RunFolder(tmp_path / "run"))
    stopped(6, first)
    again = Trainer(
        first.model.chain,
        first.model.loss,
        first.optimizer,
        first.data,
        resume=folder,
        workers=3,
        validation_examples=8,
    )
    assert again.options.last_batch == "pad"
    assert hashes(again.fit().summary) == whole


def test_a_validation_that_is_padded_is_the_mean_of_all_examples_that_are_asked_for() -> None:
    loss = CrossEntropy(ignore=2)
    data = examples(16, loss, held=21)
    options: dict[str, Any] = {"batch": 8, "shards": 4, "steps": 2, "validation_examples": 13}
    run = Trainer(Chain(Linear(6), Tanh(), Linear(CLASSES)), loss, data=data, last_batch="pad", **options)
    result = run.fit()
    assert len(run.validation) == 13 and run.plans.train[0].costs.weights is None
    value, _ = traced(run, result.parameters.flat, "validation", run.validation)
    np.testing.assert_allclose(result.summary["validation_loss"], value, rtol=1e-12)
    assert result.summary["ledger_peak_bytes"] == result.summary["predicted_peak_bytes"]
    dropped = Trainer(Chain(Linear(6), Tanh(), Linear(CLASSES)), loss, data=data, **options)
    assert len(dropped.validation) == 8


def test_there_are_weights_where_there_can_be_padding_and_they_are_in_the_plan() -> None:
    whole, padded, dropped = trainer(32, 16, 4), trainer(33, 16, 4), trainer(33, 16, 4, last_batch="drop")
    assert [run.plans.train[0].costs.weights for run in (whole, padded, dropped)] == [
        None,
        Spec.of((4,), "float64"),
        None,
    ]
    load, more = (run.plans.train[0].simulation.timeline[0].categories["batch"] for run in (whole, padded))
    assert more - load == 4 * 8


def test_throughput_counts_true_examples_alone() -> None:
    rows = trainer(10, 8, 2, steps=2).fit().history
    targets = [row["tokens_per_second"] * row["step_seconds"] for row in rows]
    assert targets == pytest.approx([8 * 3, 2 * 3])


def test_statistics_of_a_batch_and_padding_do_not_go_together() -> None:
    chain, data = Chain(Linear(6), BatchNorm(), Linear(CLASSES)), examples(33, CrossEntropy())
    given: dict[str, Any] = {
        "data": ArrayDataset(data.x[:, 0], data.y[:, 0], 24),
        "batch": 16,
        "validation_examples": 8,
    }
    with pytest.raises(ValueError, match=r"layer '1' takes statistics of a batch.*33 examples.*leave 1 .*GroupNorm"):
        Trainer(chain, CrossEntropy(), last_batch="pad", **given)
    Trainer(chain, CrossEntropy(), last_batch="drop", **given)
    given["batch"] = 11  # which leaves nothing to pad; in a validation they take none
    assert Trainer(chain, CrossEntropy(), last_batch="pad", shards=1, **given).plans.evaluate[0].costs.weights


@dataclass(frozen=True)
class Unweighted(CrossEntropy):
    """A loss that forgets about the weights of examples in one of its methods."""

    forgets: str = ""

    def forward(self, y: Array, targets: Array, weights: Array | None, context: Context) -> Any:
        return super().forward(y, targets, None if self.forgets == "forward" else weights, context)

    def vjp(self, y: Array, targets: Array, weights: Array | None, own: Any, context: Context) -> Array:
        return super().vjp(y, targets, None if self.forgets == "vjp" else weights, own, context)


@pytest.mark.parametrize("forgets", ["forward", "vjp"])
def test_a_loss_that_would_count_padding_is_refused(forgets: str) -> None:
    message = "Unweighted does not weigh its examples"
    with pytest.raises(ValueError, match=message):
        trainer(33, 16, 4, Unweighted(forgets=forgets))
    with pytest.raises(ValueError, match=message):
        trainer(32, 16, 4, Unweighted(forgets=forgets), validation_examples=9)
    trainer(32, 16, 4, Unweighted(forgets=forgets), validation_examples=16)  # nothing to pad
    trainer(33, 16, 4, Unweighted(forgets=forgets), last_batch="drop")
    trainer(33, 16, 4, Unweighted())


def test_a_batch_that_is_larger_than_the_data_can_be_padded() -> None:
    run = trainer(5, 16, 4, steps=3)
    assert run.fit().summary["loss_last"] < run.fit().summary["loss_first"]
    with pytest.raises(ValueError, match=r"batch of 16 .* larger than the 5 .*--last-batch pad"):
        trainer(5, 16, 4, last_batch="drop", validation_examples=16)
    with pytest.raises(ValueError, match="--last-batch is drop or pad, but got 'keep'"):
        trainer(33, 16, 4, last_batch="keep")
