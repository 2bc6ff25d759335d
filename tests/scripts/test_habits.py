"""What all programs have in common, gone over as a table: help, options, files of options, exit codes, plain output."""

from __future__ import annotations

import errno
import json
import os
import pty
import re
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest

from tests.scripts.helpers import ROOT, command
from tests.scripts.programs import PROGRAMS, Done, Runner

COMMON = ("config", "save-config", "force", "json", "quiet", "debug")
EVERYWHERE = (0, 1, 2, 70, 130, 141, 143)
#: A quick use of each program, none of which starts Ray. Of generate: of the run that train makes here.
USES: dict[str, tuple[str, ...]] = {
    "benchmark": ("derivatives", "--runs", "1"),
    "doctor": (),
    "differentiate": ("--only", "sizes", "--quick"),
    "generate": ("text", "--length", "5"),
    "plan": ("--model", "mlp-small", "--batch", "4"),
    "profile_memory": ("--model", "mlp-small", "--policies", "store-all", "--steps", "1"),
    "profile_torch": ("mine:build", "costs.json", "--runs", "1"),
    "train": (
        *("--workers", "0", "--model", "mlp-small", "--batch", "4", "--shards", "2", "--steps", "2"),
        *("--validation-examples", "4", "--run-dir", "run"),
    ),
}
#: Those that take longer.
SLOW = {"benchmark": pytest.mark.memory, "profile_memory": pytest.mark.memory, "profile_torch": pytest.mark.peers}
MINE = """
import torch
from torch import nn

def build():
    return nn.Sequential(nn.Linear(4, 4)), torch.randn(2, 4), torch.randn(2, 4), nn.functional.mse_loss
"""


def is_plain(done: Done | subprocess.CompletedProcess[str]) -> bool:
    return "\x1b" not in done.stdout + done.stderr and "\r" not in done.stdout + done.stderr


def options_told(text: str) -> dict[str, str]:
    """The options in a program's help, with what is said of each in one line."""
    found: dict[str, str] = {}
    name = ""
    for line in text.split("╭─", 1)[1].splitlines():
        inner = line.strip("│╭╰─╮╯ ")
        if match := re.match(r"│ (?:-h, )?--(?:no-)?([a-z-]+)", line):
            name = match.group(1)
            found[name] = inner
        elif name and line.startswith("│  "):
            found[name] += " " + inner
    return found


def test_every_program_is_in_the_table() -> None:
    assert set(USES) == set(PROGRAMS)


@pytest.mark.parametrize("name", PROGRAMS)
def test_help_tells_everything_within_eighty_columns(program: Runner, name: str) -> None:
    done = program(name, "--help")
    assert done.returncode == 0
    assert is_plain(done)
    assert f"python scripts/{name}.py" in done.stdout.split("Examples:")[1].split("Exit codes:")[0]
    codes = {int(code) for code in re.findall(r"^ +(\d+)  \w", done.stdout.split("Exit codes:")[1], re.MULTILINE)}
    assert codes >= set(EVERYWHERE)
    told = options_told(done.stdout)
    assert set(COMMON) <= set(told)
    for option, words in told.items():
        if option != "help":
            assert "default:" in words.lower(), option
            assert len(words.lower().split("default:")[0].split()) > 2, f"{option} has no description"
    long = [line for line in done.stdout.splitlines() if len(line) > 80 and not line.startswith("  python ")]
    assert long == []


@pytest.mark.parametrize("name", PROGRAMS)
def test_common_options_read_the_same_everywhere(program: Runner, name: str) -> None:
    def common(program_name: str) -> dict[str, str]:
        told = options_told(program(program_name, "--help").stdout)
        return {option: " ".join(told[option].split()) for option in COMMON}

    assert common(name) == common("plan")


