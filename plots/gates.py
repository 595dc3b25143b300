"""What a gate skips against what it costs: the figure and the table of docs/gates.md.

    python plots/gates.py -o docs/images/gates.png        # the paper's three traces, about two minutes
    python plots/gates.py --json real_mmlu_pro_instruct   # a real one, imported as docs/real_traces.md says

Only answers are looked at, so nothing is simulated. On the paper's (synthetic) traces calibrated gates are
fitted to the shipped calibration questions, to many generated from the same model, and once more to many
generated ones and judged on as many others. On real traces they are fitted to the scenario's calibration
split, and to half of the questions; the aggregator is modelled there. Figures are of held-out questions,
means over replicates, each with a calibration split and routing of its own; the ends of 95 % intervals are
averaged.
"""

from __future__ import annotations

import argparse
import json
import sys
import tempfile
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, field
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np
from matplotlib.axes import Axes
from matplotlib.figure import Figure

from mosaicsim.aggregation.base import ASK, FittedGate, Gate, fit_gate
from mosaicsim.aggregation.evidence import measure
from mosaicsim.aggregation.registry import create
from mosaicsim.analysis.metrics import paired_delta
from mosaicsim.cli.generate import make
from mosaicsim.errors import MosaicsimError
from mosaicsim.policies import PolicyKind
from mosaicsim.report.style import EXPERTS, GREY, INK, RC, lighter
from mosaicsim.scenario import Scenario, load_scenario
from mosaicsim.streams import Streams
from mosaicsim.workload.ballots import Ballots, GateCalibration
from mosaicsim.workload.build import build_workload
from mosaicsim.workload.calls import Bools, Ints, Workload
from mosaicsim.workload.dealing import whole_slots
from mosaicsim.workload.trace import Trace, read_trace

ROOT = Path(__file__).resolve().parent.parent
PAPER = ("paper_mmlu_pro", "paper_medmcqa", "paper_gpqa")
REAL = ("real_mmlu_pro_thinking", "real_mmlu_pro_instruct")
TITLES = {
    "paper_mmlu_pro": "MMLU-Pro (synthetic)",
    "paper_medmcqa": "MedMCQA (synthetic)",
    "paper_gpqa": "GPQA (synthetic)",
    "real_mmlu_pro_thinking": "MMLU-Pro, 7 instruct + 1 thinking",
    "real_mmlu_pro_instruct": "MMLU-Pro, 7 instruct",
}
GATES: tuple[tuple[str, dict[str, Any]], ...] = (
    ("plurality", {"tau": 1}),
    ("plurality", {"tau": 2 / 3}),
    ("calibrated", {}),
    ("calibrated", {"per_category": False}),
    ("calibrated", {"loss": "gross"}),
    ("calibrated", {"bound_pp": 1}),
)
DRAWN = ("plurality(tau=1)", "plurality(tau=0.667)", "calibrated(0.1 pp)", "calibrated(1 pp)")
SHARES = np.arange(0.04, 1.001, 0.04)


@dataclass
class Case:
    """One trace with one calibration set: what every gate did in each replicate."""

    name: str
    calibration: str
    questions: int
    calibration_questions: int
    aggregator: str
    gates: dict[str, list[dict[str, Any]]] = field(default_factory=dict)
    sweep: list[Any] = field(default_factory=list)

    def rows(self) -> Iterator[dict[str, Any]]:
        """A row a gate: means over the replicates."""
        for label, runs in self.gates.items():
            low, high = np.mean([run["ci95"] for run in runs], axis=0)
            yield {
                "trace": self.name,
                "calibration": self.calibration,
                "calibration_questions": self.calibration_questions,
                "evaluated_questions": self.questions,
                "aggregator": self.aggregator,
                "gate": label,
                "supported": [run["supported"] for run in runs],
                "skipped": float(np.mean([run["skipped"] for run in runs])),
                "delta_pp": float(np.mean([run["delta_pp"] for run in runs])),
                "delta_pp_ci95": [float(low), float(high)],
                "delta_pp_by_replicate": [run["delta_pp"] for run in runs],
                "skipped_by_replicate": [run["skipped"] for run in runs],
                "messages": [run["message"] for run in runs if run["message"]],
            }


