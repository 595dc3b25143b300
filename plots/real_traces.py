"""The tables of docs/real_traces.md, as Markdown on stdout.

    python plots/real_traces.py                # both scenarios and their variants, about two minutes
    python plots/real_traces.py --no-variants real_mmlu_pro_thinking

Needs the imported traces (docs/real_traces.md says how to make them). Means over the replicates; a range is
the lowest to the highest replicate; the ends of 95 % intervals are averaged.
"""

from __future__ import annotations

import argparse
from collections.abc import Iterator, Sequence
from pathlib import Path
from unittest.mock import patch

import numpy as np

from mosaicsim.analysis.result import Result
from mosaicsim.analysis.study import simulate
from mosaicsim.errors import MosaicsimError
from mosaicsim.report.facts import agreement, call_counts, lengths_of
from mosaicsim.report.means import Row, rows_of
from mosaicsim.scenario import load_scenario
from mosaicsim.workload import aggregator_model
from mosaicsim.workload.trace import read_trace

SCENARIOS = Path(__file__).parent.parent / "scenarios"
NAMES = ("real_mmlu_pro_thinking", "real_mmlu_pro_instruct")
COMPARED = ("round_robin", "greedy_lpt", "greedy_list", "ilp", "ilp_k4")
CANCEL = "plurality(tau=0.667, cancel)"

FAST_GATES = "gates=[always, {plurality: {tau: 2/3}}]"
V0 = ("engine.version=vllm-0.7-v0", "engine.policy=v0")
REPLACEMENT = ("workload.routing.skill.replacement=true", "workload.routing.skill.resample=true")
VARIANTS: dict[str, dict[str, tuple[str, ...]]] = {
    "real_mmlu_pro_thinking": {
        "as shipped": (),
        "with replacement, repeats made up": REPLACEMENT,
        "weights proportional to accuracy": ("workload.routing.skill.weights=proportional",),
        "aggregator at TP=1, four instances": ("aggregator.tp=1",),
        "vLLM 0.7, V0": V0,
        "2 H100 + 2 A100, aggregator at TP=2": (
            "cluster.hosts=[{device: h100, gpus: 2}, {device: a100-80g, gpus: 2}]",
            "aggregator.tp=2",
        ),
        "8 A100": ("cluster.hosts=[{device: a100-80g, gpus: 8}]",),
    },
    "real_mmlu_pro_instruct": {
        "as shipped": (),
        "with replacement, repeats made up": REPLACEMENT,
        "weights proportional to accuracy": ("workload.routing.skill.weights=proportional",),
        "aggregator at TP=1, four instances": ("aggregator.tp=1",),
        "vLLM 0.7, V0": V0,
        "2 H100 + 2 L40S, aggregator at TP=2": (
            "cluster.hosts=[{device: h100, gpus: 2}, {device: l40s, gpus: 2}]",
            "aggregator.tp=2",
        ),
    },
}
"""What else was tried, as the overrides of ``mosaicsim run --set``."""


def main() -> None:
    """Run the scenarios named on the command line and print their tables."""
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument(
        "scenarios", nargs="*", metavar="SCENARIO", help=f"{' or '.join(NAMES)}; both by default"
    )
    parser.add_argument("--variants", action=argparse.BooleanOptionalAction, default=True)
    arguments = parser.parse_args()
    try:
        for name in arguments.scenarios or NAMES:
            report(name, with_variants=arguments.variants)
    except MosaicsimError as error:
        parser.exit(error.exit_code, f"{error}\n")


def report(name: str, *, with_variants: bool) -> None:
    """Print the tables of one scenario."""
    result = run(name)
    print(f"## {name}\n")
    for title, lines in tables(result):
        print(f"{title}\n", *lines, "", sep="\n")
    if with_variants:
        print("Variants\n", *variants(name), "", sep="\n")
        print("Other answer rules\n", *answer_rules(name), "", sep="\n")


def run(name: str, *overrides: str) -> Result:
    """Simulate a shipped scenario."""
    return simulate(load_scenario(SCENARIOS / f"{name}.yaml", overrides))