@pytest.mark.parametrize("name", PROGRAMS)
@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (("--nonsense",), "Unrecognized options: --nonsense"),
        (("--config",), "--config"),
        (("--config", "none.toml"), "there is no configuration file none.toml"),
        (("--config", "top.toml"), "has no option"),
        (("--config", "table.toml"), "did you mean quiet?"),
        (("--config", "other.toml"), "other.toml has a table [trainn], but no program has this name; did you mean train?"),
        (("--config", "broken.toml"), "broken.toml is no TOML"),
        (("--config", "bytes.toml"), "bytes.toml is no TOML"),
        (("--config", "type.toml"), "debug must be true or false, but is 'yes'"),
        (("--config", "twice.toml"), "force is for the command line alone: --force"),
        (("--save-config", "top.toml"), "top.toml exists; name another file with --save-config"),
        (("--save-config", "no/where.toml"), "there is no folder no"),
        (("--save-config", "."), "is a folder"),
    ],
)  # fmt: skip
def test_bad_options_are_clear_errors(
    program: Runner, tmp_path: Path, name: str, arguments: tuple[str, ...], message: str
) -> None:
    (tmp_path / "top.toml").write_text("nonsense = 1\n")
    (tmp_path / "table.toml").write_text(f"[{name}]\nquieet = true\n")
    (tmp_path / "other.toml").write_text("[trainn]\nseed = 1\n")
    (tmp_path / "broken.toml").write_text("seed = = 1\n")
    (tmp_path / "bytes.toml").write_bytes(b"seed = '\xff'\n")
    (tmp_path / "type.toml").write_text("debug = 'yes'\n")
    (tmp_path / "twice.toml").write_text("force = true\n")
    before = sorted(tmp_path.iterdir())
    done = program(name, *arguments)
    assert done.returncode == 2
    assert message in " ".join(done.stderr.split())
    assert "Traceback" not in done.stderr
    assert done.stdout == ""
    assert is_plain(done)
    assert sorted(tmp_path.iterdir()) == before


@pytest.mark.parametrize("name", [pytest.param(name, marks=SLOW.get(name, ())) for name in PROGRAMS])
def test_a_use_prints_plainly_ends_with_json_and_can_be_repeated(program: Runner, tmp_path: Path, name: str) -> None:
    if name == "profile_torch":
        pytest.importorskip("torch")
        (tmp_path / "mine.py").write_text(MINE)
    if name == "generate":
        (tmp_path / "words.txt").write_text("some words " * 5000)
        text = ("--data", "words.txt", *USES["train"][:2], *USES["train"][4:-1])
        assert program("train", *text, "text", "--quiet").returncode == 0
    use = USES[name]
    done = program(name, *use, "--json", "--save-config", "saved.toml")
    assert done.returncode == 0, done.stderr
    assert is_plain(done)
    assert "…" not in done.stdout  # nothing is cut where it is no terminal
    first = json.loads(done.stdout.splitlines()[-1])
    assert isinstance(first, dict)
    assert len(done.stdout.splitlines()) > 1
    again = program(name, "--config", "saved.toml", "--json", "--quiet", "--force")
    assert again.returncode == 0, again.stderr
    (line,) = again.stdout.splitlines()
    assert set(json.loads(line)) == set(first)
    assert again.stderr == ""


def test_the_command_line_wins_over_the_file_and_its_table_over_its_top(program: Runner, tmp_path: Path) -> None:
    (tmp_path / "all.toml").write_text(
        "batch = 16\nmodel = 'mlp-small'\n[plan]\nbatch = 8\nfrontier = true\npoints = 3\n[generate]\nlength = 3\n"
    )

    def planned(*arguments: str) -> dict[str, object]:
        done = program("plan", "--config=all.toml", *arguments, "--json", "--quiet")
        assert done.returncode == 0, done.stderr
        found: dict[str, object] = json.loads(done.stdout)
        return found

    assert "batch 8 in" in str(planned()["chain"])
    assert "batch 4 in" in str(planned("--batch", "4")["chain"])
    assert planned()["frontier"] is not None
    assert planned("--no-frontier")["frontier"] is None  # a flag can be taken back
    assert planned("--frontier")["frontier"] is not None  # and given once more
    done = program("generate", "--config", "all.toml")
    assert done.returncode == 2
    assert "generate.py has no option batch; known: run, prompt" in " ".join(done.stderr.split())


