"""What a person names as data, from the file to the data set."""

from __future__ import annotations

import subprocess
import sys
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from framework import ArrayDataset, ByteText
from framework.data import Examples, Form, Task, open_examples, open_text, pictures, prepare
from framework.data.archives import read_npz
from framework.data.bundled import BUNDLED, read_bundled
from framework.data.examples import NOISE
from framework.data.tables import read_csv


def table(folder: Path, text: str) -> Path:
    (folder / "t.csv").write_text(text)
    return folder / "t.csv"


def split(data: ArrayDataset, part: str) -> tuple[np.ndarray, np.ndarray]:
    """All inputs and targets of a split."""
    size = data.size(part)
    x, y = (
        np.empty((size, *data.inputs.shape), data.inputs.dtype),
        np.empty((size, *data.targets.shape), data.targets.dtype),
    )
    data.load(part, range(size), x, y)
    return x, y


# Tables


@pytest.mark.parametrize(
    ("text", "columns", "target"),
    [
        ("a,b,c\n1,2,3\n4,5,6\n", ("a", "b"), "c"),
        ("1,2,3\n4,5,6\n", ("column 1", "column 2"), "column 3"),
        ("a;b;c\r\n1;2;3\r\n\r\n4;5;6\r\n\r\n", ("a", "b"), "c"),
        ("a\tb\tc\n1\t2\t3\n4\t5\t6", ("a", "b"), "c"),
        ('"a, in m","b",c\n"1",2,3\n 4 , 5e0,+6\n', ("a, in m", "b"), "c"),
        ("\ufeffa,b,c\n1.0,2,3.0\n4,5,6\n", ("a", "b"), "c"),
    ],
    ids=["header", "no header", "semicolons and blank lines", "tabs", "quotes and spaces", "a mark of byte order"],
)
def test_a_table_has_features_and_a_last_column_to_predict(
    tmp_path: Path, text: str, columns: tuple[str, ...], target: str
) -> None:
    found = read_csv(table(tmp_path, text))
    np.testing.assert_array_equal(found.x, [[1, 2], [4, 5]])
    np.testing.assert_array_equal(found.y, [3, 6])
    assert found.y.dtype.kind == "i"
    assert (found.columns, found.target) == (columns, target)


def test_the_target_is_the_column_of_that_name_even_if_names_are_numbers(tmp_path: Path) -> None:
    path = table(tmp_path, "0,kind,1\n1,u,2\n3,v,4\n")
    found = read_csv(path, "kind")
    np.testing.assert_array_equal(found.x, [[1, 2], [3, 4]])
    assert (found.y.tolist(), found.columns) == (["u", "v"], ("0", "1"))


@pytest.mark.parametrize(
    ("cells", "kind"), [("1 2 -3", "i"), ("1 2.0 3", "i"), ("1 2.5 3", "f"), ("1 b 3", "U"), ("1 nan 3", "U")]
)
def test_targets_are_whole_numbers_numbers_or_words_by_what_all_are(tmp_path: Path, cells: str, kind: str) -> None:
    found = read_csv(table(tmp_path, "x,y\n" + "".join(f"0,{cell}\n" for cell in cells.split())))
    assert found.y.dtype.kind == kind


FAULTS = {
    "an empty cell": ("a,b,y\n1,2,3\n4,,6\n", r"line 3, column 2 \(b\): the cell is empty"),
    "a word": ("a,b,y\n1,2,3\n4,5,6\nred,8,9\n", r"line 4, column 1 \(a\): 'red' is no finite number"),
    "not a number": ("a,b,y\n1,nan,3\n", r"line 2, column 2 \(b\): 'nan' is no finite number"),
    "infinity": ("1,2,3\n1,-inf,3\n", r"line 2, column 2: '-inf' is no finite number"),
    "after blank lines": ("a,y\n\n\n1,\n", r"line 4, column 2 \(y\): the target is missing"),
    "too few cells": ("a,b,y\n1,2,3\n4,5\n", r"line 3: 2 cells, but the first line has 3"),
    "too many cells": ("a,b,y\n1,2,3,4\n", r"line 2: 4 cells, but the first line has 3"),
    "a header alone": ("a,b,y\n", "has a header but no rows"),
    "nothing": ("", "first line has 0 cells"),
    "one column": ("a\n1\n", "first line has 1 cells"),
    "a first line of both kinds": ("1,b,y\n1,2,3\n", r"line 1: column 2 holds 'b' among numbers"),
    "a gap in the first line": ("1,,3\n1,2,3\n", r"line 1: column 2 holds '' among numbers"),
    "a column of row numbers": (",a,y\n0,1,2\n", r"column 1 has no name; if it numbers the rows.*index=False"),
    "open quotes": ('a,y\n"1,2\n', "cannot be read as CSV"),
}


