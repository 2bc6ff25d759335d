"""The end of a run whose loss or gradient is not finite, and what each rank found when it ran the step again."""

from __future__ import annotations

from collections.abc import Mapping

from checkpointing.inspector import Finding

#: Ranks whose findings are told.
_TOLD = 4


class Diverged(RuntimeError):  # noqa: N818  (the name that callers act on)
    """A loss or a gradient is not finite any more. The step has changed no parameters.

    Args:
        step: The training step; a validation is that of the step before it.
        name: What is not finite: loss, gradient_norm or validation loss.
        value: What it is.
        found: By rank, the first value that is not finite (see `checkpointing.inspector`).
        advice: What to do.

    Attributes:
        findings: By rank, what was found; ranks without any are missing. What is wrong in a shard comes first: the sum over shards,
            which all ranks have, is left out then.
    """

    def __init__(self, step: int, name: str, value: float, found: Mapping[int, Finding | None], advice: str) -> None:
        super().__init__(step, name, value, found, advice)  # so that it can be pickled
        all_ = {rank: finding for rank, finding in found.items() if finding is not None}
        before = {rank: finding for rank, finding in all_.items() if not finding.of_all_ranks}
        self.findings: dict[int, Finding] = before or dict([*all_.items()][:1])
        self._ranks = len(found)

    def __str__(self) -> str:
        step, name, value, _, advice = self.args
        told = [f"{f'rank {rank}: ' if self._ranks > 1 else ''}{found}" for rank, found in self.findings.items()]
        if len(told) > _TOLD:
            told[_TOLD:] = [f"(and {len(told) - _TOLD} more ranks)"]
        lines = told or ["all values were finite when the step was run again"]
        return "\n  ".join(
            [f"step {step}: the {name.replace('_', ' ')} is {value}, so the run is stopped", *lines, advice]
        )
