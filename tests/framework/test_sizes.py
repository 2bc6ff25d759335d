"""Sizes as people write them."""

import pytest
from hypothesis import given
from hypothesis import strategies as st

from framework import format_size, parse_size

UNITS = {"": 1, "B": 1, "kB": 1000, "MB": 1000**2, "GB": 1000**3, "TB": 1000**4}
UNITS |= {"KiB": 1024, "MiB": 1024**2, "GiB": 1024**3, "TiB": 1024**4}


@given(number=st.integers(1, 10**20), unit=st.sampled_from(sorted(UNITS)), gap=st.sampled_from(["", " ", "  "]))
def test_whole_numbers_of_each_unit_are_exact_in_any_case(number: int, unit: str, gap: str) -> None:
    for spelling in (unit, unit.lower(), unit.upper()):
        assert parse_size(f" {number}{gap}{spelling} ") == number * UNITS[unit]


@given(whole=st.integers(1, 10**12), part=st.integers(0, 999), unit=st.sampled_from(sorted(UNITS)))
def test_fractions_are_rounded_down_exactly(whole: int, part: int, unit: str) -> None:
    assert parse_size(f"{whole}.{part:03d}{unit}") == (1000 * whole + part) * UNITS[unit] // 1000


def test_an_integer_is_bytes() -> None:
    assert parse_size(4096) == 4096


@pytest.mark.parametrize("text", ["", "MiB", "64 XB", "-3", "-1MiB", "1e3", "1.", ".5GB", "1,5GB", "64MiB/s", "nan"])
def test_what_is_no_size_is_an_error_that_shows_one(text: str) -> None:
    with pytest.raises(ValueError, match="64MiB"):
        parse_size(text)


@pytest.mark.parametrize("text", ["0", "0.0GB", "0.5", "0.0001kB", 0])
def test_less_than_a_byte_is_an_error(text: str | int) -> None:
    with pytest.raises(ValueError, match="at least one byte"):
        parse_size(text)


@pytest.mark.parametrize(
    ("size", "text"),
    [
        (0, "0 B"),
        (1023, "1023 B"),
        (1024, "1.0 KiB"),
        (1536, "1.5 KiB"),
        (-2048, "-2.0 KiB"),
        (2**20 - 51, "1.0 MiB"),  # 1023.95 KiB
        (64 * 2**20, "64.0 MiB"),
        (3 * 2**30, "3.0 GiB"),
        (5000 * 2**40, "5000.0 TiB"),
    ],
)
def test_sizes_are_written_with_binary_units(size: int, text: str) -> None:
    assert format_size(size) == text


@given(st.integers(1, 2**50))
def test_a_written_size_reads_back_to_what_its_digits_say(size: int) -> None:
    # One decimal: half of a tenth of the unit, which is at most the size itself.
    assert abs(parse_size(format_size(size)) - size) <= size / 20
