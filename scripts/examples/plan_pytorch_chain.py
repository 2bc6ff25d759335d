"""Plans a chain that PyTorch would train: which layers to keep, and which to compute again, for each of some budgets.

With PyTorch the chain is profiled here: what autograd saves of each layer, and how long it takes. Without it, costs that were profiled
elsewhere are read from pytorch_mlp.json, or from a file of yours (docs/costs.md has the schema).

    python plan_pytorch_chain.py
    python plan_pytorch_chain.py --costs mine.json --out plan.json
"""

from __future__ import annotations

import importlib.util
import sys
from pathlib import Path

import tyro

from checkpointing import Costs, InfeasibleBudget, StoreAll, explain, plan_run
from framework import format_size

HERE = Path(__file__).parent


def profiled() -> Costs:
    """Profiles a Sequential on this machine."""
    from torch import nn, randint, randn

    sys.path.insert(0, str(HERE.parent))
    from _torch_costs import profile

    layers = [layer for _ in range(8) for layer in (nn.Linear(512, 512), nn.GELU(), nn.LayerNorm(512))]
    model = nn.Sequential(*layers, nn.Linear(512, 10))
    return Costs.from_json(profile(model, randn(256, 512), randint(10, (256,)), nn.functional.cross_entropy))


def main(costs: Path | None = None, out: Path | None = None) -> None:
    """Plans a profiled chain.

    Args:
        costs: A file of costs. Default: profile a chain with PyTorch, or pytorch_mlp.json where PyTorch is not installed.
        out: Where to write the tightest plan as JSON.
    """
    if costs is None and importlib.util.find_spec("torch") is not None:
        chain = profiled()
    else:
        file = costs or HERE / "pytorch_mlp.json"
        chain = Costs.load(file)
        print(f"costs of {file.name}{'' if costs else ', since PyTorch is not installed here'}")
    print(f"{len(chain.steps)} layers, batch {chain.batch}; times: {chain.source}")
    everything = plan_run(chain, policy=StoreAll())
    lasting = everything.peak - everything.activation_nbytes
    print("activations      peak   a step  extra time  runs again")
    tightest = everything.train[0]
    for percent in (100, 80, 60, 40, 20):
        budget = lasting + everything.activation_nbytes * percent // 100
        try:
            plans = plan_run(chain, budget=budget)
        except InfeasibleBudget as error:
            print(f"{percent:9} %  {format_size(budget):>10}: no plan; the least is {format_size(error.smallest)}")
            break
        tightest = plans.train[0]
        seconds, extra = (
            tightest.simulation.seconds,
            tightest.simulation.seconds / everything.train[0].simulation.seconds - 1,
        )
        again = ", ".join(f"{a.count} {a.kind}" for a in explain(tightest).again) or "nothing"
        print(f"{percent:9} %  {format_size(tightest.peak):>8}  {seconds * 1e3:4.1f} ms  {extra:9.1%}  {again}")
    if out is not None:
        tightest.save(out)
        print(f"wrote {out}: its operations are what a loop in PyTorch would do, in this order")


if __name__ == "__main__":
    tyro.cli(main)