def tables(result: Result) -> Iterator[tuple[str, list[str]]]:
    """Title and Markdown lines of each table of one scenario."""
    yield "Popularity", popularity(result)
    yield "Agreement", buckets(result)
    yield "Schedulers, gate always", schedulers(result)
    yield "Gates (all but the share skipped is modelled)", gates(result)
    yield "Cancelling", cancelling(result)


def markdown(header: Sequence[str], rows: Sequence[Sequence[str]]) -> list[str]:
    """A Markdown table, all columns but the first aligned right."""
    ruler = ["---", *("---:" for _ in header[1:])]
    return ["| " + " | ".join(cells) + " |" for cells in (header, ruler, *rows)]


def popularity(result: Result) -> list[str]:
    """Calls and lengths by expert, and how uneven the calls are."""
    counts = call_counts(result)
    rows = [
        [
            name,
            f"{calls:,.0f}",
            f"{tokens.mean():,.0f}",
            f"{np.percentile(tokens, 99):,.0f}",
            f"{tokens.max():,}",
        ]
        for name, calls in zip(counts.experts, counts.calls, strict=True)
        for tokens in [lengths_of(result, name)]
    ]
    skew = f"Popularity max/min {counts.max_min:.2f}, CV {counts.cv:.2f}."
    return [*markdown(("expert", "calls", "mean output tokens", "p99", "max"), rows), "", skew]


def buckets(result: Result) -> list[str]:
    """Agreement: how often, how long, and who is right."""
    rows = [
        [
            b.name,
            f"{b.share:.1%}",
            f"{b.tokens:,.0f}",
            f"{b.plurality_right:.1%}",
            f"{b.aggregator_right:.1%}",
        ]
        for b in agreement(result)
    ]
    header = (
        "votes",
        "questions",
        "mean output tokens a call",
        "plurality right",
        "aggregator right (modelled)",
    )
    plurality = sum(b.share * b.plurality_right for b in agreement(result))
    best, alone = best_expert(result)
    note = f"Right over all: plurality {plurality:.1%}; on the whole trace {best} alone {alone:.1%}."
    return [*markdown(header, rows), "", note]


def best_expert(result: Result) -> tuple[str, float]:
    """The expert that is right most often over the whole trace, and how often."""
    trace = read_trace(result.scenario["workload"]["trace"])
    right = trace.bools("correct")
    shares = [right[trace.expert_index == i].mean() for i in range(len(trace.experts))]
    return trace.experts[int(np.argmax(shares))], float(max(shares))


def schedulers(result: Result) -> list[str]:
    """Every scheduler without a gate."""
    rows = [
        [
            row.scheduler + (" †" if row.sees_lengths else ""),
            seconds(row, "expert_stage_s"),
            times(row, "expert_stage_speedup"),
            f"{row.values('idle_fraction').mean():.1%}",
            spread(row, "prediction_error"),
            f"{row.values('bound_distance').mean():+.0%}",
            f"{row.values('makespan_s').mean():,.0f}",
            times(row, "speedup"),
        ]
        for row in rows_of(result, "always")
    ]
    header = (
        "scheduler",
        "expert stage s",
        "speedup",
        "idle",
        "prediction error, range",
        "above lower bound",
        "end to end s (modelled)",
        "speedup (modelled)",
    )
    return markdown(header, rows)


def gates(result: Result) -> list[str]:
    """Every gate: what it skips and costs, which no scheduler changes, and the end-to-end time under each."""
    by_gate: dict[str, dict[str, Row]] = {}
    for row in rows_of(result):
        by_gate.setdefault(row.gate, {})[row.scheduler] = row
    rows = []
    for gate, of in by_gate.items():
        row = of[COMPARED[0]]
        figures = (f"{row.values(name).mean():.1%}" for name in ("skip_rate", "accuracy"))
        stage = f"{row.values('aggregator_stage_s').mean():,.0f}"
        ends = (f"{of[name].values('makespan_s').mean():,.0f}" for name in COMPARED)
        rows.append([gate, *figures, delta(row) if gate != "always" else "reference", stage, *ends])
    header = ("gate", "skipped", "accuracy", "delta pp [95 %]", "aggregator stage s")
    return markdown((*header, *(f"{name}, end to end s" for name in COMPARED)), rows)


