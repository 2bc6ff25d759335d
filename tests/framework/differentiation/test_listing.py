"""The page on derivatives: its table is that of the rules, and its code runs."""

import re
from pathlib import Path

import numpy as np

from framework.differentiation.listing import with_table

PAGE = Path(__file__).parents[3] / "docs" / "differentiation.md"


def test_the_table_of_functions_is_made_from_the_rule_tables() -> None:
    text = PAGE.read_text()
    assert with_table(text) == text, "make it anew: see framework/differentiation/listing.py"
    assert "| `np.tanh` | elementwise | factor · tangent | factor · cotangent |" in text


def test_the_page_s_code_runs() -> None:
    code, *_ = re.findall(r"```python\n(.*?)```", PAGE.read_text(), re.DOTALL)
    names: dict[str, np.ndarray] = {}
    exec(code, names)
    np.testing.assert_allclose(names["tangent"], names["matrix"] @ [0.3, -0.2])
    np.testing.assert_allclose(names["cotangent"], names["matrix"].T @ [1.0, 0.5, 0.3])
    np.testing.assert_allclose(names["gradient"], 2 * np.tanh(names["x"]) / np.cosh(names["x"]) ** 2)
