"""The commands on pages, and how they are run in tests: for real, in a folder of their own, with fewer steps.

A page's commands are run in their order, as a reader would. What may be smaller is, and only so:

- `SMALLER` adds options, behind those that the page gives, so that they count; `SMALLER_MODELS` names other models to train.
- A training run that a later command on the page resumes is stopped by SIGTERM after its first step.
- `benchmark.py` is asked for its help after its options were read, since its suites take up to half an hour and need PyTorch.
- A run folder that is named by a moment stands for the last one that there is.
- `make train` is train.py; other targets of make are only looked up. `pip`, `git`, `source` and `ray` are not run;
  tests/scripts/test_cluster.py runs a job, and makes two hosts.

Outputs that a page shows in a block of console are compared line by line, numbers left out, since steps and machines differ.
"""

from __future__ import annotations

import os
import re
import shlex
import signal
import subprocess
import sys
from dataclasses import dataclass
from pathlib import Path

from tests.docs.pages import ROOT, Block, blocks

#: Options that make a program's work small, by the first words that they apply to.
SMALLER: dict[tuple[str, ...], tuple[str, ...]] = {
    ("train.py",): ("--steps", "6", "--validation-examples", "16", "--warmup-steps", "2"),
    ("profile_memory.py",): ("--steps", "1", "--policies", "store-all"),
    ("differentiate.py",): ("--quick", "--only", "example"),
    ("plan.py", "--frontier"): ("--points", "3"),
    ("generate.py",): ("--length", "20"),
    ("mlp_on_csv.py",): ("--steps", "20"),
    ("cnn_on_digits.py",): ("--steps", "20"),
    ("gpt_on_text.py",): ("--steps", "4"),
    ("own_layer.py",): ("--steps", "4"),
}
SMALLER_MODELS = {"byte-gpt-small": "byte-gpt-tiny"}
#: A run whose folder has the name of the moment when it began.
BY_MOMENT = "runs/MOMENT"
#: What profile_memory.py ends with where --fail-above is passed; either is right on a page.
GREW = 3
#: Resumed runs have the steps that they were started with, and more of them than others, so that there is time to stop them.
STEPS_OF_RESUMED = "40"
_RUN = re.compile(r"runs/\d{8}-\d{6}-[\w-]+")
_NOT_RUN = ("pip", "git", "source", "cd", "sudo", "ray", "try_job.sh", "try_two_hosts.sh")


@dataclass(frozen=True)
class Command:
    """A command of a page, what it shows behind it, and the line it stands on."""

    words: str
    shown: tuple[str, ...]
    line: int


def commands(page: str) -> list[Command | Block]:
    """Returns the commands of a page in order, and between them the blocks of Python that are files."""
    found: list[Command | Block] = []
    for block in blocks(page):
        if block.language == "python" and file_of(block):
            found.append(block)
        elif block.language == "console" or (not block.language and _holds_commands(block)):
            found += _commands(block)
    return found


def file_of(block: Block) -> str | None:
    """The file that a block of Python says it is, in a comment on its first line."""
    match = re.match(r"# (\w+\.py)$", block.text.split("\n", 1)[0])
    return match[1] if match else None


def _holds_commands(block: Block) -> bool:
    return block.text.lstrip().removeprefix("$ ").startswith((".venv/bin/", "make "))


def _commands(block: Block) -> list[Command]:
    """The commands of a block: lines behind a $, or, where there is none, those that call a program; what follows is shown."""
    prompt = any(line.startswith("$ ") for line in block.text.splitlines())
    found: list[Command] = []
    shown: list[str] = []
    for number, line in enumerate(block.text.splitlines(), block.line + 1):
        if line.startswith("$ " if prompt else (".venv/bin/", "make ", "grep ")):
            shown = []
            words = line.removeprefix("$ ").partition("  #")[0]
            found.append(Command(words, (), number))
        elif found:
            shown.append(line)
            found[-1] = Command(found[-1].words, tuple(shown), found[-1].line)
    return found


def prepare(folder: Path) -> None:
    """Makes a folder look like a clone."""
    for name in ("scripts", "docs", "README.md", "CONTRIBUTING.md"):
        (folder / name).symlink_to(ROOT / name)