def test_options_of_all_types_come_back_from_the_file_that_they_were_written_to(
    program: Runner, tmp_path: Path, scripts: object
) -> None:
    from _configuration import read, written  # type: ignore[import-not-found]
    from profile_memory import ProfileMemory  # type: ignore[import-not-found]
    from train import Train  # type: ignore[import-not-found]

    given = Train(
        data=("a b", 'c"d', "é"), clip_norm=None, snapshot_minutes=None, weights=Path("x/y"), overlap=False, workers=3,
        learning_rate=1e-300, dtype="float64", task="regression", json=True, force=True,
    )  # fmt: skip
    (tmp_path / "saved.toml").write_text(written(given, "train"))
    found = Train(**read(tmp_path / "saved.toml", "train", Train))
    (tmp_path / "from.toml").write_text("[profile_memory]\nfrom = 'a.json'\n")
    assert read(tmp_path / "from.toml", "profile_memory", ProfileMemory) == {"from_": "a.json"}
    again = written(ProfileMemory(from_="a.json"), "profile_memory", leave_out=set(vars(ProfileMemory())) - {"from_"})
    assert again.splitlines()[1:] == ["[profile_memory]", 'from = "a.json"']
    assert (found.json, found.force) == (False, False)  # of one start alone
    assert vars(found) | {"json": True, "force": True} == vars(given)


@pytest.mark.parametrize(
    ("line", "message"),
    [
        ("steps = 1.5", "steps must be a whole number or \"None\", but is 1.5"),
        ("steps = true", "steps must be a whole number or \"None\", but is True"),
        ("workers = '2'", "workers must be a whole number, but is '2'"),
        ("learning-rate = 'high'", "learning-rate must be a number or \"None\", but is 'high'"),
        ("memory = 'stack'", "memory must be \"block\" or \"heap\", but is 'stack'"),
        ("data = 'digits'", "data must be a list, each element a text, but is 'digits'"),
        ("data = ['digits', 3]", "data must be a text, but is ['digits', 3]"),
        ("weights = 3", "weights must be a path in quotes or \"None\", but is 3"),
        ("seed = {a = 1}", "has a table [seed]"),
        ("snapshot_every = 1\nsnapshot-every = 2", "snapshot-every is given twice"),
        ("stepz = 3", "train.py has no option train.stepz; did you mean steps?"),
    ],
)  # fmt: skip
def test_a_wrong_type_in_a_file_says_what_was_expected(
    program: Runner, tmp_path: Path, line: str, message: str
) -> None:
    (tmp_path / "c.toml").write_text(f"{'' if '{' in line else '[train]'}\n{line}\n")
    done = program("train", "--config", "c.toml")
    assert done.returncode == 2
    assert message in " ".join(done.stderr.split())


def test_a_run_s_own_file_of_options_starts_the_same_run(program: Runner, tmp_path: Path) -> None:
    """With what was chosen for it, too: batch, learning rate, budget. And a stopped run still goes on."""
    first = program(
        "train", *USES["train"][:-1], "first", "--dropout", "0.1", "--seed", "5", "--snapshot-every", "1", "--json"
    )
    assert first.returncode == 0, first.stderr
    again = program("train", "--config", "first/config.toml", "--run-dir", "second", "--json")
    assert again.returncode == 0, again.stderr
    hashes = [json.loads(done.stdout.splitlines()[-1])["losses_sha256"] for done in (first, again)]
    assert hashes[0] == hashes[1]
    assert (tmp_path / "first/config.toml").read_text() == (tmp_path / "second/config.toml").read_text()
    changed = program("train", "--config", "first/config.toml", "--run-dir", "third", "--seed", "6", "--json")
    assert json.loads(changed.stdout.splitlines()[-1])["losses_sha256"] != hashes[0]
    (tmp_path / "second" / "summary.json").unlink()  # as if it had been stopped
    resumed = program("train", "--resume", "second", "--config", "second/config.toml", "--json")
    assert resumed.returncode == 0, resumed.stderr
    assert json.loads(resumed.stdout.splitlines()[-1])["losses_sha256"] == hashes[0]


