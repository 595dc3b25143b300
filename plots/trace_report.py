"""Print the table of traces/README.md: what each shipped trace was to show beside what it shows.

python plots/trace_report.py
"""

from __future__ import annotations

from pathlib import Path
from typing import Any

from mosaicsim.workload.trace import read_trace

TRACES = Path(__file__).resolve().parent.parent / "traces"


def shown(value: Any) -> str:
    if value is None:
        return ""
    if isinstance(value, list):
        return " to ".join(shown(v) for v in value)
    return f"{value:,.0f}" if abs(value) >= 10 else f"{value:.4f}"


def met(target: Any, achieved: float | None) -> str:
    """Inside the range, or within 2 % of the figure (half a point for one near zero)."""
    if target is None or achieved is None:
        return ""
    low, high = target if isinstance(target, list) else (target, target)
    slack = 0.0 if isinstance(target, list) else max(0.02 * abs(target), 0.005)
    return "yes" if low - slack <= achieved <= high + slack else "**no**"


def main() -> None:
    print("| dataset | figure | target | recorded | redrawn | met |")
    print("|---|---|---|---|---|---|")
    for name in ("mmlu_pro", "medmcqa", "gpqa"):
        report = read_trace(TRACES / f"{name}.parquet").metadata.provenance.report
        for row in report["figures"]:
            cells = (shown(row.get(column)) for column in ("target", "recorded", "redrawn"))
            print(
                f"| {name} | {row['figure']} | {' | '.join(cells)} | {met(row['target'], row['recorded'])} |"
            )


if __name__ == "__main__":
    main()
