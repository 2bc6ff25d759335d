"""From what a person names as data to a data set for a model."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from pathlib import Path

from framework.data.archives import read_npz
from framework.data.arrays import ArrayDataset
from framework.data.bundled import BUNDLED, read_bundled
from framework.data.examples import Examples, Form, Task, prepare
from framework.data.tables import read_csv
from framework.data.text import ByteText

_READERS: dict[str, Callable[[Path, str | None], Examples]] = {
    "a table": read_csv,
    "an archive of arrays": lambda path, target: read_npz(path),
}
_KINDS = {".csv": "a table", ".tsv": "a table", ".npz": "an archive of arrays"}
_KNOWN = f"a CSV or NPZ file, or one of {', '.join(BUNDLED)}"


def kind_of(source: str) -> str:
    """What a source is: a set that comes with scikit-learn if it has the name of one, else what its ending says, else text.

    Raises:
        FileNotFoundError: There is no such file, folder or set.
    """
    if source in BUNDLED:
        return "a set of examples"
    path = Path(source)
    if not path.exists():
        raise FileNotFoundError(
            f"there is no data {source}: name a file, a folder of text, or one of {', '.join(BUNDLED)}"
        )
    return "text" if path.is_dir() else _KINDS.get(path.suffix.lower(), "text")


def open_text(model: str, window: int, sources: Sequence[str]) -> ByteText:
    """Opens files and folders of text, or the default text, for a model that reads windows of bytes.

    Raises:
        FileNotFoundError: There is no such file or folder.
        ValueError: A source is no text, or there is too little of it.
    """
    for source in sources:
        if (kind := kind_of(source)) != "text":
            hint = f"; a folder of that name is ./{source}" if source in BUNDLED else ""
            raise ValueError(
                f"{model} reads text, but {source} is {kind}{hint}; name files or folders of text, or another model, as mlp-small is"
            )
    return ByteText(sources, window)


def open_examples(
    model: str, form: Form, dtype: str, sources: Sequence[str], target: str | None = None, task: Task | None = None
) -> ArrayDataset:
    """Reads a set of examples of numbers; see `framework.data.examples.prepare`.

    Args:
        model: The model's name.
        form: What the model takes.
        dtype: The model's.
        sources: A CSV or NPZ file, or the name of a set that comes with scikit-learn; one alone.
        target: The column of a table to predict; None: the last one.
        task: What is learned; None: what is evident.

    Raises:
        FileNotFoundError: There is no such file.
        ValueError: The source is of another kind, or its examples do not fit the model.
    """
    if len(sources) != 1:
        raise ValueError(f"{model} is trained on one set of examples, but got {', '.join(sources)}; name {_KNOWN}")
    (source,) = sources
    kind = kind_of(source)
    if kind == "text":
        raise ValueError(f"{model} takes examples of numbers, but {source} is text; name {_KNOWN}, or a model of text")
    if target is not None and kind != "a table":
        raise ValueError(f"a target is a column of a table, but {source} is {kind}; leave --target away")
    examples = read_bundled(source) if source in BUNDLED else _READERS[kind](Path(source), target)
    return prepare(examples, form, dtype, task)
