"""Reports that tests draw: made up, of any size, consistent as those of a plan are."""

from __future__ import annotations

from collections import Counter
from collections.abc import Sequence
from dataclasses import replace

from checkpointing.report.data import (
    Drawing,
    FrontierPoint,
    LayerRow,
    PolicyRow,
    Process,
    Rank,
    Report,
    Timeline,
)

#: Names that a page must show as they are.
HOSTILE = (
    "<img src=x onerror=window.broken=1>",
    "</script><script>window.broken=2</script>",
    '"onmouseover="window.broken=3',
    "<a href='javascript:window.broken=4'>click</a>",
    "Schicht-ß.注意力.🧠",
    "%{x} &amp; $\\alpha$ {{7*7}}",
)


#: Of a timeline, with a place for each operation.
COLUMNS = ("labels", "phases", "layers", "shards", "recomputed", "seconds", "live", "inside", "changes")


class _Recorder:
    """A ledger that writes a timeline."""

    def __init__(self, before: dict[tuple[str, str], int]) -> None:
        self.held = Counter(before)
        self.live = sum(before.values())
        self.before = dict(before)
        self.rows: list[tuple[str, str, str, int | None, bool, float, int, int, dict[tuple[str, str], int]]] = []
        self.most = -1
        self.at_peak: dict[tuple[str, str], int] = {}

    def do(
        self, label: str, phase: str, layer: str, shard: int | None, change: dict[tuple[str, str], int], passing: int = 0, again: bool = False
    ) -> None:  # fmt: skip
        before = self.live
        self.held.update(change)
        self.live = live = before + sum(change.values())
        inside = max(before, live) + passing
        if inside > self.most:
            self.most = inside
            self.at_peak = {holder: nbytes for holder, nbytes in self.held.items() if nbytes}
            self.at_peak["workspace", layer] = inside - live
        self.rows.append((label, phase, layer, shard, again, 1e-6 * (1 + len(label) % 7), live, inside, change))

    def timeline(self) -> Timeline:
        labels, phases, layers, shards, again, seconds, live, inside, changes = zip(*self.rows, strict=True)
        peak = inside.index(max(inside))
        holders = tuple(dict.fromkeys([*self.before, *(h for change in changes for h in change), *self.at_peak]))
        number = {holder: place for place, holder in enumerate(holders)}
        return Timeline(
            labels, phases, layers, shards, again, seconds, live, inside, holders,
            tuple(self.before.get(holder, 0) for holder in holders),
            tuple(tuple((number[holder], nbytes) for holder, nbytes in change.items()) for change in changes),
            peak,
            tuple((number[holder], nbytes) for holder, nbytes in self.at_peak.items() if nbytes),
        )  # fmt: skip


def names(layers: int, hostile: bool = False) -> tuple[str, ...]:
    """Paths of that many layers."""
    return tuple(
        HOSTILE[place % len(HOSTILE)] + str(place) if hostile else f"block{place // 4}.{'abcd'[place % 4]}"
        for place in range(layers)
    )


def made_timeline(paths: Sequence[str], shards: int = 2) -> Timeline:
    """A step that keeps every third layer and computes the others again."""
    made = _Recorder({("parameters", "model"): 40_000 * len(paths), ("optimizer", "AdamW"): 80_000 * len(paths)})
    for shard in range(shards):
        made.do(
            "load", "load", "", shard, {("batch", "batch"): 4_096, ("gradients", f"shard {shard}"): 40_000 * len(paths)}
        )
        for place, path in enumerate(paths):
            made.do(f"forward {path}", "forward", path, shard, {("activations", path): 9_000 + 7 * place}, passing=512)
            if place % 3:
                made.do(f"drop a[{place}]", "forward", path, shard, {("activations", path): -9_000 - 7 * place})
        made.do("loss", "loss", "", shard, {("cotangents", "loss"): 3_000})
        for place in reversed(range(len(paths))):
            path = paths[place]
            if place % 3:
                again = {("activations", path): 9_000 + 7 * place}
                made.do(f"forward {path}", "backward", path, shard, again, passing=512, again=True)
            made.do(
                f"backward {path}",
                "backward",
                path,
                shard,
                {("cotangents", path): 2_000 + place},
                passing=1_024 + place,
            )
            made.do(f"drop a[{place}]", "backward", path, shard, {("activations", path): -9_000 - 7 * place})
            made.do(f"drop d[{place}]", "backward", path, shard, {("cotangents", path): -2_000 - place})
        made.do("drop d", "backward", "", shard, {("cotangents", "loss"): -3_000, ("batch", "batch"): -4_096})
    made.do(
        "reduce 0",
        "all-reduce",
        "",
        None,
        {("gradients", f"shard {shard}"): -40_000 * len(paths) for shard in range(1, shards)},
    )
    made.do("update 0", "optimizer", "", None, {}, passing=777)
    return made.timeline()


