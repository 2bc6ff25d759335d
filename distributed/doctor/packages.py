"""Packages: whether ours are ours, which versions there are, and what clashes."""

from __future__ import annotations

import importlib.metadata
import importlib.util
import re
from collections.abc import Iterable
from pathlib import Path

from packaging.requirements import Requirement
from packaging.version import Version

from distributed.doctor.finding import Finding, Surroundings, error, ok, warning

#: Of each extra what is imported, and what it is for.
_EXTRAS = {
    "datasets": (("scikit-learn",), "data sets by name (--data digits)"),
    "tensorboard": (("tensorboardX",), "--tensorboard"),
    "peers": (("torch", "autograd", "checkpoint-schedules", "torchinfo"), "comparisons (scripts/benchmark.py)"),
}


def own_packages(given: Surroundings) -> Finding:
    """Whether framework, checkpointing and distributed are all Retape's, and of one copy."""
    homes = {name: None if home is None else str(home) for name, home in given.homes.items()}
    name, remedy = "own packages", "use an environment of Retape's own: make install"
    if absent := [each for each, home in homes.items() if home is None]:
        return error(
            name, f"{', '.join(absent)} cannot be imported", "pip install -e . in Retape's folder", homes=homes
        )
    if len({*homes.values()}) > 1:
        where = ", ".join(f"{each} from {home}" for each, home in homes.items())
        why = "one of them is foreign: Dask's scheduler is also named distributed"
        foreign = sorted({str(home) for home in homes.values()} - {str(given.source)})
        return error(name, f"{where}; {why}", f"take {', '.join(foreign)} out of PYTHONPATH, or {remedy}", homes=homes)
    (home,) = {*homes.values()} or {None}
    if given.source is not None and home is not None and Path(home).resolve() != given.source.resolve():
        told = f"they are those of {home}, and not those beside this program, in {given.source}"
        return warning(name, told, f"start {home}/scripts/doctor.py, or {remedy}", homes=homes)
    return ok(name, f"of {home}", homes=homes)


def dask(given: Surroundings) -> Finding:
    """Whether Dask's scheduler is installed in this environment: which of both is found then depends on the working directory."""
    try:
        version = importlib.metadata.version("distributed")
    except importlib.metadata.PackageNotFoundError:
        return ok("foreign packages", "no other package named distributed is installed")
    return warning(
        "foreign packages",
        f"the package distributed {version} of Dask is installed, too",
        "pip uninstall distributed, or use an environment of Retape's own: make install; which of both is found depends on the folder",
        version=version,
    )


def needed() -> list[Requirement]:
    """Returns what an installed Retape needs, without extras; nothing where it runs from its folder alone."""
    try:
        lines = importlib.metadata.requires("retape") or []
    except importlib.metadata.PackageNotFoundError:
        return []
    return [each for each in map(Requirement, lines) if each.marker is None or "extra" not in str(each.marker)]


def tested(constraints: Path | None) -> dict[str, str]:
    """Returns the versions in constraints.txt, by the packages' normalized names."""
    if constraints is None or not constraints.is_file():
        return {}
    pairs = (line.partition("==") for line in constraints.read_text().splitlines() if "==" in line)
    return {normalized(name): version.strip() for name, _, version in pairs}


def normalized(name: str) -> str:
    """A package's name as pip compares it.

    >>> normalized("Checkpoint_Schedules")
    'checkpoint-schedules'
    """
    return re.sub(r"[-_.]+", "-", name.strip()).lower()


def installed(names: Iterable[str]) -> dict[str, str | None]:
    """Returns the versions of packages; None for those that are not installed."""
    found: dict[str, str | None] = {}
    for name in names:
        try:
            found[name] = importlib.metadata.version(name)
        except importlib.metadata.PackageNotFoundError:
            found[name] = None
    return found


def versions(given: Surroundings) -> Finding:
    """What is installed of what is needed, beside the least versions and those that were tested."""
    wanted = needed()
    known = tested(given.constraints)
    names = [each.name for each in wanted] or ["numpy", "ray", "psutil", "rich", "tyro", "safetensors", "threadpoolctl"]
    there = installed(names)
    told = ", ".join(f"{name} {version or 'missing'}" for name, version in there.items())
    data = {"installed": there, "tested": {name: known.get(normalized(name)) for name in names}}
    install = "pip install --constraint constraints.txt --editable ."
    if absent := [name for name, version in there.items() if version is None]:
        return error("versions", f"{', '.join(absent)} not installed", install, **data)
    old = [
        f"{each.name} {there[each.name]} (needs {each.specifier})"
        for each in wanted
        if not each.specifier.contains(Version(str(there[each.name])), prereleases=True)
    ]
    if old:
        return error("versions", f"too old: {', '.join(old)}", install, **data)
    other = [f"{name} {there[name]} (tested with {version})" for name in names if (version := known.get(normalized(name))) not in (None, there[name])]  # fmt: skip
    if other:
        return warning(
            "versions", f"not those that were tested: {', '.join(other)}", f"if something fails: {install}", **data
        )
    return ok("versions", told, **data)


def extras(given: Surroundings) -> Finding:
    """Which optional packages there are."""
    told, data = [], {}
    for extra, (names, use) in _EXTRAS.items():
        there = installed(names)
        data[extra] = there
        words = ", ".join(f"{name} {version}" for name, version in there.items() if version is not None)
        told.append(f"{extra}: {words}" if words else f"{extra}: not installed, is for {use}")
    return ok("extras", "; ".join(told), **data)


CHECKS = (own_packages, dask, versions, extras)