PROGRAM = """
import sys
sys.path.insert(0, {scripts!r})
import _console
from dataclasses import dataclass

def main(options):
    {body}
    return {{"done": True}}

_console.run(main, _console.Common(), "Does something.\\n\\nExamples:\\n  python scripts/x.py")
"""


def small(
    tmp_path: Path,
    body: str,
    *arguments: str,
    stdout: Any = subprocess.PIPE,
    variables: dict[str, str] | None = None,
) -> subprocess.CompletedProcess[str]:
    """Runs a program of one line in a process of its own."""
    (tmp_path / "small.py").write_text(PROGRAM.format(scripts=str(ROOT / "scripts"), body=body))
    environment = {name: value for name, value in os.environ.items() if name != "PYTHONUNBUFFERED"}
    return subprocess.run(
        [sys.executable, "small.py", *arguments],
        cwd=tmp_path, text=True, timeout=60, check=False, env={**environment, "PYTHONPATH": str(ROOT), **(variables or {})},
        stdout=stdout, stderr=subprocess.PIPE,
    )  # fmt: skip


def test_a_fault_of_our_own_is_told_without_a_traceback_and_with_one_on_demand(
    program: Runner, tmp_path: Path, scripts: object, monkeypatch: pytest.MonkeyPatch
) -> None:
    import _plan_drawing  # type: ignore[import-not-found]

    monkeypatch.setattr(_plan_drawing, "format_size", {}.__getitem__)
    use = ("plan", *USES["plan"])
    done = program(*use)
    assert done.returncode == 70
    assert re.match(
        r"error: KeyError: \d+\nThis is a fault of Retape, at scripts/_plan_drawing.py, line \d+", done.stderr
    )
    assert "--debug" in done.stderr
    assert "Traceback" not in done.stderr
    assert "Traceback" in program(*use, "--debug").stderr
    (tmp_path / "debug.toml").write_text("debug = true\n")
    assert "Traceback" in program(*use, "--config", "debug.toml").stderr
    monkeypatch.setattr(_plan_drawing, "format_size", len)  # which takes no numbers
    assert program(*use).returncode == 70

    def on_purpose(*given: object) -> None:
        raise TypeError("there is no such option")

    monkeypatch.setattr(_plan_drawing, "format_size", on_purpose)
    done = program(*use)
    assert (done.returncode, done.stderr) == (2, "error: there is no such option\n")


def test_a_python_that_is_too_old_is_told(scripts: object, monkeypatch: pytest.MonkeyPatch) -> None:
    import _packages  # type: ignore[import-not-found]

    assert _packages.fault() is None
    monkeypatch.setattr(sys, "version_info", (3, 10, 1))
    assert "is too old; make an environment with 3.11 or newer" in _packages.fault()


