"""The calibrated gate: its bound holds over generated worlds, and it knows what a vote is worth."""

from __future__ import annotations

from dataclasses import dataclass, replace
from typing import Any

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from pydantic import ValidationError

from mosaicsim.aggregation.base import ASK, Verdict, decide_each
from mosaicsim.aggregation.calibrated import Calibrated, CalibratedOptions, Rule
from mosaicsim.aggregation.evidence import Evidence, measure
from mosaicsim.aggregation.registry import create
from mosaicsim.workload.ballots import Ballot, Ballots, GateCalibration, GradedCalls
from mosaicsim.workload.calls import NO_ANSWER

RIGHT, OPTIONS = 0, 5
CATEGORIES = ("easy", "hard")


@dataclass(frozen=True)
class World:
    """Experts and an aggregator with known chances; the answer RIGHT is right."""

    chances: tuple[float, ...] = (0.75, 0.6, 0.55, 0.4)
    popular: float = 0.5
    """Share of the wrong answers that fall on the same wrong option."""
    reads: float = 0.6
    """Chance that the aggregator sees the right answer where the votes differ and one is right."""
    keeps: float = 0.97
    """Chance that the aggregator keeps a unanimous answer."""
    repeats: float = 0.8
    """Chance that a second draw of an expert repeats its first answer."""

    def questions(self, n: int, rng: np.random.Generator, k: int = 3) -> GateCalibration:
        category = rng.integers(2, size=n)
        chance = np.array(self.chances)[None, :] - 0.15 * category[:, None]
        block = np.stack([self._answers(chance, rng) for _ in range(k)], axis=2)  # question, expert, sample
        for sample in range(1, k):
            again = rng.random(block.shape[:2]) < self.repeats
            block[:, :, sample] = np.where(again, block[:, :, 0], block[:, :, sample])
        experts = rng.integers(len(self.chances), size=(n, k))
        sample = np.tril(experts[:, :, None] == experts[:, None, :], -1).sum(axis=2)
        answers = block[np.arange(n)[:, None], experts, sample]
        right = self._aggregator(answers, rng)
        shape = block[:, :, 0].shape
        return GateCalibration(
            experts=tuple(f"e{i}" for i in range(len(self.chances))),
            ballots=Ballots(
                answers,
                experts,
                np.full(answers.shape, np.nan),
                tuple(CATEGORIES[c] for c in category.tolist()),
            ),
            correct=answers == RIGHT,
            aggregator_correct=right,
            calls=GradedCalls(
                np.repeat(np.arange(n), shape[1]),
                np.tile(np.arange(shape[1]), n),
                block[:, :, 0].ravel(),
                block[:, :, 0].ravel() == RIGHT,
                np.full(shape[0] * shape[1], np.nan),
            ),
            aggregator="modelled",
        )

    def _answers(self, chance: np.ndarray, rng: np.random.Generator) -> np.ndarray:
        wrong = np.where(rng.random(chance.shape) < self.popular, 1, rng.integers(2, OPTIONS, chance.shape))
        return np.where(rng.random(chance.shape) < chance, RIGHT, wrong)

    def _aggregator(self, answers: np.ndarray, rng: np.random.Generator) -> np.ndarray:
        unanimous = (answers == answers[:, :1]).all(axis=1)
        some = (answers == RIGHT).any(axis=1)
        flips = rng.random(len(answers)) >= self.keeps
        return np.where(unanimous, some ^ flips, some & (rng.random(len(answers)) < self.reads))


def loss(gate: Calibrated, held_out: GateCalibration) -> float:
    """Accuracy lost against the aggregator on graded questions, in points."""
    accepted = gate.decide_all(held_out.ballots)
    right = np.where(accepted == ASK, held_out.aggregator_correct, accepted == RIGHT)
    return 100 * float(held_out.aggregator_correct.mean() - right.mean())


WORLDS = {
    "gains": World(keeps=0.94, reads=0.5),
    "losses": World(keeps=0.995, reads=0.8),
    "weak": World(chances=(0.5, 0.45, 0.4, 0.3), reads=0.7),
    "strong": World(chances=(0.97, 0.9, 0.85, 0.8), reads=0.9),
}


