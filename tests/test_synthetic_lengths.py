"""The censored lognormal: its moments are the spec's, its values stay within 1 and the cap."""

import numpy as np
import pytest
from hypothesis import assume, given, settings
from hypothesis import strategies as st

from mosaicsim.errors import TraceError
from mosaicsim.workload.lengths import LengthSpec, fit_lengths, normal_scores, sample_lengths, to_normal

PAPER_R1 = LengthSpec(mean=3734, cv=1.2, loop_share=0.005, cap=32768)


@st.composite
def length_specs(draw: st.DrawFn) -> LengthSpec:
    cap = draw(st.integers(512, 32768))
    return LengthSpec(
        mean=draw(st.floats(30, cap / 4)),
        cv=draw(st.floats(0.3, 1.3)),
        loop_share=draw(st.sampled_from([0.0, 0.002, 0.02])),
        cap=cap,
    )


@settings(max_examples=40, deadline=None)
@given(length_specs(), st.integers(0, 2**32 - 1))
def test_samples_have_the_specs_moments_and_stay_within_the_cap(spec: LengthSpec, seed: int) -> None:
    try:
        sample = sample_lengths(spec, 20_000, np.random.default_rng(seed))
    except TraceError:
        assume(False)
    assert sample.min() >= 1
    assert sample.max() <= spec.cap
    # Six standard errors, and half a token for rounding.
    assert abs(sample.mean() - spec.mean) < 6 * spec.cv * spec.mean / np.sqrt(20_000) + 0.5
    share = fit_lengths(spec).share_at_cap
    assert np.mean(sample == spec.cap) == pytest.approx(share, abs=6 * np.sqrt(0.25 / 20_000))


def test_cv_and_loops_of_the_papers_reasoning_lengths() -> None:
    sample = sample_lengths(PAPER_R1, 400_000, np.random.default_rng(0))
    assert sample.std() / sample.mean() == pytest.approx(1.2, rel=0.01)
    assert np.mean(sample == PAPER_R1.cap) == pytest.approx(fit_lengths(PAPER_R1).share_at_cap, rel=0.05)


def test_quantiles_keep_the_mean_exactly_and_never_touch_the_cap() -> None:
    body = fit_lengths(PAPER_R1).quantiles_below_cap(6000, 3500.0)
    assert body.mean() == pytest.approx(3500.0, rel=1e-3)
    assert np.all(np.diff(body) >= 0)
    assert body.max() < PAPER_R1.cap


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"cv": 0.3}, r"cv 0\.3 is out of reach .* \(accepted: "),
        ({"mean": 100.0}, r"mean 100 tokens is out of reach with loop_share 0\.005"),
    ],
)
def test_impossible_moments_say_what_is_possible(change: dict[str, float], message: str) -> None:
    with pytest.raises(TraceError, match=message):
        fit_lengths(PAPER_R1.model_copy(update=change))


def test_normal_scores_are_a_standard_normal() -> None:
    assert normal_scores(5)[2] == 0.0
    scores = to_normal(np.random.default_rng(0).random((40, 50)))
    assert scores.mean() == pytest.approx(0.0, abs=1e-12)
    assert scores.std() == pytest.approx(1.0, abs=0.01)