@pytest.mark.parametrize("fault", FAULTS)
def test_a_table_that_cannot_be_used_is_an_error_that_names_the_place(tmp_path: Path, fault: str) -> None:
    text, message = FAULTS[fault]
    with pytest.raises(ValueError, match=message) as caught:
        read_csv(table(tmp_path, text))
    assert "t.csv" in str(caught.value)


def test_a_table_in_another_encoding_is_a_clear_error(tmp_path: Path) -> None:
    (tmp_path / "t.csv").write_bytes("größe,y\n1,2\n".encode("latin-1"))
    with pytest.raises(ValueError, match=r"t\.csv cannot be read as CSV in UTF-8"):
        read_csv(tmp_path / "t.csv")


@pytest.mark.parametrize("text", ["a,b,y\n1,2,3\n", "y,y,a\n1,2,3\n"])
def test_a_target_that_is_no_single_column_is_an_error(tmp_path: Path, text: str) -> None:
    target = "c" if "b" in text else "y"
    with pytest.raises(ValueError, match=f"no column '{target}' to predict, or several; its first line is: "):
        read_csv(table(tmp_path, text), target)


@given(
    x=st.lists(
        st.lists(st.floats(allow_nan=False, allow_infinity=False), min_size=2, max_size=2), min_size=1, max_size=9
    )
)
def test_numbers_are_read_to_the_bit(tmp_path_factory: pytest.TempPathFactory, x: list[list[float]]) -> None:
    path = table(tmp_path_factory.mktemp("t"), "a,b,y\n" + "".join(f"{a!r},{b!r},0\n" for a, b in x))
    assert read_csv(path).x.tobytes() == np.array(x).tobytes()


# Archives


@pytest.mark.parametrize("names", [("x", "y"), ("inputs", "targets"), ("x_train", "y_train"), ("X", "y")])
def test_an_archive_has_inputs_and_targets(tmp_path: Path, names: tuple[str, str]) -> None:
    x, y = np.arange(12, dtype=np.uint8).reshape(3, 4), np.array([0, 1, 0])
    np.savez(tmp_path / "a.npz", **dict(zip(names, (x, y), strict=True)), other=np.zeros(1))
    found = read_npz(tmp_path / "a.npz")
    np.testing.assert_array_equal(found.x, x)
    np.testing.assert_array_equal(found.y, y)
    assert (found.target, found.held) == (names[1], None)


@pytest.mark.parametrize("ending", ["test", "validation", "val"])
def test_an_archive_may_say_which_examples_are_held_out(tmp_path: Path, ending: str) -> None:
    generator = np.random.default_rng(0)
    x, y = generator.standard_normal((50, 3)), np.arange(50) % 5
    held = {f"x_{ending}": x[40:], f"y_{ending}": y[40:]}
    np.savez(tmp_path / "a.npz", x_train=x[:40], y_train=y[:40], **held)
    data = open_examples("m", "features", "float64", [str(tmp_path / "a.npz")])
    (train, labels), (validation, others) = split(data, "train"), split(data, "validation")
    mean, deviation = x[:40].mean(axis=0), x[:40].std(axis=0)
    np.testing.assert_allclose(train, (x[:40] - mean) / deviation, rtol=1e-12, atol=1e-12)
    np.testing.assert_allclose(validation, (x[40:] - mean) / deviation, rtol=1e-12, atol=1e-12)
    assert (labels.tolist(), others.tolist()) == (y[:40].tolist(), y[40:].tolist())


