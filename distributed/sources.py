"""The code of a run: which files it is, whether all nodes have the same, and a copy of it for those that have none."""

from __future__ import annotations

import hashlib
import importlib.util
import shutil
import sys
import sysconfig
from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path

from framework.sizes import format_size

#: Retape itself.
PACKAGES = ("framework", "checkpointing", "distributed")
#: Folders, and what their names end with, that are no code: they stay behind.
EXCLUDED = frozenset({
    ".git", ".hg", ".svn", ".venv", "venv", "env", "node_modules", "runs", "build", "dist", "docs", "__pycache__", ".pytest_cache", ".mypy_cache",
    ".ruff_cache", ".hypothesis", ".ipynb_checkpoints", ".tox", ".nox", ".idea", ".vscode",
})  # fmt: skip
EXCLUDED_ENDINGS = (".egg-info", ".dist-info")
#: Files beside the code that are larger are taken for data, which the driver reads and workers are sent.
MOST_NBYTES = 2**20
#: Of all that is shipped; Ray keeps it in the memory of the head.
_MOST_ALL_NBYTES = 100 * 2**20
#: Modules of the machine or of the moment, which nobody imports by name.
_APART = ("__main__", "__mp_main__", "sitecustomize", "usercustomize")
#: Digits of a hash: enough to tell files from each other.
_DIGITS = 16


def own_modules() -> tuple[str, ...]:
    """Returns a person's own modules that this process has imported, by their outermost names.

    Those are the ones that belong neither to Python, nor to an installed package, nor to Retape.
    """
    stdlib = {Path(sysconfig.get_paths()[name]).resolve() for name in ("stdlib", "platstdlib")}
    root = _root()
    ours = [root / name for name in (*PACKAGES, "scripts")]
    found = set()
    for name, module in list(sys.modules.items()):
        file, top = getattr(module, "__file__", None), name.partition(".")[0]
        if not file or top in (*PACKAGES, *_APART) or not file.endswith(".py"):
            continue
        path = Path(file).resolve()
        environment = {"site-packages", "dist-packages"} & {*path.parts} or any(map(path.is_relative_to, stdlib))
        if not environment and not any(map(path.is_relative_to, ours)) and _place(top) is not None:
            found.add(top)
    return tuple(sorted(found))


def sources(own: Sequence[str] = ()) -> dict[str, str]:
    """Returns a hash of each Python file of Retape and of further modules, as this process would import them.

    Args:
        own: The outermost names of the further modules. One that is not there has no files.

    Returns:
        By path below the folder that the package is in, as ``distributed/trainer.py``.
    """
    return {
        name: hashlib.sha256(path.read_bytes()).hexdigest()[:_DIGITS]
        for module in (*PACKAGES, *own)
        for name, path in _files(module)
        if path.suffix == ".py"
    }


def different(here: Mapping[str, str], there: Mapping[str, str]) -> list[str]:
    """Returns the files that differ or that one side has not.

    >>> different({"a.py": "1", "b.py": "2"}, {"a.py": "1", "b.py": "3", "c.py": "4"})
    ['b.py', 'c.py']
    """
    return sorted(name for name in {*here, *there} if here.get(name) != there.get(name))


def collect(folder: Path, own: Sequence[str] = ()) -> int:
    """Copies the code into a folder, from which a node without it can import it.

    Args:
        folder: Where to; empty.
        own: See `sources`. Of their packages all files go along that are not large and in no folder of `EXCLUDED`.

    Returns:
        How many bytes it is.

    Raises:
        ValueError: It is so much that it must be more than code.
    """
    sizes: dict[str, int] = {}
    total = 0
    for module in (*PACKAGES, *own):
        for name, path in _files(module):
            sizes[name] = path.stat().st_size
            total += sizes[name]
            if total > _MOST_ALL_NBYTES:
                heaviest = sorted(sizes, key=sizes.__getitem__)[-3:]
                raise ValueError(
                    f"the code to be shipped to the workers is more than {format_size(_MOST_ALL_NBYTES)}, {', '.join(heaviest)} among it; "
                    "keep your own modules in a folder of their own, apart from data"
                )
            target = folder / name
            target.parent.mkdir(parents=True, exist_ok=True)
            shutil.copyfile(path, target)
    return total


def _root() -> Path:
    return Path(__file__).resolve().parents[1]


def _place(module: str) -> Path | None:
    """Where a module is: a file, or the folder of a package; None if it is not there."""
    if module in PACKAGES:
        return _root() / module
    try:
        spec = importlib.util.find_spec(module)
    except (ImportError, ValueError):
        return None
    if spec is None:
        return None
    if spec.submodule_search_locations:
        return Path(next(iter(spec.submodule_search_locations))).resolve()
    return Path(spec.origin).resolve() if spec.origin and spec.origin.endswith(".py") else None


def _files(module: str) -> Iterator[tuple[str, Path]]:
    """Yields the files of a module, each with its name below the folder that the module is in."""
    place = _place(module)
    if place is None:
        return
    if place.is_file():
        yield place.name, place
        return
    for path in sorted(place.rglob("*")):
        inner = path.relative_to(place)
        if any(map(_excluded, inner.parts[:-1])) or not path.is_file() or path.name.startswith("."):
            continue  # Ray would leave out what a .gitignore names
        if path.suffix == ".py" or (path.suffix != ".pyc" and path.stat().st_size <= MOST_NBYTES):
            yield str(Path(module) / inner), path


def _excluded(folder: str) -> bool:
    return folder in EXCLUDED or folder.endswith(EXCLUDED_ENDINGS)