def main() -> None:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("scenarios", nargs="*", metavar="SCENARIO", help=f"default: {' '.join(PAPER)}")
    parser.add_argument("-o", "--out", type=Path, help="figure to draw (.png, .svg, .pdf)")
    parser.add_argument("--json", action="store_true", help="print JSON instead of the table")
    parser.add_argument("--replicates", type=int, default=5)
    parser.add_argument(
        "--generated", type=int, default=20_000, help="calibration questions to generate for a paper's trace"
    )
    arguments = parser.parse_args()
    try:
        with tempfile.TemporaryDirectory() as folder:
            names = arguments.scenarios or PAPER
            cases = [
                case
                for name in names
                for case in study(name, arguments.replicates, arguments.generated, Path(folder))
            ]
        report(cases, as_json=arguments.json)
        if arguments.out:
            draw(cases, arguments.out)
    except MosaicsimError as error:
        parser.exit(error.exit_code, f"{error}\n")


def study(name: str, replicates: int, generated: int, folder: Path) -> Iterator[Case]:
    """The cases of one scenario."""
    path = ROOT / "scenarios" / f"{name}.yaml"
    yield evaluate(name, "as shipped", load_scenario(path), replicates)
    if name in PAPER:
        spec = ROOT / "traces" / f"{name.removeprefix('paper_')}.yaml"
        more = folder / f"{name}.parquet"
        make(str(spec), str(more), None, generated, calibration=True)
        overrides = [f"workload.calibration={{trace: {more}}}"]
        yield evaluate(name, "generated", load_scenario(path, overrides), replicates)
        make(str(spec), str(more), None, 2 * generated, calibration=True)
        others = load_scenario(path, generated_only(load_scenario(path), more, generated))
        yield evaluate(name, "generated, judged on others", others, replicates)
    else:
        half = load_scenario(path, ["workload.calibration={share: 0.5}"])
        yield evaluate(name, "half of the questions", half, replicates)


def generated_only(scenario: Scenario, trace: Path, n: int) -> list[str]:
    """Overrides that split a generated trace of 2 n questions, with the scenario's slots in proportion."""
    counts = scenario.policies(PolicyKind.ROUTER)[0].options.model_dump()["counts"]
    slots = whole_slots(np.array(list(counts.values())) / sum(counts.values()), scenario.workload.k * n)
    scaled = dict(zip(counts, slots.tolist(), strict=True))
    return [
        f"workload.trace={trace}",
        "workload.calibration={share: 0.5}",
        f"workload.routing={json.dumps({'fixed_counts': {'counts': scaled}})}",
    ]


def evaluate(name: str, calibration: str, scenario: Scenario, replicates: int) -> Case:
    """Every gate on the held-out questions of each replicate."""
    trace = read_trace(scenario.workload.trace)
    case: Case | None = None
    for replicate in range(replicates):
        workload = route(scenario, trace, replicate)
        fitted_to = workload.gate_calibration
        assert fitted_to is not None
        if case is None:
            case = Case(name, calibration, workload.n_questions, len(fitted_to), fitted_to.aggregator)
        shown = ballots(workload)
        for gate_name, options in GATES:
            gate = fit_gate(create(gate_name, options), partial(getattr, workload, "gate_calibration"))
            case.gates.setdefault(gate.label, []).append(judge(gate, shown, workload))
        case.sweep.append(sweep(fitted_to, shown, workload))
    assert case is not None
    return case


