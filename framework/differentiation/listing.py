"""The table of covered functions, made from the rule tables: ``python -m framework.differentiation.listing``."""

from __future__ import annotations

from framework.differentiation import rules
from framework.differentiation.table import CONSTANT, DERIVED, RULES, Rule, describe

assert rules  # importing it fills the tables

_BEGIN, _END = "<!-- rules: begin -->", "<!-- rules: end -->"


def rule_table() -> str:
    """Returns the tables as Markdown."""
    lines = ["| function | family | JVP | VJP |", "|---|---|---|---|"]
    for function, rule in sorted(RULES.items(), key=lambda item: (item[1].family, describe(item[0]))):
        if rule.family != "custom":
            lines.append(f"| `{describe(function)}` | {rule.family} | {_jvp(rule)} | {_vjp(rule)} |")
    lines += ["", "Written with these, so that derivatives of every order follow: "]
    lines[-1] += ", ".join(f"`{describe(f)}`" for f in sorted(DERIVED, key=describe)) + "."
    lines += ["", "Constant, without a derivative: "]
    lines[-1] += ", ".join(f"`{describe(f)}`" for f in sorted(CONSTANT, key=describe)) + "."
    return "\n".join(lines)


def with_table(text: str) -> str:
    """Returns a Markdown page with the table between its marks made anew."""
    before, _, rest = text.partition(_BEGIN)
    _, _, after = rest.partition(_END)
    return f"{before}{_BEGIN}\n{rule_table()}\n{_END}{after}"


def _jvp(rule: Rule) -> str:
    if rule.jvp is None:
        return "derived from the VJP by transposition"
    return {"elementwise": "factor · tangent", "linear": "the function of the tangent"}.get(rule.kind, "own rule")


def _vjp(rule: Rule) -> str:
    return {"elementwise": "factor · cotangent", "linear": "its transpose"}.get(rule.kind, "own rule")


if __name__ == "__main__":
    print(rule_table())
