"""Which elements of a gradient a step's backward finishes, and which of them each Reduce of a plan is for."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass

from checkpointing.operations import Backward, Load, Reduce
from checkpointing.plan import Plan
from framework.memory import Array
from framework.parameters import Layout


@dataclass(frozen=True, slots=True)
class Finished:
    """The cotangents of parameters that one step alone uses, so that its backward finishes them.

    Attributes:
        size: Their elements, one after the other.
        views: For each parameter its local name, and its elements and shape there.
        places: Where runs of them lie: in a gradient, and there.
    """

    size: int
    views: tuple[tuple[str, slice, tuple[int, ...]], ...]
    places: tuple[tuple[slice, slice], ...]

    @classmethod
    def of(cls, layout: Layout, path: str) -> Finished:
        """Returns those of the step of a path."""
        names, views, places, size = layout.own.get(path, ()), [], [], 0
        for name in names:
            spec = layout.specs[name]
            views.append((name.rpartition(".")[2], slice(size, size + spec.size), spec.shape))
            size += spec.size
        at = 0
        for start, stop in layout.ranges(names):
            places.append((slice(start, stop), slice(at, at + stop - start)))
            at += stop - start
        return cls(size, tuple(views), tuple(places))

    def views_of(self, flat: Array) -> dict[str, Array]:
        """Returns an array of `size` elements as the parameters' cotangents, by local name."""
        return {name: flat[where].reshape(shape) for name, where, shape in self.views}

    def add(self, total: Array, flat: Array) -> None:
        """Adds them to a gradient."""
        for there, here in self.places:
            target = total[there]
            target += flat[here]


def buckets_of(plan: Plan, finished_by: Callable[[str], Finished], layout: Layout) -> list[list[slice]]:
    """Returns the elements of a gradient that each Reduce of a plan is for, as runs in order.

    Args:
        plan: The plan.
        finished_by: What the step of a path finishes.
        layout: Of the parameters.
    """
    if Reduce(1) not in plan.operations:
        return [[slice(0, layout.gradients.size)]]
    paths = [step.path for step in plan.costs.steps]
    found: list[list[slice]] = []
    finished: list[slice] = []
    for operation in plan.operations:
        match operation:
            case Load() | Reduce():
                if isinstance(operation, Reduce):
                    found.append(finished)
                finished = []
            case Backward(step):
                finished += [there for there, _ in finished_by(paths[step]).places]
            case _:
                pass
    if found:
        found[-1] += [layout.gradients.slices[name] for name in layout.rest.gradients.specs]
    return [_runs(each) for each in found]


def _runs(places: Sequence[slice]) -> list[slice]:
    """Joins neighbours."""
    found: list[slice] = []
    for place in sorted((place for place in places if place.stop > place.start), key=lambda place: place.start):
        if found and found[-1].stop == place.start:
            found[-1] = slice(found[-1].start, place.stop)
        else:
            found.append(place)
    return found
