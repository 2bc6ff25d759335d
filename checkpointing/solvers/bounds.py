"""Bounds that no schedule of a chain passes, whatever it keeps and in whatever order it computes.

*Time.* When the loss's backward begins, some r[i] are held. Every other stage runs forward once more before its own backward.
At that moment a[0] and δ[L] are held besides, so

    time ≥ Σf + min over sets S of saved stages with Σ_{i∈S} ω̄_i ≤ M - ω_0 - ω_L of  Σ_{i∈S} b_i + Σ_{i∉S} (f_i + b_i)

where each stage of S is saved as any of its options, and b_i of the others is that of the fastest: a knapsack.

*Memory.* The backward of stage i holds a[0], a[i-1], r[i], δ[i], δ[i-1] and its temporaries, whatever else there is.
"""

from __future__ import annotations

import numpy as np

from checkpointing.solvers.chain import StageChain


def least_seconds(chain: StageChain, memory: int, steps: int = 10_000) -> float:
    """Returns a lower bound on the time of every schedule that holds at most so much.

    The knapsack is solved by dynamic programming in units of ⌈capacity / steps⌉ bytes, sizes rounded down, which keeps it a bound: it
    is exact if the unit is one byte. Time O(L·steps) for each option.

    Args:
        chain: The chain.
        memory: M in bytes, the batch included.
        steps: In how many units the capacity is divided at most.

    Returns:
        Seconds; infinite where the memory is below `least_memory`.
    """
    if memory < least_memory(chain):
        return float("inf")
    capacity = max(0, memory - chain.input_nbytes - chain.nbytes(chain.length))
    unit = max(1, -(-capacity // steps))
    best = np.zeros(capacity // unit + 1)  # by units at hand
    for stage in chain.stages:
        fastest = min(option.backward_seconds for option in stage.options)
        found = best + (stage.forward_seconds + fastest)
        for option in stage.options:
            shift = option.nbytes // unit
            if shift < len(best):
                np.minimum(found[shift:], best[: len(best) - shift] + option.backward_seconds, out=found[shift:])
        best = found
    return chain.forward_seconds + float(best[-1]) + min(o.backward_seconds for o in chain.loss.options)


def least_memory(chain: StageChain) -> int:
    """Returns a lower bound on the bytes that every schedule holds at its peak, the batch included.

    It is the most that any one stage takes, by its least option: in its backward, or in the forward that saved what this reads.
    """
    most = 0
    for number, stage in enumerate(chain.all, 1):
        held = chain.input_nbytes + (chain.nbytes(number - 1) if number > 1 else 0)
        cotangents = stage.nbytes + chain.cotangent_nbytes(number - 1)
        needed = min(
            option.nbytes + max(cotangents + option.backward_temporary, option.forward_temporary)
            for option in stage.options
        )
        most = max(most, held + needed)
    return most
