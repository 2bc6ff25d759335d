"""Looks at everything that Retape needs of a machine and an installation, and says what to do where something is missing.

`examine` gives findings, one a check; scripts/doctor.py draws them. A check is a function of the `Surroundings`, so that each fault can
be planted in a test.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import replace

from distributed.doctor import files, machine, memory, packages, ray_state
from distributed.doctor.finding import LEVELS, Finding, Level, Surroundings, warning, worst

__all__ = ["CHECKS", "LEVELS", "Finding", "Level", "Surroundings", "examine", "worst"]

Check = Callable[[Surroundings], Finding | None]

#: All checks, in groups, in the order in which they are shown. A check that has nothing to look at returns None.
CHECKS: Mapping[str, Sequence[Check]] = {
    "machine": machine.CHECKS,
    "memory": memory.CHECKS,
    "files and limits": files.CHECKS,
    "packages": packages.CHECKS,
    "Ray": ray_state.CHECKS,
}


def examine(
    surroundings: Surroundings,
    checks: Mapping[str, Sequence[Check]] = CHECKS,
    tell: Callable[[str], None] | None = None,
) -> Iterator[Finding]:
    """Yields what each check finds.

    Args:
        surroundings: What is looked at.
        checks: The checks, in groups.
        tell: Told the group and the name of each check before it begins.
    """
    for group, members in checks.items():
        for check in members:
            name = check.__name__.replace("_", " ")
            if tell is not None:
                tell(f"{group}: {name}")
            try:
                found = check(surroundings)
            except Exception as fault:  # one check that fails must not hide what the others find
                found = warning(
                    name,
                    f"could not be looked at: {type(fault).__name__}: {fault}",
                    "please report it, with this line",
                    fault=type(fault).__name__,
                )
            if found is not None:
                yield replace(found, group=group)
