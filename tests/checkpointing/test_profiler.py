"""Measurements in a fresh process."""

import pytest

from checkpointing.profiler import measure_policy, peak_rss, reset_peak_rss


def test_a_policy_is_measured_in_a_fresh_process() -> None:
    profile = measure_policy("byte-gpt-tiny", "every-k:1", batch=2, shards=2, steps=1)
    assert profile.policy == "every-k:1"
    assert profile.predicted_peak_bytes == profile.ledger_peak_bytes > 0
    # Every page of parameters, gradients and state is touched, so the process holds about what the ledger counts.
    assert profile.rss_peak_bytes > 0.8 * profile.ledger_peak_bytes
    assert profile.step_seconds > 0


def test_a_failure_in_that_process_is_told() -> None:
    with pytest.raises(RuntimeError, match="under every-k:0 failed: ValueError: unknown policy"):
        measure_policy("mlp-small", "every-k:0", batch=16)


def test_the_peak_of_resident_memory_sees_what_was_freed_and_can_start_again() -> None:
    reset_peak_rss()
    before = peak_rss()
    block = bytearray(64 * 2**20)
    block[::4096] = b"x" * len(block[::4096])
    del block
    assert peak_rss() >= before + 32 * 2**20
    reset_peak_rss()
    assert peak_rss() < before + 32 * 2**20