@pytest.mark.parametrize("name", WORLDS)
@pytest.mark.parametrize("options", [{}, {"loss": "gross"}], ids=["net", "gross"])
def test_the_bound_holds_at_the_stated_confidence(name: str, options: dict[str, Any]) -> None:
    """Over 80 calibration samples, the true loss of the rule chosen is above the bound as rarely as promised."""
    world, level, n_samples = WORLDS[name], 0.2, 80
    rng = np.random.default_rng([*name.encode()])
    truth = world.questions(40_000, rng)
    gate = create("calibrated", {"bound_pp": 2, "confidence": 1 - level, **options})
    losses = [loss(gate.fit(world.questions(250, rng)), truth) for _ in range(n_samples)]  # type: ignore[attr-defined]  # `create` says Gate; this one is fitted
    allowed = level + 3 * np.sqrt(level * (1 - level) / n_samples)
    assert np.mean(np.array(losses) > 2) <= allowed


def test_the_coverage_test_can_fail() -> None:
    """A rule that trusts the sample's own loss breaks the bound far more often than 20 % of the time."""
    world, rng = WORLDS["losses"], np.random.default_rng(1)
    truth = world.questions(40_000, rng)
    over = []
    for _ in range(60):
        sample = world.questions(250, rng)
        evidence = measure(sample, 30)
        rules = [
            Calibrated(CalibratedOptions(), Rule(evidence, float(t)))
            for t in np.unique(evidence.standing(sample.ballots).log_odds)
        ]
        chosen = next(rule for rule in rules if loss(rule, sample) <= 2)
        over.append(loss(chosen, truth) > 2)
    assert np.mean(over) > 0.35


def test_enough_questions_support_a_skip_and_few_do_not() -> None:
    world, rng = WORLDS["gains"], np.random.default_rng(3)
    held_out = world.questions(20_000, rng)
    gate = create("calibrated", {"bound_pp": 1})
    assert isinstance(gate, Calibrated)
    few, many = gate.fit(world.questions(30, rng)), gate.fit(world.questions(4000, rng))
    assert (few.decide_all(held_out.ballots) == ASK).all()
    assert not few.info["supported"]
    assert "no rule is supported at 1 pp at 95%: at the rates of these 30" in few.info["message"]
    assert few.info["questions_needed"] > 30
    unanimous = create("plurality", {"tau": 1}).decide_all(held_out.ballots) != ASK
    skipped = many.decide_all(held_out.ballots) != ASK
    assert many.info["supported"]
    assert skipped.mean() >= unanimous.mean()
    assert loss(many, held_out) < 1


def test_where_every_rule_loses_it_says_so() -> None:
    """An aggregator that is always right can only be lost against."""
    rng = np.random.default_rng(5)
    sample = WORLDS["weak"].questions(3000, rng)
    sample = replace(sample, aggregator_correct=np.ones(len(sample), bool))
    fitted = Calibrated(CalibratedOptions()).fit(sample)
    assert not fitted.info["supported"]
    assert fitted.info["questions_needed"] is None
    assert "each loses as much on these 3,000 calibration questions" in fitted.info["message"]


def test_before_it_is_fitted_it_asks() -> None:
    gate = create("calibrated", {})
    sample = World().questions(5, np.random.default_rng(0))
    assert (gate.decide_all(sample.ballots) == ASK).all()
    assert gate.decide(sample.ballots[0]).verdict is Verdict.ASK
    assert gate.decide(Ballot((), (), (), (0, 1), "easy")).verdict is Verdict.WAIT


def test_fitting_depends_on_nothing_else_and_changes_nothing() -> None:
    sample = World().questions(600, np.random.default_rng(2))
    gate = Calibrated(CalibratedOptions(bound_pp=3))
    first, again = gate.fit(sample), gate.fit(sample)
    assert first.info == again.info
    assert gate.info == {}
    assert (first.decide_all(sample.ballots) == again.decide_all(sample.ballots)).all()


# what a vote is worth


