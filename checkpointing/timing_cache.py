"""Measured times, remembered in a file of the user's cache folder: one file for each machine, set of libraries, and number of threads.

``$XDG_CACHE_HOME/retape/times-HASH.json`` (``~/.cache`` where the variable is not set) is one object: `format`, `version`, `machine` (what
the hash is of) and `times`, which has for each layer in words, with its shapes, ``[forward, backward]`` in seconds. It can be deleted at any time.
"""

from __future__ import annotations

import functools
import hashlib
import importlib.metadata
import json
import os
import platform
import tempfile
import warnings
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import numpy as np
from threadpoolctl import threadpool_info

import framework
from checkpointing.costs import Seconds
from checkpointing.json_fields import Fields, listed, mapped, seconds

FORMAT, VERSION = "retape.times", 1

Machine = dict[str, Any]


def machine(threads: int) -> Machine:
    """Returns all that times depend on besides layers and shapes: processor, libraries, this very code, and threads."""
    blas = [pool for pool in threadpool_info() if pool["user_api"] == "blas"]
    return {
        "processor": _processor(),
        "cores": os.cpu_count(),
        "threads": threads,
        "python": platform.python_version(),
        "numpy": np.__version__,
        "blas": [
            " ".join(str(pool.get(name)) for name in ("internal_api", "version", "architecture")) for pool in blas
        ],
        "retape": _own_version(),
    }


def told(machine: Machine) -> str:
    """The machine in a few words."""
    threads = machine["threads"]
    return f"{machine['processor']}, {threads} thread{'s' * (threads != 1)}, NumPy {machine['numpy']}"


def folder() -> Path:
    """The folder of the files; it need not exist."""
    given = Path(os.environ.get("XDG_CACHE_HOME", ""))
    return (given if given.is_absolute() else Path.home() / ".cache") / "retape"


def path_of(machine: Machine) -> Path:
    """The file of a machine."""
    return folder() / f"times-{hashlib.sha256(json.dumps(machine, sort_keys=True).encode()).hexdigest()[:16]}.json"


def read(machine: Machine) -> dict[str, Seconds]:
    """Returns the times that are remembered of a machine; a file that cannot be read is told of and counts as none."""
    path = path_of(machine)
    try:
        file = Fields(json.loads(path.read_text()), "the file")
        if (file.take("format", _any), file.take("version", _any)) != (FORMAT, VERSION):
            raise ValueError("it is of another format or version")
        pairs = file.take("times", mapped(listed(seconds)))
        return {name: Seconds(*pair) for name, pair in pairs.items()}
    except FileNotFoundError:
        return {}
    except (OSError, ValueError, TypeError) as error:
        warnings.warn(f"times are measured again, since {path} cannot be read: {error}", stacklevel=2)
        return {}


def add(machine: Machine, times: Mapping[str, Seconds]) -> None:
    """Remembers times; where nothing can be written, that is told, and no more."""
    path = path_of(machine)
    known = read(machine) | dict(times)
    data = {"format": FORMAT, "version": VERSION, "machine": machine, "times": known}
    try:
        path.parent.mkdir(parents=True, exist_ok=True)
        # Aside, then renamed, so that another process never reads half a file.
        with tempfile.NamedTemporaryFile("w", dir=path.parent, suffix=".part", delete=False) as file:
            try:
                json.dump(data, file, indent=1)
            except BaseException:
                Path(file.name).unlink()
                raise
        Path(file.name).replace(path)
    except OSError as error:
        warnings.warn(
            f"measured times cannot be remembered in {path}: {error}; name another folder in XDG_CACHE_HOME",
            stacklevel=2,
        )


def _processor() -> str:
    try:
        lines = Path("/proc/cpuinfo").read_text().splitlines()
    except OSError:
        lines = []
    names = [line.partition(":")[2].strip() for line in lines if line.startswith(("model name", "Hardware"))]
    return names[0] if names else platform.machine()


@functools.cache
def _own_version() -> str:
    """The version, and a hash of the code that is timed: a faster kernel makes old times wrong."""
    root = Path(framework.__file__).parent
    digest = hashlib.sha256()
    for path in sorted(root.rglob("*.py")):
        digest.update(path.read_bytes())
    return f"{importlib.metadata.version('retape')} {digest.hexdigest()[:12]}"


def _any(value: Any, where: str) -> Any:
    return value