ARCHIVES: dict[str, tuple[dict[str, Any], str]] = {
    "other names": ({"a": np.zeros(3), "b": np.zeros(3)}, "must hold x and y.*but holds a, b"),
    "lengths": ({"x": np.zeros((3, 2)), "y": np.arange(4)}, "3 inputs but 4 targets"),
    "complex": ({"x": np.zeros((3, 2), complex), "y": np.arange(3)}, r"x is complex128\[3, 2\]"),
    "objects": ({"x": np.array([{}, 1], object), "y": np.arange(2)}, "cannot be used.*allow_pickle"),
    "a number": ({"x": np.zeros(()), "y": np.zeros(())}, r"x is float64\[\]"),
    "a vector": ({"x": np.zeros(9), "y": np.arange(9) % 2}, r"inputs are numbers of shape.*float64\[9\]"),
    "words": ({"x": np.array([["a"], ["b"]]), "y": np.arange(2)}, "inputs are numbers of shape"),
    "nothing in it": ({"x": np.zeros((3, 0)), "y": np.arange(3) % 2}, r"float64\[3, 0\]"),
    "no number": (
        {"x": np.array([[1.0, 2], [3, np.nan], [np.inf, 0]]), "y": np.arange(3) % 2},
        r"inputs hold nan at \[1, 1\] \(counted from 0\), the first of 2 that",
    ),
    "no number to predict": (
        {"x": np.zeros((3, 2)), "y": np.array([0.5, -np.inf, 1])},
        r"targets hold -inf at \[1\].*the first of 1 that",
    ),
    "held out examples of another shape": (
        {"x": np.zeros((3, 2)), "y": np.arange(3), "x_test": np.zeros((3, 4)), "y_test": np.arange(3)},
        r"x_test has examples float64\[4\], but those for training are float64\[2\]",
    ),
    "one class": ({"x": np.zeros((3, 2)), "y": np.full(3, 7)}, "y is 7 in every example"),
    "classes in two columns": (
        {"x": np.zeros((4, 2)), "y": np.array([["a", "b"]] * 4)},
        r"to be predicted as a number, but holds",
    ),
    "classes or amounts": (
        {"x": np.zeros((9, 2)), "y": np.arange(9)},
        "9 different whole numbers in 9 examples.*--task classification or --task regression",
    ),
}


@pytest.mark.parametrize("fault", ARCHIVES)
def test_an_archive_that_cannot_be_used_is_an_error_that_says_why(tmp_path: Path, fault: str) -> None:
    arrays, message = ARCHIVES[fault]
    np.savez(tmp_path / "a.npz", **arrays)
    with pytest.raises(ValueError, match=message) as caught:
        open_examples("m", "features", "float32", [str(tmp_path / "a.npz")])
    assert "a.npz" in str(caught.value)


