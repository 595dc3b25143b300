"""Engines that share a GPU: the law, against the Markov chain it solves, and in a run."""

from __future__ import annotations

from itertools import combinations

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from mosaicsim.hardware.sharing import rates

parts = st.lists(st.floats(0.02, 0.98), min_size=1, max_size=4)


def test_two_engines_without_host_time_get_half_each() -> None:
    assert rates([1.0, 1.0]) == [0.5, 0.5]
    assert rates([1.0] * 4) == [0.25] * 4


def test_an_engine_with_nothing_for_the_gpu_is_in_nobodys_way() -> None:
    assert rates([0.0, 0.7]) == [1.0, 1.0]
    assert rates([]) == []


@given(st.floats(0, 1), st.floats(0, 1))
def test_two_engines_go_at_one_over_one_plus_the_product(u: float, v: float) -> None:
    assert rates([u, v]) == pytest.approx([1 / (1 + u * v)] * 2)


@given(parts)
def test_the_law_is_what_the_markov_chain_settles_to(gpu_parts: list[float]) -> None:
    """Iterations of one second on average, exponential host and GPU times, the GPU divided evenly."""
    n = len(gpu_parts)
    states = [frozenset(at) for size in range(n + 1) for at in combinations(range(n), size)]
    place = {state: i for i, state in enumerate(states)}
    flow = np.zeros((len(states), len(states)))
    for at_gpu in states:
        for engine, part in enumerate(gpu_parts):
            to = at_gpu ^ {engine}
            speed = 1 / (part * len(at_gpu)) if engine in at_gpu else 1 / (1 - part)
            flow[place[at_gpu], place[to]] += speed
    balance = np.vstack([(flow - np.diag(flow.sum(axis=1))).T, np.ones(len(states))])
    chance = np.linalg.lstsq(balance, np.append(np.zeros(len(states)), 1.0), rcond=None)[0]
    for engine, (part, rate) in enumerate(zip(gpu_parts, rates(gpu_parts), strict=True)):
        on_host = sum(chance[place[state]] for state in states if engine not in state)
        assert rate == pytest.approx(on_host / (1 - part), rel=1e-6)


@given(parts, st.floats(0.02, 0.98))
def test_company_slows_down_but_by_no_more_than_its_share(gpu_parts: list[float], other: float) -> None:
    alone, beside = rates(gpu_parts), rates([*gpu_parts, other])
    n = len(gpu_parts) + 1
    assert all(1 / n - 1e-12 <= b <= a + 1e-12 for a, b in zip(alone, beside, strict=False))
    used = sum(rate * part for rate, part in zip(beside, [*gpu_parts, other], strict=True))
    assert used <= 1 + 1e-12  # the GPU is never busy for longer than there is time
