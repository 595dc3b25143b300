"""A linear model with binaries, minimised by HiGHS for the sake of its dual bound."""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import dataclass
from math import inf
from typing import Any, cast

import highspy
import numpy as np

from mosaicsim.workload.calls import Floats

Term = tuple[int, float]
"""A variable, by its number, and its coefficient."""

_WITH_BOUND = (
    highspy.HighsModelStatus.kOptimal,
    highspy.HighsModelStatus.kSolutionLimit,
    highspy.HighsModelStatus.kTimeLimit,
)


@dataclass(frozen=True)
class Solution:
    """The best that a search found.

    ``bound``: what the objective is no less than in any solution, the closer the more nodes; -inf if unknown.
    ``values``: of each variable in the best solution found; empty if there is none.
    """

    bound: float
    values: Floats


class LinearModel:
    """Variables, none negative, in rows ``sum of terms >= right-hand side``."""

    def __init__(self) -> None:
        self._upper: list[float] = []
        self._binary: list[int] = []
        self._rows: list[tuple[dict[int, float], float, float]] = []

    def variable(self, upper: float = inf, *, binary: bool = False) -> int:
        """Number of a new variable between 0 and ``upper``, or of a binary one."""
        number = len(self._upper)
        self._upper.append(1.0 if binary else upper)
        if binary:
            self._binary.append(number)
        return number

    def at_least(self, terms: Iterable[Term], least: float = 0.0) -> None:
        """Demand that the terms, of which several may be of one variable, add up to ``least`` or more."""
        self._rows.append((_collected(terms), least, inf))

    def equal(self, terms: Iterable[Term], value: float) -> None:
        """Demand that the terms add up to ``value``."""
        self._rows.append((_collected(terms), value, value))

    def minimise(self, objective: int, gap: float, node_limit: int, time_limit_s: float) -> Solution:
        """Search for the least value of the variable ``objective``.

        The search ends at the relative ``gap``, or at a limit; short of the time limit it is deterministic.
        """
        highs: Any = cast(Any, highspy).Highs()
        options = {"output_flag": False, "threads": 1, "random_seed": 0, "mip_rel_gap": gap}
        for name, value in {**options, "mip_max_nodes": node_limit, "time_limit": time_limit_s}.items():
            _taken(highs.setOptionValue(name, value))
        _taken(highs.addVars(len(self._upper), np.zeros(len(self._upper)), np.array(self._upper)))
        _taken(highs.changeColCost(objective, 1.0))
        for number in self._binary:
            _taken(highs.changeColIntegrality(number, highspy.HighsVarType.kInteger))
        for row, least, most in self._rows:
            columns, values = np.array(list(row), np.int32), np.array(list(row.values()))
            _taken(highs.addRow(least, most, len(row), columns, values))
        highs.run()
        if highs.getModelStatus() not in _WITH_BOUND:
            return Solution(-inf, np.zeros(0))
        found = highs.getInfo().primal_solution_status == highspy.kSolutionStatusFeasible
        values = np.array(highs.getSolution().col_value) if found else np.zeros(0)
        return Solution(float(highs.getInfo().mip_dual_bound), values)


def _taken(status: Any) -> None:
    """HiGHS refuses by a status only, and what is left out changes what is solved."""
    assert status != highspy.HighsStatus.kError, "HiGHS refused a part of the model"


def _collected(terms: Iterable[Term]) -> dict[int, float]:
    row: dict[int, float] = {}
    for number, coefficient in terms:
        row[number] = row.get(number, 0.0) + coefficient
    return row
