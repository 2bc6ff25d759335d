"""Profiles a torch.nn.Sequential into a file of costs, which plan.py --costs plans (docs/costs.md has the schema).

Each child of the Sequential is a step: what autograd saves in its forward is told by saved-tensor hooks, its times are medians of warm
runs. In mine.py a function returns the Sequential, a batch, its targets, and the loss, a function of output and targets:

  def build():
      return nn.Sequential(...), x, targets, nn.functional.cross_entropy

Examples:
  python scripts/profile_torch.py mine:build costs.json
  python scripts/profile_torch.py mine:build costs.json --runs 50 --force
  python scripts/plan.py --costs costs.json --memory-budget engine:8GB

Where PyTorch is, but not Retape, copy scripts/_torch_costs.py there: it needs nothing else.

Scratch inside operations and the optimizer's state are not known to autograd: add them to the file, as forward_workspace and
backward_workspace of a step's footprint, and to "static" as "optimizer/NAME".

With --json the last line has the costs themselves.
"""

from __future__ import annotations

import json
from dataclasses import dataclass
from pathlib import Path
from typing import Annotated, Any

import _console
import tyro
from _console import console


@dataclass(frozen=True, kw_only=True)
class ProfileTorch(_console.Common):
    build: Annotated[str | None, tyro.conf.Positional, tyro.conf.arg(metavar="BUILD")] = None
    """Required. Function that makes what is profiled, as package.module:function; modules are found from the working directory."""
    file: Annotated[Path | None, tyro.conf.Positional, tyro.conf.arg(metavar="FILE")] = None
    """Required. File of costs to write."""
    runs: int = 10
    """Timed runs of each forward and backward, of which the median is taken."""


def main(options: ProfileTorch) -> dict[str, Any]:
    if options.build is None or options.file is None:
        raise ValueError(
            "name what is profiled and the file to write, as in: python scripts/profile_torch.py mine:build costs.json"
        )
    if options.runs < 1:
        raise ValueError(f"--runs must be at least 1, but got {options.runs}")
    _console.require_new({"FILE": options.file, "--save-config": options.save_config}, options.force)
    from _torch_costs import built, profile  # PyTorch takes seconds to import

    with _console.bar("profiling") as tell:
        costs = profile(*built(options.build), runs=options.runs, tell=tell)
    _console.write(options.file, json.dumps(costs, indent=1) + "\n")
    console.print(
        f"{len(costs['steps'])} steps; plan them with: python scripts/plan.py --costs {options.file}", markup=False
    )
    return costs


if __name__ == "__main__":
    _console.run(main, ProfileTorch(), __doc__ or "")
