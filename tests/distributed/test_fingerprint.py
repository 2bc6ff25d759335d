"""Fingerprints: what differs is named with its ranks."""

from __future__ import annotations

import json
import os
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest

from distributed import FingerprintMismatch
from distributed.fingerprint import differences, fingerprint, require_equal
from tests.distributed.saved_runs import trainer
from tests.scripts.helpers import ROOT


def test_a_fingerprint_has_all_that_bits_depend_on() -> None:
    here = fingerprint(3)
    assert set(here) == {"machine", "libc", "numpy", "blas", "cpu_features", "threads"}
    assert here["threads"] == "3"
    assert all(here.values())
    assert here == fingerprint(3)


def test_another_core_type_of_the_blas_is_another_fingerprint() -> None:
    program = "import json; from distributed.fingerprint import fingerprint; print(json.dumps(fingerprint(1)))"
    found = [
        json.loads(
            subprocess.run(
                [sys.executable, "-c", program], capture_output=True, text=True, check=True,
                env={**os.environ, "PYTHONPATH": str(ROOT), "OPENBLAS_CORETYPE": core},
            ).stdout
        )
        for core in ("Nehalem", "Haswell")
    ]  # fmt: skip
    if "openblas" not in found[0]["blas"] or found[0]["machine"] != "x86_64":
        pytest.skip("NumPy's BLAS here is no OpenBLAS for x86, whose core type can be chosen")
    (told,) = differences({"one": found[0], "two": found[1]})
    assert told.startswith("blas: ") and "Nehalem' on one" in told and "Haswell' on two" in told


def test_differences_name_who_has_what_and_of_cpu_features_only_those_not_shared() -> None:
    prints = [
        {"numpy": "2.1", "cpu_features": "AVX2 FMA3", "threads": "1"},
        {"numpy": "2.1", "cpu_features": "AVX2 AVX512F FMA3", "threads": "2"},
        {"numpy": "2.1", "cpu_features": "AVX2 FMA3", "threads": "1"},
    ]
    assert require_equal([prints[0], prints[2]], allowed=False)
    with pytest.raises(FingerprintMismatch) as caught:
        require_equal(prints, allowed=False)
    lines = str(caught.value).split("\n  ")
    assert lines[1:3] == [
        "cpu_features: '' on rank 0, rank 2; 'AVX512F' on rank 1",
        "threads: '1' on rank 0, rank 2; '2' on rank 1",
    ]
    assert "--allow-mixed-cpus" in lines[-1]
    assert not require_equal(prints, allowed=True)


def test_workers_that_differ_are_refused_unless_allowed_which_is_recorded(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    from distributed.groups import LocalGroup

    call = LocalGroup.call

    def mixed(self: LocalGroup, method: str, *arguments: Any) -> list[Any]:
        answers = call(self, method, *arguments)
        return [*answers, {**answers[0], "blas": "another"}] if method == "fingerprint" else answers

    monkeypatch.setattr(LocalGroup, "call", mixed)
    with pytest.raises(FingerprintMismatch, match=r"(?s)would not compute the same bits.*'another' on rank 1"):
        trainer(tmp_path / "refused").fit()
    assert not (tmp_path / "refused").exists()
    summary = trainer(tmp_path / "run", allow_mixed_cpus=True, steps=2).fit().summary
    assert summary["same_bits"] is False
    config = json.loads((tmp_path / "run" / "config.json").read_text())
    assert config["same_bits"] is False and config["options"]["allow_mixed_cpus"] is True
