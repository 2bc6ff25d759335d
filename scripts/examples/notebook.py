"""Retape in a notebook: everything in this process, and tables that a notebook draws.

Run the cells one by one in an editor that knows `# %%`, or all of them: python notebook.py
"""

from __future__ import annotations

from typing import Any

try:
    from IPython.display import display
except ImportError:  # in a terminal

    def display(what: Any) -> None:
        print(what, end="\n\n")


# %% A model, and what it holds. A summary is a table in a notebook, and text elsewhere.
import tempfile
from pathlib import Path

from checkpointing import costs_of, memory_time_curve, plan_run, summary
from checkpointing.report.json_file import load
from distributed import RunFolder, Trainer
from framework import GELU, Chain, CrossEntropy, LayerNorm, Linear, Residual, Spec
from framework.data import clusters


def block(features: int) -> Residual:
    return Residual(Chain(norm=LayerNorm(), up=Linear(2 * features), act=GELU(), down=Linear(features)))


chain = Chain(embed=Linear(64), **{f"block{i}": block(64) for i in range(4)}, head=Linear(10))
batch, steps = 512, 100
display(summary(chain, (batch, 32), loss=CrossEntropy()))

# %% What less memory costs, before anything runs.
costs = costs_of(chain, CrossEntropy(), Spec.of((batch, 32), "float32"), Spec.of((batch,), "int32"))
for point in memory_time_curve(costs, points=6):
    print(f"{point.budget / 2**20:5.2f} MiB  {point.seconds * 1e3:5.2f} ms  {point.policy}")

# %% The plan for 80 % of the peak, in words, and its memory over the step: a line for each tenth operation.
plan = plan_run(costs, budget=plan_run(costs).peak * 8 // 10).train[0]
display(plan.explain())
for moment in plan.simulation.timeline[::10]:
    print(f"{moment.label:24} {'█' * (40 * moment.live // plan.peak)} {moment.live:,}")

# %% Training in this process: `workers=0`. The step's peak is what was predicted.
data = clusters(examples=8192, features=32, classes=10)
folder = RunFolder(Path(tempfile.mkdtemp()) / "run")
how = {"batch": batch, "shards": 1, "steps": steps, "learning_rate": 3e-3, "memory_budget": "engine:70%"}
trainer = Trainer(chain, CrossEntropy(), data=data, run_folder=folder, **how)
result = trainer.fit()
print(f"peak {result.summary['ledger_peak_bytes']:,} bytes, predicted {trainer.plans.peak:,}")
print(f"{result.summary['validation_accuracy']:.1%} of held-out examples are right")

# %% The memory report of the run, measured beside predicted: tables here, a page in `folder.path / "report.html"`.
report = load(folder.path / "report.json")
display(report)

# %% The losses, ten steps a line.
for row in result.history[::10]:
    print(f"step {row['step']:3}  {'▇' * round(15 * row['loss'])} {row['loss']:.3f}")
