"""Remake the README's figures: run the paper's MMLU-Pro scenario and draw it.

python plots/readme.py -o docs/images
"""

from __future__ import annotations

import argparse
from functools import partial
from pathlib import Path

from matplotlib.axes import Axes

from mosaicsim.analysis.result import Result
from mosaicsim.analysis.study import simulate
from mosaicsim.report import plots
from mosaicsim.report.means import gates_of
from mosaicsim.report.progress import show_progress
from mosaicsim.scenario import load_scenario

SCENARIO = Path(__file__).parent.parent / "scenarios" / "paper_mmlu_pro.yaml"


def main() -> None:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("-o", "--out", type=Path, required=True, help="folder for the figures")
    parser.add_argument("--scenario", type=Path, default=SCENARIO, help="scenario to run")
    parser.add_argument("--set", dest="overrides", action="append", default=[], metavar="PATH=VALUE")
    parser.add_argument("--format", choices=plots.FORMATS, default="png")
    arguments = parser.parse_args()
    scenario = load_scenario(arguments.scenario, arguments.overrides)
    with show_progress() as progress:
        result = simulate(scenario, progress)
    arguments.out.mkdir(parents=True, exist_ok=True)
    for name, draw in figures(result).items():
        print(plots.save_to(arguments.out / f"{name}.{arguments.format}", draw))


def figures(result: Result) -> dict[str, partial[Axes]]:
    """The figures by file name; the Gantt chart is that of the last gate, the most selective one."""
    return {
        "gantt": partial(plots.gantt, result, gate=gates_of(result)[-1]),
        "gpu_time": partial(plots.gpu_time, result),
        "speedup": partial(plots.speedups, result),
        "lengths": partial(plots.lengths, result),
        "popularity": partial(plots.popularity, result),
        "agreement": partial(plots.agreement_buckets, result),
    }


if __name__ == "__main__":
    main()