def evidence(**changes: Any) -> Evidence:
    """Three experts right 80, 60 and 40 % of the time, among five answers."""
    chances = np.array([[0.8, 0.6, 0.4]])
    plain = Evidence(np.log(chances / (1 - chances)), {}, 5, 0.3, 0.0, np.zeros(3))
    return replace(plain, **changes)


def log_odds(
    votes: list[int], experts: list[int], of: Evidence, confidences: list[float] | None = None
) -> float:
    shown = np.array([confidences or [np.nan] * len(votes)])
    return float(of.standing(Ballots(np.array([votes]), np.array([experts]), shown, ("c",))).log_odds[0])


def test_a_reliable_expert_weighs_more() -> None:
    of = evidence()
    assert log_odds([0, 0, 1], [0, 1, 2], of) > log_odds([0, 1, 0], [0, 1, 2], of)
    standing = of.standing(Ballots(np.array([[1, 0]]), np.array([[2, 0]]), np.full((1, 2), np.nan), ("c",)))
    assert standing.answer.tolist() == [0]


@settings(deadline=None)
@given(st.integers(0, 2), st.floats(0, 0.9))
def test_distinct_experts_count_more_than_repeats(expert: int, repeat: float) -> None:
    """Two equally reliable experts who agree say more than one that agrees with itself."""
    chances = np.full((1, 4), 0.7)
    of = evidence(log_odds=np.log(chances / (1 - chances)), repeat=repeat, mean_confidence=np.zeros(4))
    alone = log_odds([0], [expert], of)
    same, other = log_odds([0, 0], [expert, expert], of), log_odds([0, 0], [expert, 3], of)
    assert alone <= same < other


def test_a_repeat_that_differs_weakens_its_expert() -> None:
    of = evidence()
    assert log_odds([0, 1], [0, 0], of) < log_odds([0], [0], of)


def test_confidence_moves_a_vote() -> None:
    of = evidence(slope=3.0, mean_confidence=np.full(3, 0.5))
    low, unknown, high = (log_odds([0], [0], of, [c]) for c in (0.1, np.nan, 0.9))
    assert low < unknown < high


def test_weights_are_measured() -> None:
    world = World(repeats=0.9)
    found = measure(world.questions(6000, np.random.default_rng(4)), 30)
    chance = 1 / (1 + np.exp(-found.log_odds))
    np.testing.assert_allclose(chance[found.categories["easy"]], world.chances, atol=0.02)
    np.testing.assert_allclose(chance[found.categories["hard"]], np.array(world.chances) - 0.15, atol=0.02)
    # repeats differ a tenth as often as fresh draws would, and these a little less than two experts
    assert 0.03 < found.repeat < 0.2
    assert measure(World(repeats=0).questions(3000, np.random.default_rng(4)), 30).repeat > 0.75


def test_rare_categories_share_the_overall_weights() -> None:
    sample = World().questions(80, np.random.default_rng(4))
    assert set(measure(sample, 20).categories) == set(CATEGORIES)
    assert measure(sample, 60).categories == {} == measure(sample, None).categories


def test_confidences_are_used_where_they_were_recorded() -> None:
    sample = World().questions(2000, np.random.default_rng(6))
    rng = np.random.default_rng(7)
    shown = np.clip(0.4 * sample.calls.correct + 0.6 * rng.random(len(sample.calls.correct)), 0, 1)
    sample = replace(sample, calls=replace(sample.calls, confidence=shown))
    assert measure(sample, 30).slope > 2
    assert measure(sample, 30, use_confidence=False).slope == 0

    def slope(confidences: str, *, modelled: bool) -> float:
        gate = create("calibrated", {"confidences": confidences, "bound_pp": 50})
        fitted = gate.fit(replace(sample, confidences_modelled=modelled))  # type: ignore[attr-defined]  # `create` says Gate; this one is fitted
        return float(fitted._rule.evidence.slope)

    assert slope("recorded", modelled=False) > 2
    assert slope("recorded", modelled=True) == 0 == slope("never", modelled=False)
    assert slope("any", modelled=True) > 2


# early decisions


