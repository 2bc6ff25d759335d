"""Trains a small network on a table, within a memory budget, and predicts rows that it has not seen.

python mlp_on_csv.py                                  # writes houses.csv, whose prices follow a formula and noise, and learns it
python mlp_on_csv.py --data mine.csv --target price   # your own table: a header, a row an example, numbers to predict
"""

from __future__ import annotations

import csv
from pathlib import Path

import numpy as np
import tyro

from checkpointing import predict
from distributed import Trainer
from framework import GELU, Chain, Linear, MeanSquaredError
from framework.data import open_examples


def write_houses(path: Path, rows: int = 2000) -> None:
    """Writes a table to try: what a house costs, in thousands."""
    random = np.random.default_rng(0)
    area, age, distance = random.uniform(40, 200, rows), random.uniform(0, 80, rows), random.exponential(8, rows)
    price = 2.5 * area * (1 + 1 / (1 + distance)) * np.exp(-age / 150) + random.normal(0, 15, rows)
    with path.open("w", newline="") as file:
        table = csv.writer(file)
        table.writerow(["area", "age", "distance", "price"])
        table.writerows(np.stack([area, age, distance, price], axis=1).round(2).tolist())


def main(
    data: Path | None = None, target: str | None = None, steps: int = 600, memory_budget: str = "engine:80%"
) -> None:
    """Trains on a table.

    Args:
        data: A CSV file. Default: houses.csv, which is written if it is not there.
        target: The column to predict. Default: the last.
        steps: Training steps.
        memory_budget: Most bytes of the engine: engine:2MiB, or engine:80% for that part of what storing everything takes.
    """
    if data is None:
        data = Path("houses.csv")
        if not data.exists():
            write_houses(data)
            print(f"wrote {data}")
    # One row of five is held out. Columns and target have mean 0 and deviation 1 over the others.
    dataset = open_examples("mlp", "features", "float32", [str(data)], target, "regression")
    chain = Chain(Linear(64), GELU(), Linear(64), GELU(), Linear(dataset.targets.shape[0]))
    options = {"batch": 256, "shards": 1, "steps": steps, "learning_rate": 3e-3, "memory_budget": memory_budget}
    trainer = Trainer(chain, MeanSquaredError(), data=dataset, **options)
    result = trainer.fit()
    summary = result.summary
    print(
        f"{len(dataset.x)} rows of {dataset.inputs.shape[0]} features; {summary['ledger_peak_bytes']:,} bytes at the peak, as predicted"
    )

    held = dataset.size("validation")
    x, true = dataset.x[-held:], dataset.y[-held:]
    predicted = predict(chain, result.parameters, x)
    mean, deviation = dataset.about["target_mean"][0], dataset.about["target_deviation"][0]
    error = np.sqrt(np.mean((predicted - true) ** 2)) * deviation
    print(
        f"held-out rows: off by {error:.1f} (root mean square), where the mean of all would be off by {true.std() * deviation:.1f}"
    )
    print("    true  predicted")
    for row in range(5):
        print(f"{true[row, 0] * deviation + mean:8.1f}  {predicted[row, 0] * deviation + mean:9.1f}")


if __name__ == "__main__":
    tyro.cli(main)