def route(scenario: Scenario, trace: Trace, replicate: int) -> Workload:
    """The workload of a replicate, as ``mosaicsim run`` makes it."""
    section = scenario.workload
    return build_workload(
        trace,
        k=section.k,
        router=scenario.policies(PolicyKind.ROUTER)[0].create(),
        calibration=section.calibration,
        aggregator_calls=section.aggregator_calls,
        rng_streams=Streams(scenario.seed, replicate),
        for_gates=True,
    )


def ballots(workload: Workload) -> Ballots:
    """All questions, every call finished."""
    outcomes, shape = workload.outcomes, (workload.n_questions, -1)
    known = outcomes.confidence
    confidences = np.full(len(outcomes.answer), np.nan) if known is None else known
    return Ballots(
        outcomes.answer.reshape(shape),
        workload.calls.expert.reshape(shape),
        confidences.reshape(shape),
        workload.categories,
    )


def judge(gate: Gate, shown: Ballots, workload: Workload) -> dict[str, Any]:
    """What a gate skips, and what that changes."""
    accepted = gate.decide_all(shown)
    delta, interval = compare(accepted, workload)
    info = gate.info if isinstance(gate, FittedGate) else {}
    return {
        "skipped": float((accepted != ASK).mean()),
        "delta_pp": delta,
        "ci95": interval if (accepted != ASK).any() else (0.0, 0.0),
        "supported": info.get("supported"),
        "message": info.get("message"),
    }


def compare(accepted: Ints, workload: Workload) -> tuple[float, tuple[float, float]]:
    """Accuracy less that of full aggregation, in points, and its 95 % interval."""
    outcomes, shape = workload.outcomes, (workload.n_questions, -1)
    voted = outcomes.answer.reshape(shape) == accepted[:, None]
    right: Bools = (voted & outcomes.correct.reshape(shape)).any(axis=1)
    return paired_delta(
        np.where(accepted == ASK, workload.aggregator.correct, right), workload.aggregator.correct
    )


def sweep(
    calibration: GateCalibration, shown: Ballots, workload: Workload
) -> list[tuple[float, float, float]]:
    """The weighted vote at every share skipped, whether supported or not: delta and interval."""
    standing = measure(calibration, 30, use_confidence=not calibration.confidences_modelled).standing(shown)
    order = np.argsort(-standing.log_odds, kind="stable")
    points = []
    for share in SHARES:
        accepted = np.full(len(order), ASK)
        kept = order[: round(share * len(order))]
        kept = kept[np.isfinite(standing.log_odds[kept])]
        accepted[kept] = standing.answer[kept]
        delta, (low, high) = compare(accepted, workload)
        points.append((delta, low, high))
    return points


def report(cases: Sequence[Case], *, as_json: bool) -> None:
    """Print every row."""
    rows = [row for case in cases for row in case.rows()]
    if as_json:
        print(json.dumps(rows, indent=2))
        return
    print("| trace | fitted to | judged on | gate | supported | skipped | delta pp [95 %] | lowest delta |")
    print("|---|---:|---:|---|---:|---:|---:|---:|")
    for row in rows:
        supported = [s for s in row["supported"] if s is not None]
        low, high = row["delta_pp_ci95"]
        cells = (
            row["trace"],
            f"{row['calibration_questions']:,}",
            f"{row['evaluated_questions']:,}",
            row["gate"],
            f"{sum(supported)} of {len(supported)}" if supported else "",
            f"{row['skipped']:.1%}",
            f"{row['delta_pp']:+.2f} [{low:+.2f}, {high:+.2f}]" if row["skipped"] else "reference",
            f"{min(row['delta_pp_by_replicate']):+.2f}",
        )
        print(f"| {' | '.join(cells)} |")
    print()
    for row in rows:
        for replicate, message in enumerate(row["messages"]):
            where = f"{row['trace']}, {row['calibration']}, replicate {replicate}"
            print(f"- {where}: {row['gate']} {message}")