def run(command: Command, folder: Path, resumed: set[str]) -> str | None:
    """Runs a command of a page; returns what is wrong with it, None if nothing is.

    Args:
        command: The command.
        folder: Where it runs.
        resumed: The run folders that later commands resume.
    """
    words = shlex.split(_RUN.sub(lambda _: _last_run(folder), command.words))
    if words[0] == "make":
        if words[1] != "train":
            known = re.findall(r"^([\w-]+):", (ROOT / "Makefile").read_text(), re.MULTILINE)
            return None if words[1] in known else f"there is no make {words[1]}"
        words = [".venv/bin/python", "scripts/train.py", *words[2:]]
    if words[0].split("/")[-1] in _NOT_RUN:
        return None
    if words[0] in ("python", ".venv/bin/python"):
        words = _smaller([sys.executable, *words[1:]], resumed)
    stop = _run_of(words) in resumed
    environment = {**os.environ, "PYTHONPATH": f"{ROOT}:{folder}"}
    process = subprocess.Popen(
        words, cwd=folder, env=environment, stdout=subprocess.PIPE, stderr=subprocess.STDOUT, text=True
    )
    output = _output(process, stop)
    refused = any(line.startswith("error:") for line in command.shown)
    expected = [75] if stop else [2] if refused else [0, GREW] if "--fail-above" in words else [0]
    if process.returncode not in expected:
        return f"exit code {process.returncode} instead of {expected}:\n{output}"
    return _missing(command.shown, output)


def _smaller(words: list[str], resumed: set[str]) -> list[str]:
    script = Path(words[1]).name
    if script == "benchmark.py":
        return [*words, "--help"]
    for (name, *needed), options in SMALLER.items():
        if name == script and all(option in words for option in needed) and _works_much(words):
            words = [*words, *options]
    for large, small in SMALLER_MODELS.items():
        if script in ("train.py", "profile_memory.py") and large in words:
            words = [small if word == large else word for word in words]
    return [*words, "--steps", STEPS_OF_RESUMED] if _run_of(words) in resumed else words


def _works_much(words: list[str]) -> bool:
    """Whether a program is not only asked to show, or to go on with, what there is."""
    shows = {"--resume", "--watch", "--from", "--compare", "--no-measure"} & {*words}
    return not shows and not (words[1].endswith("profile_memory.py") and words[2:] and words[2].startswith("runs/"))


def _output(process: subprocess.Popen[str], stop: bool) -> str:
    """What a process prints until it has ended; on the way it may be stopped after its first step."""
    lines = []
    with process:
        assert process.stdout is not None
        for line in process.stdout:
            lines.append(line)
            if stop and line.startswith("step 1/"):
                process.send_signal(signal.SIGTERM)
                stop = False
    return "".join(lines)


def _run_of(words: list[str]) -> str | None:
    """The folder of the run that a command starts, or `BY_MOMENT`; None if it starts none."""
    if not any(word.endswith("train.py") for word in words) or {"--resume", "--watch"} & {*words}:
        return None
    return words[words.index("--run-dir") + 1] if "--run-dir" in words else BY_MOMENT


def resumed_by(words: str) -> str | None:
    """The folder of the run that a command resumes, or `BY_MOMENT`; None if it resumes none."""
    match = re.search(r"--resume (\S+)", words)
    return None if match is None else BY_MOMENT if _RUN.fullmatch(match[1]) else match[1]


def _last_run(folder: Path) -> str:
    runs = [path for path in (folder / "runs").iterdir() if re.match(r"\d{8}-\d{6}-byte-gpt", path.name)]
    return f"runs/{max(runs).name}"


def _missing(shown: tuple[str, ...], output: str) -> str | None:
    """The first line that is shown and does not follow, numbers left out, in what was printed; lines of dots stand for any."""
    printed = iter([_words(line) for line in output.splitlines()])
    for line in shown:
        wanted = _words(line)
        if wanted.strip(".") and not any(wanted.rstrip(".") in found for found in printed):
            return f"it does not print {line!r}, numbers left out:\n{output}"
    return None


def _words(line: str) -> str:
    return re.sub(r"[\d.,]*\d", "0", " ".join(line.split()))
