"""Going on with a run that was stopped: which snapshot, which options, and whether it is the same run."""

from __future__ import annotations

import dataclasses
import json
import logging
from collections.abc import Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import TYPE_CHECKING, Any

from distributed.fingerprint import FingerprintMismatch, differences
from distributed.options import IDENTITY, TrainingOptions, flag
from distributed.records import versions
from distributed.run_folder import RunFolder, read_json
from distributed.snapshots import Found, clean, losses_of, newest_whole, set_aside, stamp

if TYPE_CHECKING:
    from distributed.trainer import Trainer

_log = logging.getLogger(__name__)

#: What says which run it is, besides its options; of the data all but the words for where they come from.
_SAME = ("model", "build", "loss", "optimizer", "schedule", "dtype")


@dataclass(frozen=True)
class Resumption:
    """Where a stopped run goes on.

    Attributes:
        folder: Its folder, locked.
        config: What it was told when it was started.
        found: The snapshot; None for a run that was stopped before its first one, and starts again.
        losses: Of the steps before it.
        damaged: What is wrong with newer snapshots.
    """

    folder: RunFolder
    config: dict[str, Any]
    found: Found | None
    losses: list[float] = field(default_factory=list)
    damaged: list[str] = field(default_factory=list)

    @property
    def step(self) -> int:
        """How many steps are done."""
        return len(self.losses)

    @property
    def snapshot(self) -> Path | None:
        """Its snapshot's folder."""
        return self.found.path.absolute() if self.found is not None else None

    def require_same(self, config: Mapping[str, Any]) -> None:
        """Checks that model, optimizer and data are those that the run was started with.

        Raises:
            ValueError: They are not; the message has both values of each.
        """
        then, now = self.config, json.loads(json.dumps(config))
        told = [
            f"{name} is {now[name]!r}, but was {then.get(name)!r}"
            for name in _SAME
            if now[name] != then.get(name, now[name])
        ]
        for name in sorted({*then["data"], *now["data"]} - {"source"}):
            values = [data.get(name) for data in (now["data"], then["data"])]
            if values[0] != values[1]:
                told.append(f"of the data, {name} is {_short(values[0])}, but was {_short(values[1])}")
        if told:
            raise ValueError("\n  ".join([f"this is not the run that was started in {self.folder.path}:", *told]))

    def require_same_fingerprint(self, now: Mapping[str, str], allowed: bool) -> bool:
        """Compares what computes now with what the snapshot was computed by.

        Returns:
            Whether they are equal, and always were in this run.

        Raises:
            FingerprintMismatch: They differ, and may not.
        """
        if self.found is None:
            return True
        told = differences({"the snapshot": self.found.manifest["fingerprint"], "this run": now})
        if told and not allowed:
            raise FingerprintMismatch(
                "\n  ".join(
                    [
                        f"the run would not go on with the bits that it had at {self.found.path}:",
                        *told,
                        "take such a machine and such libraries, or allow others with --allow-mixed-cpus",
                    ]
                )
            )
        same: bool = self.found.manifest["same_bits"]
        return same and not told

    def begin(self) -> None:
        """Tells of damaged snapshots, and renames them, so that the run can write such ones again."""
        for damaged, words in self.found.damaged.items() if self.found is not None else ():
            _log.warning("a snapshot is damaged, and the one before is taken: %s", words)
            set_aside(damaged)

    def entry(self, trainer: Trainer) -> dict[str, Any]:
        """What `resumes.jsonl` says of it."""
        return {
            "time": stamp(),
            "step": self.step,
            "snapshot": None if self.found is None else self.found.path.name,
            "damaged": self.damaged,
            "changed": self.changed(trainer.options),
            "same_bits": trainer.same_bits,
            "fingerprint": trainer.fingerprint,
            "versions": versions(),
        }

    def changed(self, options: TrainingOptions) -> dict[str, list[Any]]:
        """Returns the options that are not as the run was started: for each the value then and now."""
        then, now = self.config["options"], options.to_json()
        return {name: [then.get(name), now[name]] for name in now if name != "resume" and then.get(name) != now[name]}


def resume(path: Path) -> Resumption:
    """Finds where a stopped run goes on, and locks its folder.

    Raises:
        FileNotFoundError, FileExistsError, ValueError: See `RunFolder.of_stopped`.
        SnapshotCorrupt: There are snapshots, and all are damaged.
    """
    folder = RunFolder.of_stopped(path)
    try:
        config = read_json(path / "config.json")
        clean(folder.snapshots)
        found = newest_whole(folder.snapshots, config)
        if found is None:
            return Resumption(folder, config, None)
        losses = losses_of(found.path, found.manifest["step"])
        return Resumption(folder, config, found, losses, list(found.damaged.values()))
    except BaseException:
        folder.close()
        raise


def with_identity(given: dict[str, Any], config: Mapping[str, Any], path: Path) -> dict[str, Any]:
    """Returns options with those that decide the bits as the run was started.

    Args:
        given: What was given now.
        config: The run's config.json.
        path: Its folder.

    Raises:
        ValueError: Some were given otherwise; the message has both values of each.
    """
    then = config["options"]
    told = [
        f"{flag(name)} is {given[name]}, but the run was started with {then.get(name)}"
        for name in IDENTITY
        if name in given and given[name] != then.get(name)
    ]
    if told:
        raise ValueError(
            "\n  ".join([f"the run in {path} cannot go on with other options that decide its bits:", *told])
        )
    # Where there is no snapshot yet, the run starts again, and from the same weights.
    first = {"weights": Path(then["weights"])} if then.get("weights") is not None else {}
    return {**first, **given, **{name: then[name] for name in IDENTITY if name in then}}


def stored_options(config: Mapping[str, Any]) -> dict[str, Any]:
    """Returns all options that a run was started with, as `TrainingOptions` takes them."""
    fields = {each.name: each for each in dataclasses.fields(TrainingOptions)}
    found = {
        name: Path(value) if "Path" in str(fields[name].type) and value is not None else value
        for name, value in config["options"].items()
        if name in fields
    }
    if isinstance(shared := found.get("share_weights"), bool):  # as it was until it had an auto
        found["share_weights"] = "yes" if shared else "auto"
    return found


def _short(value: Any) -> str:
    text = repr(value)
    return text if len(text) <= 40 else text[:37] + "..."