def draw(cases: Sequence[Case], out: Path) -> None:
    """A panel a trace: the last of its cases."""
    import matplotlib as mpl

    by_name: dict[str, list[Case]] = {}
    for case in cases:
        by_name.setdefault(case.name, []).append(case)
    columns = min(3, len(by_name))
    rows = -(-len(by_name) // columns)
    with mpl.rc_context(RC):
        figure = Figure(figsize=(4.2 * columns, 3.9 * rows + 0.9), layout="constrained")
        axes = figure.subplots(rows, columns, squeeze=False).ravel()
        for ax, (name, of) in zip(axes, by_name.items(), strict=False):
            panel(ax, name, of[-1])
        for ax in axes[len(by_name) :]:
            ax.set_visible(False)
        handles, labels = axes[0].get_legend_handles_labels()
        figure.legend(handles, labels, loc="outside lower center", ncols=3, frameon=False, fontsize=8.5)
        figure.suptitle(
            "Accuracy gained or lost against full aggregation, by the share of questions that skip it",
            x=0.01, ha="left", fontsize=11, fontweight="bold", color=INK,
        )  # fmt: skip
        figure.savefig(out, dpi=160)
    print(out, file=sys.stderr)


def panel(ax: Axes, name: str, case: Case) -> None:
    """The weighted vote's curve, and the operating points of the gates."""
    curve = np.mean(case.sweep, axis=0)
    blue = EXPERTS[0]
    ax.axhline(0, color=GREY, linewidth=0.8)
    ax.axhline(-0.1, color=EXPERTS[1], linewidth=0.8, linestyle=(0, (4, 3)), label="bound, 0.1 pp")
    ax.fill_between(100 * SHARES, curve[:, 1], curve[:, 2], color=lighter(blue, 0.8), linewidth=0)
    ax.plot(100 * SHARES, curve[:, 0], color=blue, linewidth=1.6, label="weighted vote, any threshold [95 %]")
    looks = {
        "plurality(tau=1)": ("o", EXPERTS[2], "plurality, tau = 1"),
        "plurality(tau=0.667)": ("s", EXPERTS[5], "plurality, tau = 2/3"),
        "calibrated(0.1 pp)": ("D", EXPERTS[1], "calibrated, 0.1 pp: each replicate"),
        "calibrated(1 pp)": ("^", EXPERTS[3], "calibrated, 1 pp: each replicate"),
    }
    for label in DRAWN:
        marker, colour, text = looks[label]
        runs = case.gates[label]
        x = [100 * run["skipped"] for run in runs]
        y = [run["delta_pp"] for run in runs]
        if label.startswith("calibrated"):
            ax.plot(x, y, marker, color=colour, markersize=5.5, markeredgecolor="white", label=text, zorder=4)
            continue
        low, high = np.mean([run["ci95"] for run in runs], axis=0)
        middle = float(np.mean(y))
        ax.errorbar(
            [np.mean(x)], [middle], [[middle - low], [high - middle]], fmt=marker, color=colour, capsize=3,
            markersize=6, label=f"{text} [95 %]", zorder=3,
        )  # fmt: skip
    supported = [run["supported"] for run in case.gates["calibrated(0.1 pp)"]]
    modelled = "; aggregator modelled" if case.aggregator == "modelled" else ""
    ax.set_title(TITLES.get(name, name), loc="left", fontsize=9.5, color=INK, pad=27)
    ax.annotate(
        f"fitted to {case.calibration_questions:,}, judged on {case.questions:,}{modelled}\n"
        f"0.1 pp supported in {sum(supported)} of {len(supported)} replicates",
        (0, 1), xytext=(0, 3), xycoords="axes fraction", textcoords="offset points", fontsize=7.5,
        color=GREY, va="bottom", linespacing=1.2,
    )  # fmt: skip
    ax.set_xlabel("questions that skip the aggregator, %")
    ax.set_ylabel("accuracy, points")
    ax.set_xlim(-3, 103)


if __name__ == "__main__":
    main()