def made_drawing(paths: Sequence[str]) -> Drawing:
    """The drawing of the same step."""
    count = len(paths)
    held, running, labels, now = [], [], [], [0] * count
    for place, path in enumerate(paths):
        now[place] = 3
        held.append("".join(map(str, now)))
        running.append((place, "F"))
        labels.append(f"forward {path}")
        now[place] = 0 if place % 3 else 3
    for place in reversed(range(count)):
        if place % 3:
            now[place] = 3
            held.append("".join(map(str, now)))
            running.append((place, "R"))
            labels.append(f"forward {paths[place]}")
        now[place] = 1
        held.append("".join(map(str, now)))
        running.append((place, "B"))
        labels.append(f"backward {paths[place]}")
        now[place] = 0
    return Drawing(tuple(paths), tuple(labels), tuple(held), tuple(running))


def slower(timeline: Timeline) -> Timeline:
    """The same bytes in other times, as a measurement has them."""
    return replace(
        timeline, seconds=tuple(seconds * (1.1 + place % 5 / 10) for place, seconds in enumerate(timeline.seconds))
    )


def made_report(
    layers: int = 6, shards: int = 2, workers: int = 1, *, hostile: bool = False, measured: bool = True, title: str = "made up"
) -> Report:  # fmt: skip
    """A whole report."""
    paths = names(layers, hostile)
    timeline = made_timeline(paths, shards)
    peak = max(timeline.inside)
    ranks = tuple(
        Rank(
            number, f"node-{number}", timeline, slower(timeline) if measured else None, 3 if measured else None,
            Process(peak + 99_000_000 + number, peak, 80_000_000, 17_000_000, 2_000_000 + number, (90_000_000, 97_000_000, 99_000_000), peak + 98_000_000)
            if measured else None,
        )
        for number in range(workers)
    )  # fmt: skip
    rows = tuple(
        LayerRow(
            path, ("Linear", "ReLU", "LayerNorm")[place % 3], (4, 10 + place), 1_000 * (place * 7 % 11), 9_000 + 7 * place, place * 13 % 5, 512,
            10**6 * (place + 1), 1e-6 * (place * 5 % 7), 2e-6 * place, "recomputed" if place % 3 else "kept", 2 if place % 3 else 1,
        )
        for place, path in enumerate(paths)
    )  # fmt: skip
    odd = HOSTILE[0] if hostile else "every-k:2"
    policies = (
        PolicyRow(
            "store-all",
            None,
            peak * 3,
            0.010,
            peak * 3 if measured else None,
            None,
            0.012 if measured else None,
            0.010,
            False,
        ),
        PolicyRow(
            odd,
            None,
            peak,
            0.013,
            peak if measured else None,
            peak + 5_000_000,
            0.016 if measured else None,
            0.011,
            True,
        ),
        PolicyRow("recompute-all", None, peak // 2, 0.030, None, None, None, 0.015, False, "killed"),
    )
    frontier = tuple(FrontierPoint(peak * n // 4, 0.03 / n, 0.02 / n, odd) for n in range(2, 9))
    text = HOSTILE[0] if hostile else "a value"
    return Report(
        title=HOSTILE[0] if hostile else title, advice=(f"The peak is in {paths[-1]}'s backward.",), model=text, policy=odd,
        costs="modelled: FLOPs at 50 GFLOP/s", budget=round(peak * 1.1), ranks=ranks, layers=rows, policies=policies, frontier=frontier,
        drawing=made_drawing(paths), configuration={"batch": 8, "note": text}, machine={"cores": 2, "processor": text}, versions={"numpy": "2.4"},
        failure=f"WorkerLost: {text}" if hostile else "",
    )  # fmt: skip