def cancelling(result: Result) -> list[str]:
    """What cancelling saves of the expert stage against the same gate without it."""
    rows = []
    plain = {row.scheduler: row for row in rows_of(result, CANCEL.replace(", cancel", ""))}
    tokens = np.mean([w.outcomes.output_tokens.sum() for w in result.workloads])
    for row in rows_of(result, CANCEL):
        before = plain[row.scheduler]
        saved = before.values("expert_stage_s") - row.values("expert_stage_s")
        saved_tokens = (before.values("output_tokens") - row.values("output_tokens")).mean()
        rows.append(
            [
                row.scheduler + (" †" if row.sees_lengths else ""),
                f"{saved.mean():,.0f}",
                f"{(saved / before.values('expert_stage_s')).mean():.1%}",
                f"{saved_tokens:,.0f}",
                f"{saved_tokens / tokens:.1%}",
                f"{row.values('calls_cancelled').mean():,.0f}",
            ]
        )
    header = (
        "scheduler",
        "saved s",
        "of the expert stage",
        "saved tokens",
        "of the experts' tokens",
        "calls",
    )
    return markdown(header, rows)


def variants(name: str) -> list[str]:
    """The compared schedulers under other settings."""
    rows = []
    for title, overrides in VARIANTS[name].items():
        result = run(name, FAST_GATES, *overrides)
        ungated = {row.scheduler: row for row in rows_of(result, "always")}
        gated = {row.scheduler: row for row in rows_of(result, "plurality(tau=0.667)")}
        rows.append(
            [
                title,
                f"{call_counts(result).max_min:.1f}",
                *(f"{ungated[s].values('expert_stage_s').mean():,.0f}" for s in COMPARED),
                f"{ungated['round_robin'].values('idle_fraction').mean():.0%}",
                *(f"{of['round_robin'].values('aggregator_stage_s').mean():,.0f}" for of in (ungated, gated)),
                f"{gated['round_robin'].values('skip_rate').mean():.1%}",
                delta(gated["round_robin"]),
            ]
        )
    header = (
        "variant",
        "max/min",
        *(f"{s} s" for s in COMPARED),
        "round_robin idle",
        "aggregator s (modelled)",
        "gated, tau=2/3",
        "skipped",
        "delta pp (modelled)",
    )
    return markdown(header, rows)


def answer_rules(name: str) -> list[str]:
    """Accuracies were the modelled aggregator to see less or more of the truth in the texts."""
    gated = ("tau=1", "tau=0.667")
    rows = []
    for logit in (0.0, 0.4, aggregator_model.RIGHT_LOGIT, 1.6):
        with patch.object(aggregator_model, "RIGHT_LOGIT", logit):
            result = run(name, "schedulers=[round_robin]", "gates=[always, {plurality: {tau: 1}}, plurality]")
        of = {row.gate: row for row in rows_of(result)}
        accuracy = f"{of['always'].values('accuracy').mean():.1%}"
        rows.append([f"{logit:g}", accuracy, *(delta(of[f"plurality({tau})"]) for tau in gated)])
    return markdown(
        ("weight of being right", "accuracy, always", *(f"delta pp, {tau}" for tau in gated)), rows
    )


def seconds(row: Row, metric: str) -> str:
    """Mean and half the range."""
    return f"{row.values(metric).mean():,.0f} ± {row.half_range(metric) or 0:,.0f}"


def delta(row: Row) -> str:
    """Mean change of accuracy with its interval."""
    low, high = row.interval("delta_pp_ci95") or (np.nan, np.nan)
    return f"{row.values('delta_pp').mean():+.2f} [{low:+.2f}, {high:+.2f}]"


def spread(row: Row, metric: str) -> str:
    """Mean, and lowest to highest."""
    values = row.values(metric)
    return f"{values.mean():+.1%} ({values.min():+.1%} to {values.max():+.1%})"


def times(row: Row, metric: str) -> str:
    """A mean ratio."""
    return f"{row.values(metric).mean():.2f}x"


if __name__ == "__main__":
    main()
