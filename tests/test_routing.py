"""Routers: what every draw keeps to, and what each router promises of its own."""

from __future__ import annotations

from typing import Any

import numpy as np
import pytest
from hypothesis import assume, given
from hypothesis import strategies as st
from pydantic import ValidationError

from mosaicsim.errors import InfeasibleError, ScenarioError, TraceError
from mosaicsim.workload.calls import Ints
from mosaicsim.workload.dealing import draw_weighted, popularity, whole_slots
from mosaicsim.workload.routing import ROUTERS, RoutingInput, Skill


def block(n_questions: int = 60, n_experts: int = 6, k: int = 3, **changes: Any) -> RoutingInput:
    graded = np.full((4, n_experts), 25)
    right = np.tile(np.arange(n_experts) * 4 + 1, (4, 1))
    values: dict[str, Any] = {
        "k": k,
        "experts": tuple(f"e{i}" for i in range(n_experts)),
        "category": np.arange(n_questions) % 3,
        "graded": graded,
        "right": right,
        "recorded": None,
    }
    return RoutingInput(**values | changes)


def route(name: str, given_block: RoutingInput, seed: int = 0, **options: Any) -> Ints:
    router = ROUTERS[name](ROUTERS[name].Options(**options))
    return router.draw(given_block, np.random.default_rng(seed))


def repeats(drawn: Ints) -> bool:
    ordered = np.sort(drawn, axis=1)
    return bool((ordered[:, 1:] == ordered[:, :-1]).any())


DRAWING = {
    "uniform": {},
    "skill": {"weights": "softmax", "temperature": 0.05},
    "zipf": {"max_min": 1.8},
    "dirichlet": {"cv": 0.3},
}
sizes = st.tuples(st.integers(1, 80), st.integers(3, 9), st.integers(1, 3), st.integers(0, 2**32))


@pytest.mark.parametrize("name", DRAWING)
@given(size=sizes)
def test_every_question_gets_k_experts_of_the_pool(name: str, size: tuple[int, int, int, int]) -> None:
    n_questions, n_experts, k, seed = size
    drawn = route(name, block(n_questions, n_experts, k), seed, **DRAWING[name])
    assert drawn.shape == (n_questions, k)
    assert drawn.min() >= 0
    assert drawn.max() < n_experts


@pytest.mark.parametrize("name", DRAWING)
@given(size=sizes)
def test_without_replacement_nobody_is_drawn_twice(name: str, size: tuple[int, int, int, int]) -> None:
    n_questions, n_experts, k, seed = size
    try:
        drawn = route(name, block(n_questions, n_experts, k), seed, replacement=False, **DRAWING[name])
    except InfeasibleError:
        # One expert's exact share of few slots can exceed the number of questions.
        assume(False)
    assert not repeats(drawn)


@pytest.mark.parametrize("name", DRAWING)
def test_a_seed_decides_the_draw(name: str) -> None:
    first, again, other = (route(name, block(), seed, **DRAWING[name]) for seed in (1, 1, 2))
    np.testing.assert_array_equal(first, again)
    assert (first != other).any()


@given(
    counts=st.lists(st.integers(0, 20), min_size=4, max_size=6).filter(lambda c: sum(c) >= 3),
    seed=st.integers(0, 2**32),
    replacement=st.booleans(),
)
def test_fixed_counts_are_met_exactly(counts: list[int], seed: int, replacement: bool) -> None:
    counts[0] += -sum(counts) % 3
    n_questions = sum(counts) // 3
    assume(replacement or max(counts) <= n_questions)
    given_block = block(n_questions, len(counts))
    wanted = dict(zip(given_block.experts, counts, strict=True))
    drawn = route("fixed_counts", given_block, seed, counts=wanted, replacement=replacement)
    assert drawn.shape == (n_questions, 3)
    np.testing.assert_array_equal(np.bincount(drawn.ravel(), minlength=len(counts)), counts)
    assert replacement or not repeats(drawn)


def test_the_papers_medmcqa_counts_need_repeats() -> None:
    """Table 3 of arXiv 2606.03014: Qwen has 5682 slots over 4183 questions."""
    counts = {"e0": 620, "e1": 144, "e2": 4195, "e3": 625, "e4": 1283, "e5": 5682}
    drawn = route("fixed_counts", block(4183), counts=counts)
    np.testing.assert_array_equal(np.bincount(drawn.ravel()), list(counts.values()))
    assert repeats(drawn)
    with pytest.raises(InfeasibleError, match=r"'e5' has 5,682 slots but there are 4,183 questions"):
        route("fixed_counts", block(4183), counts=counts, replacement=False)


def test_dealing_without_repeats_mixes_the_questions() -> None:
    """Every pair of experts meets about as often as chance has it, not only neighbours in the dealt order."""
    given_block = block(3000)
    counts = dict.fromkeys(given_block.experts, 1500)
    drawn = route("fixed_counts", given_block, counts=counts, replacement=False)
    there = np.zeros((3000, 6), dtype=int)
    np.put_along_axis(there, drawn, 1, axis=1)
    together = there.T @ there
    pairs = together[~np.eye(6, dtype=bool)]
    np.testing.assert_allclose(pairs, 3000 * (3 / 6) * (2 / 5), rtol=0.15)


@pytest.mark.parametrize(
    ("counts", "message"),
    [
        ({"e0": 100, "e7": 80}, "no expert 'e7' in trace; accepted: e0, e1"),
        ({"e0": 100, "e1": 81}, "add up to 181, but 60 evaluated questions x k = 3 are 180 slots"),
    ],
)
def test_fixed_counts_that_cannot_be(counts: dict[str, int], message: str) -> None:
    with pytest.raises(ScenarioError, match=message):
        route("fixed_counts", block(), counts=counts)


