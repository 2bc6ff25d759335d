"""Writes text from a trained model.

Examples:
  python scripts/generate.py runs/20260101-120000-byte-gpt-tiny
  python scripts/generate.py RUN --prompt "def main(" --length 200 --temperature 0.5
  python scripts/generate.py RUN/snapshots/step-00000050 --quiet --json

With --json the last line has run, prompt and text, which is what --length more bytes make of the prompt.
"""

from __future__ import annotations

import codecs
from dataclasses import dataclass
from pathlib import Path
from typing import Annotated, Any

import _console
import tyro

from checkpointing.generation import generate, load
from distributed.run_folder import read_json
from distributed.snapshots import MANIFEST, read_manifest
from framework import build


@dataclass(frozen=True, kw_only=True)
class Generate(_console.Common):
    run: Annotated[Path | None, tyro.conf.Positional, tyro.conf.arg(metavar="RUN")] = None
    """Required. Folder of a finished run of a byte model, or of a snapshot: RUN/snapshots/step-00000050."""
    prompt: str = "import "
    """What the text continues."""
    length: int = 400
    """Bytes to write."""
    temperature: float = 0.7
    """Below 1 likelier bytes, above 1 more surprising ones; 0 always the likeliest."""
    seed: int = 0
    """Seed of the draws."""


def main(options: Generate) -> dict[str, Any]:
    if options.run is None:
        raise ValueError("name the folder of a finished run, as in: python scripts/generate.py runs/TIME-MODEL")
    is_snapshot = (options.run / MANIFEST).is_file()
    config = read_manifest(options.run)["configuration"] if is_snapshot else read_json(options.run / "config.json")
    if not config["build"]:
        raise ValueError(f"the model of {options.run} was not built by name, so it cannot be built again here")
    model = build(**config["build"])
    parameters = load(model, options.run / "weights.safetensors")
    made = generate(model, parameters, options.prompt.encode(), options.length, options.temperature, options.seed)
    # A character may be several bytes, so they are decoded as they come.
    decoder = codecs.getincrementaldecoder("utf-8")("replace")
    pieces = []
    write(options.prompt, options.quiet)
    for byte in made:
        pieces.append(decoder.decode(byte))
        write(pieces[-1], options.quiet)
    pieces.append(decoder.decode(b"", final=True))
    write(pieces[-1] + "\n", options.quiet)
    return {"run": str(options.run), "prompt": options.prompt, "text": "".join(pieces)}


def write(text: str, quiet: bool) -> None:
    """Writes text as it comes; control characters, which could garble a terminal, as a sign of their own."""
    if not quiet:
        _console.show("".join(c if c.isprintable() or c in "\n\t" else "\N{REPLACEMENT CHARACTER}" for c in text))


if __name__ == "__main__":
    _console.run(main, Generate(), __doc__ or "")
