"""A table in short lines keeps whole numbers, and says which columns it has not."""

from __future__ import annotations

import pytest
from rich import box

from checkpointing.report.fitting import FittingTable
from checkpointing.report.text import plain

NAME = "selective:Linear,CausalAttention"


def lines(width: int, name: str = NAME) -> list[str]:
    drawn = FittingTable(spare=("b", "a"), box=box.SIMPLE_HEAD, collapse_padding=True, caption="about")
    drawn.add_column("policy", overflow="fold")
    for heading in ("a", "b", "c"):
        drawn.add_column(heading, justify="right", no_wrap=True)
    drawn.add_row(name, "1,111,111", "2,222,222", "3,333,333")
    return plain([drawn], width)[:-1].splitlines()


@pytest.mark.parametrize(
    ("width", "shown", "told"),
    [
        (80, "abc", None),
        (62, "abc", None),  # the name goes on in the next line
        (56, "ac", "left out in lines this short: b"),
        (44, "c", "left out in lines this short: b, a"),
    ],
)
def test_columns_are_left_out_in_their_order_and_named(width: int, shown: str, told: str | None) -> None:
    drawn = lines(width)
    assert drawn[1].split() == ["policy", *shown]
    for heading, number in zip("abc", ("1,111,111", "2,222,222", "3,333,333"), strict=True):
        assert (number in "\n".join(drawn)) == (heading in shown)
    said = " ".join(" ".join(drawn).split()).partition("about")[2].strip()
    assert said == (told or "")
    assert max(map(len, drawn)) <= width


def test_a_name_is_whole_where_it_has_room_and_goes_on_below_where_not() -> None:
    assert any(NAME in line for line in lines(80))
    narrow = lines(62)
    assert not any(NAME in line for line in narrow)
    assert [line.split()[0] for line in narrow[3:5]] == ["selective:Linear,", "CausalAttention"]


@pytest.mark.parametrize(
    ("name", "width", "shown"),
    [
        ("every-k:2, budget 110.0 MiB", 20, ["every-k:2, budget", "110.0 MiB"]),
        ("block10.attention.out", 16, ["block10.", "attention.out"]),
        ("a 1.25", 3, ["a", "1.2", "5"]),  # no joint
        ("[b]:names", 9, ["[b]:names"]),  # no markup
        ("層の名前:注意", 9, ["層の名前:", "注意"]),  # two columns a letter
        ("", 9, [""]),
    ],
)
def test_names_go_on_at_their_joints_alone_where_they_have_some(name: str, width: int, shown: list[str]) -> None:
    drawn = FittingTable(box=None, padding=0, show_header=False)
    drawn.add_column(overflow="fold")
    drawn.add_row(name)
    assert plain([drawn], width).splitlines() == shown


def test_short_names_take_no_room_from_numbers() -> None:
    assert lines(50, "sqrt-n")[1].split() == ["policy", "a", "b", "c"]