@pytest.mark.parametrize("name", ["zipf", "dirichlet"])
@given(
    target=st.floats(1, 50),
    n_experts=st.integers(2, 8),
    seed=st.integers(0, 2**32),
    order=st.sampled_from(["random", "first_seen"]),
)
def test_max_min_is_met_up_to_whole_slots(
    name: str, target: float, n_experts: int, seed: int, order: str
) -> None:
    drawn = route(name, block(4000, n_experts), seed, max_min=target, order=order)
    counts = np.bincount(drawn.ravel(), minlength=n_experts)
    low, high = counts.min(), counts.max()
    assert (high - 1) / (low + 1) <= target <= (high + 1) / max(low - 1, 1)
    if order == "first_seen":
        assert (np.diff(counts) <= 0).all()


@pytest.mark.parametrize("name", ["zipf", "dirichlet"])
@given(share=st.floats(0, 0.95), n_experts=st.integers(2, 8), seed=st.integers(0, 2**32))
def test_cv_is_met(name: str, share: float, n_experts: int, seed: int) -> None:
    target = share * np.sqrt(n_experts - 1)
    drawn = route(name, block(4000, n_experts), seed, cv=target)
    counts = np.bincount(drawn.ravel(), minlength=n_experts)
    assert popularity(counts).cv == pytest.approx(target, abs=0.002)


def test_a_cv_beyond_one_expert_alone_is_refused() -> None:
    with pytest.raises(ScenarioError, match=r"cv = 3 cannot be reached; with 6 experts it stays below 2\.24"):
        route("zipf", block(), cv=3)


@pytest.mark.parametrize(
    ("name", "options"),
    [
        ("zipf", {}),
        ("zipf", {"cv": 1, "max_min": 2}),
        ("zipf", {"max_min": 0.5}),
        ("zipf", {"cv": float("nan")}),
        ("skill", {"pool": 3}),
        ("skill", {"temperature": 0}),
        ("fixed_counts", {"counts": {"e0": -1}}),
        ("recorded", {"replacement": True}),
    ],
)
def test_options_are_checked(name: str, options: dict[str, Any]) -> None:
    with pytest.raises(ValidationError):
        ROUTERS[name].Options(**options)


def test_skill_shrinks_towards_the_experts_mean() -> None:
    graded = np.array([[10, 10], [1, 1], [0, 0]])
    right = np.array([[8, 2], [0, 1], [0, 0]])
    strength = Skill(ROUTERS["skill"].Options(shrinkage=4)).strength(block(graded=graded, right=right))
    mean = np.array([8, 3]) / 11
    np.testing.assert_allclose(strength[0], (right[0] + 4 * mean) / 14)
    np.testing.assert_allclose(strength[1], (right[1] + 4 * mean) / 5)
    np.testing.assert_allclose(strength[2], mean)


def test_skill_prefers_the_strong_and_keeps_to_its_pool() -> None:
    counts = np.bincount(route("skill", block(3000)).ravel(), minlength=6)
    assert (np.diff(counts) > 0).all()
    pooled = np.bincount(route("skill", block(3000), pool_size=2).ravel(), minlength=6)
    assert (pooled[:4] == 0).all()
    assert (pooled[4:] > 0).all()
    with pytest.raises(InfeasibleError, match="k = 3 different experts from a pool of 2"):
        route("skill", block(), pool_size=2, replacement=False)


def test_skill_follows_the_category() -> None:
    right = np.array([[25, 1, 1], [1, 25, 1], [1, 1, 25], [0, 0, 0]])
    given_block = block(900, 3, graded=np.full((4, 3), 25), right=right)
    drawn = route("skill", given_block, weights="softmax", shrinkage=0)
    agree = (drawn == given_block.category[:, None]).mean()
    assert agree > 0.95


def test_skill_needs_grades() -> None:
    graded = np.full((4, 6), 25)
    graded[:, 2] = 0
    with pytest.raises(TraceError, match=r"graded calibration rows .* of every expert, and 'e2' has none"):
        route("skill", block(graded=graded, right=np.zeros_like(graded)))


def test_recorded_routing_is_passed_through() -> None:
    recorded = np.arange(180).reshape(60, 3) % 6
    np.testing.assert_array_equal(route("recorded", block(recorded=recorded)), recorded)
    with pytest.raises(TraceError, match="recorded routing has k = 3, not 2"):
        route("recorded", block(k=2, recorded=recorded))
    with pytest.raises(
        TraceError, match=r"no routing is recorded .* routers that draw one: skill, fixed_counts"
    ):
        route("recorded", block())


def test_weighted_draws_follow_the_weights() -> None:
    weights = np.tile([0.0, 1.0, 3.0, 0.0], (20_000, 1))
    shares = np.bincount(draw_weighted(weights, 3, True, np.random.default_rng(0)).ravel(), minlength=4)
    np.testing.assert_allclose(shares / 60_000, [0, 0.25, 0.75, 0], atol=0.01)
    first = draw_weighted(weights, 1, False, np.random.default_rng(0))
    np.testing.assert_allclose(
        np.bincount(first.ravel(), minlength=4) / 20_000, [0, 0.25, 0.75, 0], atol=0.01
    )


@given(st.lists(st.floats(0.001, 1), min_size=1, max_size=9), st.integers(0, 500))
def test_whole_slots_add_up_and_stay_within_one(raw: list[float], n_slots: int) -> None:
    shares = np.array(raw) / sum(raw)
    counts = whole_slots(shares, n_slots)
    assert counts.sum() == n_slots
    assert (np.abs(counts - shares * n_slots) < 1 + 1e-9).all()
