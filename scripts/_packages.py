"""Whether Retape's own packages, and those that it needs, are what Python finds; it needs nothing but Python itself."""

from __future__ import annotations

import importlib.util
import os
import sys
from collections.abc import Mapping
from pathlib import Path

#: Where this program's own packages lie, if it runs from a copy of the repository.
ROOT = Path(__file__).resolve().parents[1]
#: The oldest Python that they run on.
OLDEST = (3, 11)
OWN = ("framework", "checkpointing", "distributed")
#: What every program imports, by import name.
NEEDED = {
    "numpy": "numpy",
    "psutil": "psutil",
    "rich": "rich",
    "tyro": "tyro",
    "tomli_w": "tomli-w",
    "threadpoolctl": "threadpoolctl",
    "safetensors": "safetensors",
    "cloudpickle": "cloudpickle",
}


def homes() -> dict[str, Path | None]:
    """Returns the folder that each own package would be imported from; None where there is none."""
    found: dict[str, Path | None] = {}
    for name in OWN:
        spec = importlib.util.find_spec(name)
        places = [*(spec.submodule_search_locations or ())] if spec is not None else []
        found[name] = Path(spec.origin).parent.parent if spec is not None and spec.origin else Path(places[0]).parent if places else None  # fmt: skip
    return found


def clash(found: Mapping[str, Path | None]) -> str | None:
    """Says what is wrong with the folders that own packages come from; None where nothing is."""
    if missing := [name for name, home in found.items() if home is None]:
        return f"cannot import {', '.join(missing)} with {sys.executable}; {_remedy('pip install -e .')}"
    if len(set(found.values())) > 1:
        where = "\n".join(f"  {name}: {home}" for name, home in found.items())
        return (
            "the packages framework, checkpointing and distributed come from different places, so one of them is foreign "
            f"(Dask's scheduler is also named distributed):\n{where}\nUse an environment of Retape's own: make install"
        )
    return None


def missing() -> list[str]:
    """Returns which packages that every program needs are not installed, under the names that pip knows."""
    return [package for name, package in NEEDED.items() if importlib.util.find_spec(name) is None]


def fault() -> str | None:
    """Says why no program can run here; None where each can."""
    if sys.version_info < OLDEST:
        return f"Python {sys.version.split()[0]} is too old; make an environment with {'.'.join(map(str, OLDEST))} or newer: make install"
    if (told := clash(homes())) is not None:
        return told
    if absent := missing():
        told = f"{', '.join(absent)} {'is' if len(absent) == 1 else 'are'} not installed for {sys.executable}"
        return f"{told}; {_remedy(f'pip install {chr(32).join(absent)}')}"
    return None


def _remedy(command: str) -> str:
    """The environment that `make` has made, where another Python runs this; else how to install what is missing."""
    made = ROOT / ".venv" / "bin" / "python"
    if made.exists() and Path(sys.prefix).resolve() != made.parents[1].resolve():
        return f"run this with {os.path.relpath(made)} instead, which has what it needs"
    return f"install what it needs into this environment: {command}"