@pytest.mark.parametrize("kind", ["text", "one array", "cut"])
def test_what_is_no_archive_is_an_error(tmp_path: Path, kind: str) -> None:
    path = tmp_path / "a.npz"
    np.savez(path, x=np.zeros((100, 9)), y=np.arange(100) % 2)
    with path.open("r+b") as file:
        match kind:
            case "text":
                file.write(b"no archive")
            case "one array":
                np.save(file, np.zeros(3))
            case _:
                file.truncate(path.stat().st_size // 2)
    with pytest.raises(ValueError, match=r"archive .*a\.npz cannot be used"):
        read_npz(path)


# Preparing


def examples(x: Any, y: Any, **more: Any) -> Examples:
    return Examples("a test", np.asarray(x), np.asarray(y), **more)


@given(
    counts=st.lists(st.integers(5, 40), min_size=2, max_size=5),
    words=st.booleans(),
    seed=st.integers(0, 3),
)
def test_a_fifth_of_each_class_is_held_out_and_nothing_is_lost(counts: list[int], words: bool, seed: int) -> None:
    generator = np.random.default_rng(seed)
    labels = generator.permutation(np.repeat(np.arange(len(counts)), counts))
    names = np.array([f"kind {9 - label}" for label in labels]) if words else 10 * labels - 7
    x = np.arange(len(labels), dtype=float)[:, None]
    data = prepare(examples(x, names), "features", "float64", "classification")
    held = split(data, "validation")[1]
    assert data.size("validation") == len(labels) // 5
    for label, name in enumerate(data.about["classes"]):
        assert abs(int((held == label).sum()) - int((names == name).sum()) / 5) < 1
    assert data.classes == len(counts) == len(data.about["classes"])
    found = np.concatenate([split(data, part)[0] for part in ("train", "validation")])[:, 0]
    places = np.rint(found * data.about["deviation"][0] + data.about["mean"][0]).astype(int)
    assert sorted(places.tolist()) == list(range(len(labels)))
    told = [data.about["classes"][label] for part in ("train", "validation") for label in split(data, part)[1]]
    assert told == names[places].tolist()


def test_the_split_is_the_same_each_time_and_another_for_other_sizes() -> None:
    x, y = np.random.default_rng(0).standard_normal((100, 3)), np.arange(100) % 2
    first, again = (prepare(examples(x, y), "features", "float32").describe() for _ in range(2))
    assert first == again
    assert first["sha256"] != prepare(examples(x[1:], y[1:]), "features", "float32").describe()["sha256"]


@pytest.mark.parametrize("dtype", ["float32", "float64"])
def test_features_and_amounts_are_standardised_by_the_training_split(dtype: str) -> None:
    generator = np.random.default_rng(1)
    x = generator.standard_normal((200, 4)) * [1, 1e-3, 1e3, 0] + [0, 5, -1e4, 3]
    y = 70 + 9 * generator.standard_normal(200)
    data = prepare(examples(x, y), "features", dtype)
    train, targets = split(data, "train")
    assert (data.inputs.dtype, data.targets.dtype, data.targets.shape) == (dtype, dtype, (1,))
    assert data.about["task"] == "regression"
    for columns in (train[:, :3], targets):
        np.testing.assert_allclose(columns.mean(axis=0), 0, atol=1e-5)
        np.testing.assert_allclose(columns.std(axis=0), 1, rtol=1e-5)
    assert not train[:, 3].any()  # constant: centred, and not divided by zero
    held = split(data, "validation")[0]
    assert abs(held[:, 0].mean()) > 1e-4  # by statistics of its own it would be zero
    assert data.about["target_mean"][0] == pytest.approx(70, abs=3)


@pytest.mark.parametrize(
    ("shape", "form", "expected"),
    [
        ((30, 7), "features", (7,)),
        ((30, 4, 6), "features", (24,)),
        ((30, 3, 4, 6), "features", (72,)),
        ((30, 2, 2, 2, 2), "features", (16,)),
        ((30, 4, 6), "images", (1, 4, 6)),
        ((30, 3, 4, 6), "images", (3, 4, 6)),
        ((30, 8, 6, 3), "images", (3, 8, 6)),
    ],
)
def test_inputs_have_the_form_that_the_model_takes(
    shape: tuple[int, ...], form: Form, expected: tuple[int, ...]
) -> None:
    x = np.random.default_rng(2).integers(0, 256, shape).astype(np.uint8)
    data = prepare(examples(x, np.arange(30) % 3), form, "float32")
    assert data.inputs.shape == expected
    assert data.nbytes == 30 * np.prod(expected) * 4 + 30 * 4


def test_channels_that_come_last_are_moved_with_their_pixels() -> None:
    x = np.random.default_rng(3).standard_normal((20, 3, 8, 6))
    first, last = (prepare(examples(a, np.arange(20) % 2), "images", "float64") for a in (x, np.moveaxis(x, 1, 3)))
    np.testing.assert_array_equal(first.x, last.x)


def test_images_are_scaled_by_channel_also_where_a_model_takes_features() -> None:
    x = np.random.default_rng(4).standard_normal((40, 3, 5, 5)) * [[[4.0]], [[0.5]], [[1.0]]] + [
        [[1.0]],
        [[-6.0]],
        [[0.0]],
    ]
    images, flat = (prepare(examples(x, np.arange(40) % 2), form, "float64") for form in ("images", "features"))
    np.testing.assert_array_equal(images.x.reshape(40, -1), flat.x)
    train = split(images, "train")[0]
    np.testing.assert_allclose(train.std(axis=(0, 2, 3)), 1)
    assert len(images.about["mean"]) == 3


def test_denoising_has_noise_upon_the_images_and_the_images_as_targets() -> None:
    clean = pictures(400, (1, 8, 8))
    data = prepare(examples(clean.x, clean.y), "images", "float64", "denoising")
    again = prepare(examples(clean.x, clean.y), "images", "float64", "denoising")
    assert data.describe() == again.describe()
    x, y = split(data, "train")
    assert x.shape == y.shape == (320, 1, 8, 8)
    noise = x - y
    assert noise.std() == pytest.approx(NOISE, rel=0.02)
    assert abs(np.corrcoef(noise.ravel(), y.ravel())[0, 1]) < 0.03
    assert y.std() == pytest.approx(1)
    with pytest.raises(ValueError, match="noise is taken from images, but the model takes features"):
        prepare(examples(clean.x, clean.y), "features", "float64", "denoising")


def test_images_may_be_predicted_from_images() -> None:
    x = np.random.default_rng(5).standard_normal((30, 6, 6))
    data = prepare(examples(x, 2 * x + 5), "images", "float64", "regression")
    assert data.inputs == data.targets
    np.testing.assert_allclose(data.x, data.y, rtol=0, atol=1e-9)


@pytest.mark.parametrize(
    ("y", "task"),
    [
        (np.arange(30) % 3, "classification"),
        (np.array(["u", "v"] * 15), "classification"),
        (np.arange(30) % 2 == 0, "classification"),
        (np.arange(30) / 7, "regression"),
        (np.zeros((30, 2), int), "regression"),
    ],
)
def test_the_task_is_what_the_targets_suggest(y: np.ndarray, task: Task) -> None:
    assert prepare(examples(np.ones((30, 2)), y), "features", "float32").about["task"] == task


def test_words_are_no_amounts() -> None:
    with pytest.raises(ValueError, match="predicted as a number, but holds <U1"):
        prepare(examples(np.ones((4, 2)), np.array(list("abab"))), "features", "float32", "regression")


# Sets that come with scikit-learn

SETS = {
    "digits": ((64,), 10, 1797),
    "iris": ((4,), 3, 150),
    "wine": ((13,), 3, 178),
    "breast-cancer": ((30,), 2, 569),
    "diabetes": ((10,), None, 442),
}


@pytest.mark.parametrize("name", BUNDLED)
def test_a_set_that_comes_with_scikit_learn_is_there_by_name(name: str) -> None:
    pytest.importorskip("sklearn")
    shape, classes, size = SETS[name]
    data = open_examples("m", "features", "float32", [name])
    assert data.inputs.shape == shape
    assert data.classes == classes
    assert data.size("train") + data.size("validation") == size
    assert data.targets.dtype.kind == ("f" if classes is None else "i")


def test_digits_are_images_and_scikit_learn_is_in_another_process() -> None:
    pytest.importorskip("sklearn")
    code = (
        "import sys; from framework.data import open_examples\n"
        "data = open_examples('m', 'images', 'float32', ['digits'])\n"
        "print(data.inputs, 'sklearn' in sys.modules, 'scipy' in sys.modules)"
    )
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert done.stdout.split("\n")[0] == "float32[1, 8, 8] False False"


def test_without_scikit_learn_an_error_tells_how_to_install_it(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("framework.data.bundled.importlib.util.find_spec", lambda name: None)
    with pytest.raises(
        ValueError, match=r"'iris' comes with scikit-learn, which is not installed.*pip install scikit-learn"
    ):
        read_bundled("iris")


def test_a_set_that_cannot_be_read_is_an_error_with_the_last_words(monkeypatch: pytest.MonkeyPatch) -> None:
    pytest.importorskip("sklearn")
    monkeypatch.setitem(BUNDLED, "lost", "load_lost")
    with pytest.raises(ValueError, match="cannot load the data set 'lost': AttributeError"):
        read_bundled("lost")


# Which is which


def test_a_folder_of_the_name_of_a_set_is_meant_by_its_path(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    (tmp_path / "digits").mkdir()
    (tmp_path / "digits" / "a.txt").write_text("text " * 50)
    with pytest.raises(
        ValueError, match=r"m reads text, but digits is a set of examples; a folder of that name is \./digits"
    ):
        open_text("m", 4, ["digits"])
    assert isinstance(open_text("m", 4, ["./digits"]), ByteText)


@pytest.mark.parametrize(
    ("sources", "error", "message"),
    [
        (["nothing.csv"], FileNotFoundError, "no data nothing.csv: name a file, a folder of text, or one of digits"),
        (["a.txt"], ValueError, "m takes examples of numbers, but a.txt is text; name a CSV or NPZ file, or one of"),
        (["."], ValueError, r"m takes examples of numbers, but \. is text"),
        (["t.csv", "t.csv"], ValueError, "one set of examples, but got t.csv, t.csv"),
    ],
)
def test_what_is_no_set_of_examples_is_an_error(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, sources: list[str], error: type[Exception], message: str
) -> None:
    monkeypatch.chdir(tmp_path)
    (tmp_path / "a.txt").write_text("text")
    table(tmp_path, "1,2\n")
    with pytest.raises(error, match=message):
        open_examples("m", "features", "float32", sources)


def test_a_target_is_for_tables_alone(tmp_path: Path) -> None:
    np.savez(tmp_path / "a.npz", x=np.zeros((4, 2)), y=np.arange(4) % 2)
    with pytest.raises(ValueError, match=r"a target is a column of a table, but .*is an archive of arrays"):
        open_examples("m", "features", "float32", [str(tmp_path / "a.npz")], target="y")


@pytest.mark.parametrize("name", ["t.csv", "a.npz"])
def test_text_models_refuse_what_is_no_text(tmp_path: Path, name: str) -> None:
    (tmp_path / name).write_text("1,2")
    with pytest.raises(ValueError, match=rf"m reads text, but .*{name} is an? "):
        open_text("m", 4, [str(tmp_path / name)])
