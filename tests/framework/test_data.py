"""Data: windows of text, arrays, and the order of an epoch."""

from __future__ import annotations

import hashlib
import math
import pickle
from collections import Counter
from itertools import pairwise
from pathlib import Path

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from framework import ArrayDataset, ByteText, EpochOrder, Ledger, Spec
from framework.data import Batches, LastBatch, clusters, order_dtype, spread


def noise(size: int, seed: int = 0) -> bytes:
    return np.random.default_rng([size, seed]).integers(0, 256, size, dtype=np.uint8).tobytes()


def write(folder: Path, files: dict[str, bytes]) -> None:
    for name, content in files.items():
        (folder / name).parent.mkdir(parents=True, exist_ok=True)
        (folder / name).write_bytes(content)


def windows(text: ByteText, split: str) -> list[bytes]:
    """Each window of a split, joined from its input and the last byte of its targets."""
    count = text.size(split)
    x, targets = (np.zeros((count, text.window), np.uint8) for _ in range(2))
    text.load(split, range(count), x, targets)
    assert (x[:, 1:] == targets[:, :-1]).all()
    return [bytes(row) + bytes(target[-1:]) for row, target in zip(x, targets, strict=True)]


def cut(content: bytes, window: int) -> list[bytes]:
    """A text in pieces of window + 1 bytes, without the incomplete last one."""
    return [content[i : i + window + 1] for i in range(0, len(content) - window, window + 1)]


@pytest.mark.parametrize(("size", "window"), [(1000, 7), (1000, 49), (1001, 1), (999, 10), (137, 63), (22, 10)])
def test_the_last_part_of_a_single_file_is_held_out(tmp_path: Path, size: int, window: int) -> None:
    content = noise(size)
    write(tmp_path, {"text": content})
    text = ByteText([tmp_path / "text"], window)
    held = max(window + 1, math.ceil(size / 20))
    assert windows(text, "train") == cut(content[:-held], window)
    assert windows(text, "validation") == cut(content[-held:], window)


@pytest.mark.parametrize("count", [2, 19])
def test_windows_go_across_the_borders_of_files_and_do_not_overlap(tmp_path: Path, count: int) -> None:
    files = {f"{i:02d}.txt": noise(53 + 11 * i, seed=i) for i in range(count)}
    write(tmp_path, files)
    content = b"".join(files.values())
    text = ByteText([tmp_path], 9)
    held = max(10, math.ceil(len(content) / 20))
    assert windows(text, "train") == cut(content[:-held], 9)
    assert windows(text, "validation") == cut(content[-held:], 9)


@pytest.mark.parametrize("count", [20, 39, 40, 65])
def test_of_twenty_files_or_more_every_twentieth_is_held_out_whole(tmp_path: Path, count: int) -> None:
    files = {f"{i:02d}.txt": noise(5 + i, seed=i) for i in range(1, count + 1)}
    write(tmp_path, files | {"empty": b""})
    parts = list(files.values())
    text = ByteText([tmp_path], 6)
    assert windows(text, "validation") == cut(b"".join(parts[19::20]), 6)
    assert windows(text, "train") == cut(b"".join(p for i, p in enumerate(parts, 1) if i % 20), 6)


def test_files_are_joined_by_sorted_relative_path_without_hidden_ones_and_caches(tmp_path: Path) -> None:
    kept = {name: noise(40, seed=i) for i, name in enumerate(["B.txt", "a-b/z", "a.txt", "a/b/c", "a/d", "zq"])}
    skipped = {name: noise(40, seed=9) for name in [".hidden", ".git/config", "a/.secret/x", "a/__pycache__/y.pyc"]}
    write(tmp_path, kept | skipped)
    text = ByteText([tmp_path], 3)
    content = b"".join(kept[name] for name in sorted(kept))
    assert windows(text, "train") + windows(text, "validation") == cut(content[:-12], 3) + cut(content[-12:], 3)


def test_examples_may_be_loaded_in_any_order(tmp_path: Path) -> None:
    content = noise(500)
    write(tmp_path, {"text": content})
    text = ByteText([tmp_path / "text"], 4)
    x, targets = np.zeros((3, 4), np.uint8), np.zeros((3, 4), np.uint8)
    text.load("train", np.array([7, 0, 7]), x, targets)
    assert [bytes(row) for row in x] == [content[35:39], content[0:4], content[35:39]]
    assert [bytes(row) for row in targets] == [content[36:40], content[1:5], content[36:40]]


def test_a_text_is_pickled_by_its_place_and_reads_the_same_elsewhere(tmp_path: Path) -> None:
    content = noise(5000)
    write(tmp_path, {"text": content})
    text = ByteText([tmp_path / "text"], 10)
    expected = windows(text, "train")  # its file is mapped now
    pickled = pickle.dumps(text)
    assert len(pickled) < len(content)
    copy = pickle.loads(pickled)
    assert windows(copy, "train") == expected
    assert copy.describe() == text.describe()


