"""The layers and losses that come with Retape, found by their base class."""

from __future__ import annotations

import inspect

from framework.layers import Composite


def concrete(base: type) -> set[type]:
    """The subclasses in package `framework` that run: neither abstract, nor private, nor composites."""

    def below(kind: type) -> set[type]:
        return {kind}.union(*map(below, kind.__subclasses__()))

    return {
        kind
        for kind in below(base) - {base}
        if kind.__module__.startswith("framework.")
        and not kind.__name__.startswith("_")
        and not inspect.isabstract(kind)
        and not issubclass(kind, Composite)
    }