rules = st.builds(
    Rule,
    st.builds(
        lambda rows, answers, repeat, slope: Evidence(
            np.array([rows]), {}, answers, repeat, slope, np.full(3, 0.5)
        ),
        st.lists(st.floats(-4, 4), min_size=3, max_size=3),
        st.integers(2, 6),
        st.floats(0, 0.9),
        st.sampled_from([0.0, 2.0]),
    ),
    st.floats(-3, 8),
)
calls = st.lists(
    st.tuples(st.integers(NO_ANSWER, 3), st.integers(0, 2), st.one_of(st.just(np.nan), st.floats(0, 1))),
    min_size=2,
    max_size=5,
)


@settings(max_examples=400, deadline=None)
@given(rules, calls, st.integers(1, 4), st.randoms(use_true_random=False))
def test_an_early_decision_stands_whatever_comes(
    rule: Rule, votes: list[tuple[int, int, float]], pending: int, random: Any
) -> None:
    """Decided with calls pending, it is the same once they are in, in whatever order, or cancelled."""
    gate = Calibrated(CalibratedOptions(), rule)
    pending = min(pending, len(votes) - 1)
    seen, rest = votes[:-pending], votes[-pending:]
    early = gate.decide(Ballot(*zip(*seen, strict=True), tuple(e for _, e, _ in rest), "c"))  # type: ignore[arg-type, misc]
    if early.verdict is Verdict.WAIT:
        return
    whole = [*seen, *rest]
    random.shuffle(whole)
    cancelled = [*seen, *((NO_ANSWER, expert, np.nan) for _, expert, _ in rest)]
    for ended in (whole, cancelled):
        answers, experts, confidences = zip(*ended, strict=True)
        assert gate.decide(Ballot(answers, experts, confidences, (), "c")) == early


def test_two_reliable_votes_of_three_can_be_enough() -> None:
    """Early decisions do happen: the third, weak vote cannot turn two strong ones, nor can it save two weak ones."""
    gate = Calibrated(CalibratedOptions(), Rule(evidence(), 1.0))
    assert gate.decide(Ballot((0, 0), (0, 1), (np.nan,) * 2, (2,), "c")).verdict is Verdict.ACCEPT
    strict = Calibrated(CalibratedOptions(), Rule(evidence(), 9.0))
    assert strict.decide(Ballot((0, 1), (0, 1), (np.nan,) * 2, (2,), "c")).verdict is Verdict.ASK
    assert strict.decide(Ballot((), (), (), (0, 1, 2), "c")).verdict is Verdict.ASK


@settings(deadline=None)
@given(st.integers(0, 2**32), rules)
def test_both_ways_to_ask_agree(seed: int, rule: Rule) -> None:
    sample = World(chances=(0.8, 0.6, 0.4)).questions(30, np.random.default_rng(seed))
    gate = Calibrated(CalibratedOptions(), rule)
    np.testing.assert_array_equal(gate.decide_all(sample.ballots), decide_each(gate, sample.ballots))


def test_nobody_answered_is_asked() -> None:
    gate = Calibrated(CalibratedOptions(), Rule(evidence(), -50.0))
    nobody = Ballots(np.full((1, 3), NO_ANSWER), np.array([[0, 1, 2]]), np.full((1, 3), np.nan), ("c",))
    assert gate.decide_all(nobody).tolist() == [ASK]


@pytest.mark.parametrize(
    "options",
    [{"bound_pp": 0}, {"bound_pp": 100}, {"confidence": 1}, {"confidence": 0.4}, {"loss": "mean"}, {"min_sample": 0}, {"learn_share": 0}, {"confidences": True}],
)  # fmt: skip
def test_impossible_options_are_refused(options: dict[str, Any]) -> None:
    with pytest.raises(ValidationError):
        CalibratedOptions(**options)


def test_labels_say_what_differs() -> None:
    labels = [
        create("calibrated", options).label
        for options in ({}, {"bound_pp": 1, "loss": "gross"}, {"confidence": 0.9, "per_category": False}, {"cancel_pending": True}, {"label": "mine"})
    ]  # fmt: skip
    assert labels == [
        "calibrated(0.1 pp)",
        "calibrated(1 pp, gross)",
        "calibrated(0.1 pp, 0.9, pooled)",
        "calibrated(0.1 pp, cancel)",
        "mine",
    ]