def test_a_relative_path_is_found_from_another_folder_too(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    write(tmp_path, {"text": noise(100), "elsewhere/x": b""})
    monkeypatch.chdir(tmp_path)
    text = ByteText(["text"], 4)
    monkeypatch.chdir(tmp_path / "elsewhere")
    assert windows(text, "train") == cut(noise(100)[:-5], 4)


@pytest.mark.parametrize("size", [499, 501, 0], ids=["shorter", "longer", "empty"])
def test_a_file_that_changed_after_the_set_up_is_a_clear_error(tmp_path: Path, size: int) -> None:
    write(tmp_path, {"text": noise(500)})
    text = ByteText([tmp_path / "text"], 4)
    write(tmp_path, {"text": noise(size)})
    with pytest.raises(ValueError, match=rf"text has {size} bytes, but had 500 when the run was set up"):
        windows(text, "train")


def test_a_missing_path_is_an_error_that_names_it(tmp_path: Path) -> None:
    with pytest.raises(FileNotFoundError, match=r"no text file or folder .*nothing"):
        ByteText([tmp_path / "nothing"])


@pytest.mark.parametrize(
    ("files", "path", "message"),
    [
        ({"empty": b""}, "empty", "text file .*empty is empty"),
        ({"folder/.hidden": b"abc"}, "folder", "folder .*folder holds no file"),
        ({"folder/a": b""}, "folder", "0 bytes"),
        ({"short": b"abcdefgh"}, "short", r"3 of them for training and 5 for validation, shorter than one window of 5"),
        ({"tiny": b"abc"}, "tiny", r"0 of them for training"),
        (
            {f"f/{i:02d}": b"ab" for i in range(40)},
            "f",
            r"4 for validation, shorter than one window of 5",
        ),
    ],
)
def test_a_text_too_short_for_both_splits_is_an_error(tmp_path: Path, files: dict, path: str, message: str) -> None:
    write(tmp_path, files)
    with pytest.raises(ValueError, match=message):
        ByteText([tmp_path / path], 4)


def test_a_text_of_one_window_for_each_split_is_enough(tmp_path: Path) -> None:
    write(tmp_path, {"text": b"abcdeABCDE"})
    text = ByteText([tmp_path / "text"], 4)
    assert (windows(text, "train"), windows(text, "validation")) == ([b"abcde"], [b"ABCDE"])


def test_a_text_takes_no_memory_and_describes_itself(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("framework.data.text._CHUNK", 37)
    content = noise(2000)
    write(tmp_path, {"a": content[:1200], "b": content[1200:]})
    text = ByteText([tmp_path], 9)
    assert text.nbytes == 0
    assert text.inputs == text.targets == Spec.of((9,), "uint8")
    found = text.describe()
    assert found["source"] == [str(tmp_path)]
    assert (found["train_bytes"], found["validation_bytes"], found["window"]) == (1900, 100, 9)
    assert found["sha256"] == hashlib.sha256(content).hexdigest()


@pytest.mark.parametrize("count", [1, 3, 25])
def test_the_description_counts_each_file_once(tmp_path: Path, count: int) -> None:
    write(tmp_path, {f"{i:02d}": noise(100, seed=i) for i in range(count)})
    assert ByteText([tmp_path], 4).describe()["files"] == count


def test_the_default_text_is_the_standard_library_without_packages_and_tests(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    kept = {name: noise(60, seed=i) for i, name in enumerate(["abc.py", "json/decoder.py", "testing.py", "zip/app.py"])}
    skipped = [
        "site-packages/numpy/core.py",
        "dist-packages/six.py",
        "test/test_abc.py",
        "json/tests/test_decoder.py",
        "idlelib/idle_test/test_x.py",
        "json/__pycache__/decoder.py",
        ".hidden.py",
        "readme.txt",
        "lib-dynload/x.so",
    ]
    write(tmp_path, kept | {name: noise(60, seed=99) for name in skipped})
    monkeypatch.setattr("framework.data.text.sysconfig.get_paths", lambda: {"stdlib": str(tmp_path)})
    text = ByteText(window=5)
    content = b"".join(kept.values())
    assert windows(text, "train") + windows(text, "validation") == cut(content[:-12], 5) + cut(content[-12:], 5)
    assert text.describe()["source"] == ["the standard library of Python"]


def test_the_default_text_is_there_and_long_enough_to_train_on() -> None:
    text = ByteText()
    assert text.window == 128
    assert text.size("train") > 10_000
    assert text.size("validation") > 500
    x, targets = np.zeros((50, 128), np.uint8), np.zeros((50, 128), np.uint8)
    text.load("train", spread(text.size("train"), 50), x, targets)
    # Program text is nearly all printable ASCII and line ends.
    assert np.isin(x, [9, 10, 13, *range(32, 127)]).mean() > 0.95


@pytest.mark.parametrize("chunk", [2**20, 37, 1])
def test_entropies_are_those_of_naive_counts(tmp_path: Path, monkeypatch: pytest.MonkeyPatch, chunk: int) -> None:
    monkeypatch.setattr("framework.data.text._CHUNK", chunk)
    content = (b"the quick brown fox jumps over the lazy dog. " * 20)[:800] + b"pack my box with five dozen jugs"
    write(tmp_path, {"text": content})
    text, window = ByteText([tmp_path / "text"], 5), 5
    held = math.ceil(len(content) / 20)
    train = content[:-held]
    singles = Counter(train)
    entropy = -sum(n / len(train) * math.log(n / len(train)) for n in singles.values())
    pairs, firsts = Counter(pairwise(train)), Counter(train[:-1])
    chosen = [0, 2, 5]
    validation = cut(content[-held:], window)
    losses = [
        -math.log((pairs[a, b] + 1) / (firsts[a] + 256)) for index in chosen for a, b in pairwise(validation[index])
    ]
    found = text.entropies(chosen)
    assert found == pytest.approx((entropy, sum(losses) / len(losses)), rel=1e-12)


# Orders


def epochs(size: int, batch: int, seed: int, count: int) -> list[list[int]]:
    """The examples of each of some epochs, in order."""
    order, steps = EpochOrder(Batches(size, batch), seed, Ledger()), size // batch
    return [
        [i for step in range(epoch * steps, (epoch + 1) * steps) for i in order.indices(step, 0, batch)]
        for epoch in range(count)
    ]


@given(size=st.integers(1, 300), seed=st.integers(0, 5), data=st.data())
def test_an_epoch_draws_each_example_at_most_once_and_all_but_an_incomplete_batch(
    size: int, seed: int, data: st.DataObject
) -> None:
    batch = data.draw(st.integers(1, size), "batch")
    for seen in epochs(size, batch, seed, 2):
        assert len(seen) == size // batch * batch
        assert len(set(seen)) == len(seen)
        assert set(seen) <= set(range(size))


def test_a_whole_epoch_is_a_permutation_also_beyond_the_pieces_it_is_filled_in() -> None:
    (seen,) = epochs(10_000, 1000, 0, 1)
    assert sorted(seen) == list(range(10_000))
    assert seen != list(range(10_000))


def test_each_epoch_and_each_seed_has_an_order_of_its_own() -> None:
    orders = [tuple(seen) for seed in range(4) for seen in epochs(50, 10, seed, 4)]
    assert len(set(orders)) == len(orders)


@given(steps=st.lists(st.integers(0, 40), min_size=1, max_size=8))
def test_the_order_is_a_function_of_seed_and_step_whatever_was_drawn_before(steps: list[int]) -> None:
    order = EpochOrder(Batches(37, 5), 3, Ledger())
    for step in steps:
        fresh = EpochOrder(Batches(37, 5), 3, Ledger())
        assert order.indices(step, 0, 5) == fresh.indices(step, 0, 5)


def test_a_numpy_integer_is_a_step_like_any_other() -> None:
    plain, numpy = (EpochOrder(Batches(37, 5), 3, Ledger()).indices(step, 0, 5) for step in (9, np.int64(9)))
    assert plain == numpy


@given(st.lists(st.integers(0, 12), max_size=4).map(sorted))
def test_any_sharding_of_a_batch_gives_the_same_examples(cuts: list[int]) -> None:
    whole = EpochOrder(Batches(40, 12), 1, Ledger())
    for step in (0, 2, 3, 7):
        pieces: list[int] = []
        for first, last in zip([0, *cuts], [*cuts, 12], strict=True):
            pieces += EpochOrder(Batches(40, 12), 1, Ledger()).indices(step, first, last - first)
        assert pieces == whole.indices(step, 0, 12)


def test_the_order_is_one_array_of_the_data() -> None:
    ledger = Ledger()
    order = EpochOrder(Batches(1000, 10), 0, ledger)
    for step in (0, 150, 320):
        assert len(order.indices(step, 0, 10)) == 10
    assert ledger.holders() == [("data", "epoch order", 4000)]
    assert ledger.peak == 4000
    assert order_dtype(1000).itemsize == order_dtype(2**31 - 1).itemsize == 4
    assert order_dtype(2**31).itemsize == 8


def test_a_batch_larger_than_the_data_is_an_error() -> None:
    with pytest.raises(ValueError, match=r"batch of 11 examples is larger than the 10.*lower --batch"):
        Batches(10, 11)


@given(size=st.integers(1, 50), batch=st.integers(1, 30), last=st.sampled_from(["drop", "pad"]), data=st.data())
def test_batches_hold_each_place_once_and_padding_after_them(
    size: int, batch: int, last: LastBatch, data: st.DataObject
) -> None:
    if last == "drop":
        batch = min(batch, size)
    batches, found = Batches(size, batch, last), list[int]()
    cut = data.draw(st.integers(0, batch), "cut")
    for number in range(len(batches)):
        places = batches.places(number, 0, batch)
        assert places == batches.places(number, 0, cut) + batches.places(number, cut, batch - cut)
        true = batches.true(number, 0, batch)
        assert true == batches.true(number, 0, cut) + batches.true(number, cut, batch - cut)
        assert true == batch or (last == "pad" and number + 1 == len(batches))
        found += places[:true]
        assert all(0 <= place < size for place in places)
    assert found == list(range(size if last == "pad" else size // batch * batch))
    assert batches.padded == (len(batches) * batch > len(found))


# Arrays


def test_the_last_examples_of_arrays_are_held_out() -> None:
    x, y = np.arange(40.0).reshape(20, 2), np.arange(20)
    data = ArrayDataset(x, y, validation=0.25)
    assert (data.size("train"), data.size("validation")) == (15, 5)
    assert (data.inputs, data.targets) == (Spec.of((2,), "float64"), Spec.of((), "int64"))
    assert data.nbytes == x.nbytes + y.nbytes
    for split, indices, expected in [("train", [14, 0], [14, 0]), ("validation", [0, 4], [15, 19])]:
        found, targets = np.empty((2, 2)), np.empty(2, np.int64)
        data.load(split, indices, found, targets)
        np.testing.assert_array_equal(found, x[expected])
        np.testing.assert_array_equal(targets, expected)


def test_arrays_describe_themselves_by_content() -> None:
    x, y = np.arange(40.0).reshape(20, 2), np.arange(20)
    found = ArrayDataset(x, y).describe()
    assert found == {
        "kind": "arrays",
        "train_examples": 18,
        "validation_examples": 2,
        "sha256": hashlib.sha256(x.tobytes() + y.tobytes()).hexdigest(),
    }
    assert ArrayDataset(x + 1, y).describe()["sha256"] != found["sha256"]


@pytest.mark.parametrize(
    ("x", "y", "validation", "message"),
    [
        (np.zeros((3, 2)), np.zeros(4), 0.5, "one length, but got 3 and 4"),
        (np.zeros((1, 2)), np.zeros(1), 0.5, "leave a split empty"),
        (np.zeros((3, 2)), np.zeros(3), 0.0, "leave a split empty"),
        (np.zeros((3, 2)), np.zeros(3), 1.0, "leave a split empty"),
        (np.zeros((0, 2)), np.zeros(0), 0.1, "leave a split empty"),
    ],
)
def test_arrays_that_do_not_fit_are_an_error(x: np.ndarray, y: np.ndarray, validation: float, message: str) -> None:
    with pytest.raises(ValueError, match=message):
        ArrayDataset(x, y, validation)


@pytest.mark.parametrize("kind", ["text", "arrays"])
@pytest.mark.parametrize(("split", "past"), [("train", 0), ("validation", 0), ("train", None), ("validation", None)])
def test_an_example_outside_its_split_is_an_error(tmp_path: Path, kind: str, split: str, past: int | None) -> None:
    write(tmp_path, {"text": noise(100)})
    data = ByteText([tmp_path / "text"], 4) if kind == "text" else ArrayDataset(np.zeros((20, 4)), np.zeros((20, 4)))
    x, targets = (np.empty((1, 4), data.inputs.dtype) for _ in range(2))
    with pytest.raises((IndexError, ValueError)):
        data.load(split, [-1 if past is None else data.size(split) + past], x, targets)


def test_clusters_are_a_function_of_the_seed_with_every_class() -> None:
    first, same, other = clusters(500, 6, 4), clusters(500, 6, 4), clusters(500, 6, 4, seed=1)
    assert first.describe() == same.describe()
    assert first.describe() != other.describe()
    assert first.inputs == Spec.of((6,), "float32")
    assert set(first.y.tolist()) == {0, 1, 2, 3}
    centres = np.stack([first.x[first.y == label].mean(axis=0) for label in range(4)])
    nearest = np.square(first.x[:, None] - centres).sum(axis=2).argmin(axis=1)
    # Guessing would be right for a quarter.
    assert (nearest == first.y).mean() > 0.5


@given(size=st.integers(0, 500), most=st.integers(0, 100))
def test_spread_indices_are_distinct_ascending_and_even(size: int, most: int) -> None:
    found = spread(size, most)
    assert len(found) == min(size, most)
    assert found == sorted(set(found))
    assert set(found) <= set(range(size))
    gaps = {b - a for a, b in pairwise([*found, size])}
    assert not gaps or max(gaps) - min(gaps) <= 1
