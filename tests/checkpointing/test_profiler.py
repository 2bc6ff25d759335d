"""Measurements in a fresh process."""

import pytest

from checkpointing.profiler import measure_policy


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