def test_a_python_that_lacks_packages_is_told_which_one_has_them(
    scripts: object, monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    import _packages

    monkeypatch.setattr(_packages, "ROOT", tmp_path)
    monkeypatch.chdir(tmp_path)
    monkeypatch.setattr(_packages, "NEEDED", {"of_nobody": "of-nobody"})
    assert _packages.fault().endswith("; install what it needs into this environment: pip install of-nobody")
    (tmp_path / ".venv" / "bin").mkdir(parents=True)
    (tmp_path / ".venv" / "bin" / "python").touch()
    told = f"of-nobody is not installed for {sys.executable}; run this with .venv/bin/python instead, which has what it needs"
    assert _packages.fault() == told
    without = dict.fromkeys(_packages.OWN)
    assert "run this with .venv/bin/python instead" in _packages.clash(without)
    monkeypatch.setattr(sys, "prefix", str(tmp_path / ".venv"))
    assert _packages.clash(without).endswith("; install what it needs into this environment: pip install -e .")


def test_a_mistake_in_a_person_s_own_code_is_not_called_a_fault_and_no_character_is_one(tmp_path: Path) -> None:
    done = small(tmp_path, "_console.console.print('a → b'); {}['missing']", variables={"PYTHONIOENCODING": "ascii"})
    assert (done.returncode, done.stdout, "fault of Retape" in done.stderr) == (1, "a ? b\n", False)
    assert re.fullmatch(r"error: KeyError: 'missing', at .*small.py, line \d+\n", done.stderr)


def test_output_that_cannot_be_written_is_an_error_and_a_closed_pipe_is_none(tmp_path: Path) -> None:
    body = "[_console.console.print('x' * 100) for _ in range(1000)]"
    with Path("/dev/full").open("w") as full:
        done = small(tmp_path, body, stdout=full)
        assert (done.returncode, done.stderr) == (1, "error: cannot write the output: No space left on device\n")
    reader, writer = os.pipe()
    os.close(reader)
    done = small(tmp_path, body, stdout=writer)
    os.close(writer)
    assert (done.returncode, done.stderr) == (141, "")


def test_a_file_on_a_full_disk_is_named_and_nothing_is_left(
    program: Runner, tmp_path: Path, scripts: object, monkeypatch: pytest.MonkeyPatch
) -> None:
    def full(*given: object) -> None:
        raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))

    import _console  # type: ignore[import-not-found]

    with monkeypatch.context() as patch:
        patch.setattr(_console, "write_all", full)
        done = program("plan", *USES["plan"], "--save-config", "out.toml")
    assert (done.returncode, done.stderr) == (1, "error: cannot write out.toml: No space left on device\n")
    with monkeypatch.context() as patch:
        patch.setattr(os, "replace", full)
        done = program("plan", *USES["plan"], "--costs-out", "costs.json")
    assert (done.returncode, done.stderr) == (1, "error: cannot write costs.json: No space left on device\n")
    assert list(tmp_path.iterdir()) == []


@pytest.mark.parametrize("quiet", [False, True])
def test_progress_is_drawn_on_a_terminal_unless_quiet(tmp_path: Path, quiet: bool) -> None:
    terminal, end = pty.openpty()
    environment = {**os.environ, "TERM": "xterm", "COLUMNS": "80"}
    words = command("plan", *USES["plan"], *(["--quiet"] if quiet else []))
    with subprocess.Popen(words, stdin=end, stdout=end, stderr=end, cwd=tmp_path, env=environment) as process:
        os.close(end)
        drawn = b""
        try:
            while piece := os.read(terminal, 65536):
                drawn += piece
        except OSError as error:  # how Linux says that nobody writes any more
            assert error.errno == errno.EIO
        os.close(terminal)
    assert process.returncode == 0
    if quiet:
        assert drawn == b""
    else:
        assert b"planning" in drawn
        assert b"\x1b[2K" in drawn  # a line that is drawn anew


def test_ctrl_c_while_a_program_imports_ends_it_without_a_traceback(tmp_path: Path) -> None:
    (tmp_path / "sitecustomize.py").write_text(
        "import os, signal, sys\n"
        "class Finder:\n"
        "    def find_spec(self, name, *more):\n"
        "        if name == 'checkpointing.generation':\n"
        "            os.kill(os.getpid(), signal.SIGINT)\n"
        "sys.meta_path.insert(0, Finder())\n"
    )
    environment = {**os.environ, "PYTHONPATH": f"{tmp_path}:{ROOT}"}
    done = subprocess.run(
        command("generate", "--help"), capture_output=True, text=True, env=environment, check=False, timeout=60
    )
    assert (done.returncode, done.stdout, done.stderr) == (130, "", "stopped by Ctrl-C\n")


def test_a_package_that_is_not_installed_is_told_before_anything(tmp_path: Path) -> None:
    (tmp_path / "sitecustomize.py").write_text(
        "from importlib.machinery import PathFinder\n"
        "find = PathFinder.find_spec\n"
        "PathFinder.find_spec = lambda name, *more: None if name.split('.')[0] == 'tomli_w' else find(name, *more)\n"
    )
    environment = {**os.environ, "PYTHONPATH": f"{tmp_path}:{ROOT}"}
    done = subprocess.run(command("plan"), capture_output=True, text=True, env=environment, check=False, timeout=60)
    assert (done.returncode, done.stdout) == (1, "")
    assert done.stderr.startswith(f"error: tomli-w is not installed for {sys.executable}; ")
    assert len(done.stderr.splitlines()) == 1
