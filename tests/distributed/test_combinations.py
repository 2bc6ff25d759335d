"""Predicted bytes, the ledger's, and NumPy's, on drawn combinations of model, policy or budget, sizes, and where the arrays lie.

`make test` draws 30 of them, `make test-memory` 200.
"""

from __future__ import annotations

import random
from typing import Any

import numpy as np
import pytest

from checkpointing.witness import TOLERANCE, Verification
from distributed import Trainer
from distributed.worker import Worker
from distributed.worker_sizes import shard_specs
from framework import (
    LSTM,
    Attention,
    CausalAttention,
    Chain,
    CrossEntropy,
    Embedding,
    Key,
    Linear,
    MeanSquaredError,
    Residual,
    Shared,
    build,
)
from framework.architectures import lenet, resnet, unet
from framework.data import ArrayDataset, pictures
from framework.losses import Loss
from tests.checkpointing.cases import POLICIES, random_layers


def drawn_model(draw: random.Random) -> tuple[Chain, Loss, ArrayDataset, int]:
    """A random chain with its loss and data, and a batch size."""
    generator, dtype = Key(draw.randrange(10**6)).generator(), draw.choice(("float32", "float64"))
    batch, width = draw.choice((8, 16, 24)), draw.choice((8, 24, 64))
    examples = 3 * batch
    if draw.random() < 0.5:
        x, targets = generator.standard_normal((2, examples, width)).astype(dtype)
        last = Shared(Linear(width), weight="0.weight") if draw.random() < 0.3 else Linear(width)
        chain = Chain(Linear(width), *random_layers(draw, width, 2), last)
        return chain, MeanSquaredError(), ArrayDataset(x, targets, validation=0.34), batch
    if draw.random() < 0.3:
        return drawn_images(draw, dtype, batch)
    length, heads = draw.choice((8, 30, 80)), draw.choice((1, 2))
    tokens = generator.integers(50, size=(examples, length + 1)).astype(np.uint8)
    kind = draw.choice((Attention, CausalAttention))
    mixing = Chain(Linear(3 * width), kind(heads), Linear(width))
    if draw.random() < 0.3:
        mixing = Chain(LSTM(width, draw.randint(1, 9)))
    attention = mixing if draw.random() < 0.3 else Residual(mixing)
    last = Shared(Linear(50, bias=False), weight="0.token") if draw.random() < 0.3 else Linear(50)
    chain = Chain(Embedding(50, length, width, dtype=dtype), attention, *random_layers(draw, width, 2), last)
    return chain, CrossEntropy(), ArrayDataset(tokens[:, :-1].copy(), tokens[:, 1:].copy(), validation=0.34), batch


def drawn_images(draw: random.Random, dtype: str, batch: int) -> tuple[Chain, Loss, ArrayDataset, int]:
    """One of the named architectures in a drawn size, on images of a drawn size."""
    channels, side, widths = (
        draw.choice((1, 3)),
        draw.choice((4, 8, 12)),
        tuple(draw.sample((3, 5, 8), draw.randint(2, 3))),
    )
    images = pictures(3 * batch, (channels, side, side), 4, dtype)
    data = ArrayDataset(images.x, images.y, validation=0.34)
    match draw.randrange(3):
        case 0:
            return lenet(4, 0.2), CrossEntropy(), data, batch
        case 1:
            return resnet(4, 0.2, widths, draw.choice((1, 2))), CrossEntropy(), data, batch
        case _:
            noisy = ArrayDataset(images.x + images.x[::-1], images.x, validation=0.34)
            return unet(channels, 0.2, widths), MeanSquaredError(), noisy, batch


def verified(seed: int) -> tuple[str, Verification]:
    """Runs a validation batch and a training step of a drawn combination under the witness."""
    draw = random.Random(seed)
    if draw.random() < 0.06:
        built = build("byte-gpt-tiny", dropout=0.1)
        chain, loss, data, batch = built.chain, built.loss, built.dataset(()), 8
    else:
        chain, loss, data, batch = drawn_model(draw)
    # With workers, gradients lie in shared memory; the one worker runs here, as it would on Ray.
    options: dict[str, Any] = {
        "shards": draw.choice((1, 2, 4, 8)), "memory": draw.choice(("heap", "block")), "workers": draw.choice((0, 0, 1)),
    }  # fmt: skip
    if draw.random() < 0.6:
        options["policy"] = draw.choice(POLICIES)
    else:
        options["memory_budget"] = draw.choice(("engine:100%", "none"))
        if draw.random() < 0.7:  # between what is needed at least and what store-all takes
            least = Trainer(chain, loss, data=data, batch=batch, policy="recompute-all", **options).plans.peak
            most = Trainer(chain, loss, data=data, batch=batch, policy="store-all", **options).plans.peak
            options["memory_budget"] = f"engine:{max(least, most) - draw.randrange(abs(most - least) + 1)}"
    uneven: dict[str, Any] = {"validation_examples": batch}
    if draw.random() < 0.5 and not chain.layout(shard_specs(data, batch, 1)[0]).statistics.size:
        uneven = {
            "validation_examples": batch - 1,
            "last_batch": "pad",
        }  # for training there is one less than two batches
    trainer = Trainer(chain, loss, data=data, batch=batch, verify_memory=True, **uneven, **options)
    worker = Worker(trainer._task(0))
    try:
        if options["workers"]:
            address = worker.address()
            assert address is not None
            worker.connect([address])
        worker.step(0)
        found = worker.verification()
    finally:
        worker.close()
    assert found is not None
    return f"{seed}: {trainer.plans.policy.name} {options} {len(chain)} stages", found


def check(seeds: range) -> tuple[int, int, int]:
    """Returns the points compared, the largest difference between operations, and the largest inside one."""
    points = apart = inside = 0
    for seed in seeds:
        what, found = verified(seed)
        assert found.faults == [], what
        points, apart = points + found.points, max(apart, found.largest_difference)
        inside = max(inside, found.largest_inside)
    assert apart == 0 and inside <= TOLERANCE
    return points, apart, inside


def test_predicted_bytes_are_the_ledgers_and_numpys_on_30_drawn_combinations() -> None:
    assert check(range(30))[0] > 30 * 20


@pytest.mark.memory
@pytest.mark.parametrize("part", range(8), ids="part {}".format)
def test_predicted_bytes_are_the_ledgers_and_numpys_on_200_drawn_combinations(part: int) -> None:
    points, apart, inside = check(range(100 + 25 * part, 125 + 25 * part))
    print(
        f"25 combinations, {points:,} points compared, largest difference {apart} bytes between operations, "
        f"{inside:,} bytes inside one"
    )
