"""How far a simulated run is from a real one: calls, sessions, stages. All errors are simulated over real.

Of a call, in seconds: ``queue`` from session ready to admission; ``ttft`` from admission to the first token;
``ttft_from_ready`` from session ready to the first token; ``tpot`` = (finish - first token) / (output tokens
- 1); ``e2e`` from session ready to finish, which is what the call spends queueing and generating. Only calls
that finished in both runs are compared.
"""

from __future__ import annotations

from typing import Any

import numpy as np

from mosaicsim.analysis.result import CALL_STATUS, Columns, Run
from mosaicsim.workload.calls import Bools, Floats, Ints

FIGURES = ("queue", "ttft", "ttft_from_ready", "tpot", "e2e")
STAGES = ("expert", "aggregator")
SESSION_PARTS = ("load", "generate", "total")
STAGE_FIGURES = ("expert_stage_s", "aggregator_stage_s", "makespan_s")

Errors = dict[str, float | int | None]


def errors_of(real: Floats, simulated: Floats) -> Errors:
    """Errors of aligned figures, shape (n,): n, both means, error of the mean, and of single figures in %.

    ``mape_pct`` is the mean of the absolute percentage errors, ``p50_pct`` and ``p95_pct`` their quantiles,
    over figures that are not 0; None where there is nothing to tell of.
    """
    known: Errors = {"n": len(real), "real_mean": None, "simulated_mean": None, "mean_error_pct": None}
    if len(real):
        ours, theirs = float(simulated.mean()), float(real.mean())
        known |= {"real_mean": theirs, "simulated_mean": ours, "mean_error_pct": percent(ours, theirs)}
    timed = real > 0
    single = 100 * np.abs(simulated[timed] / real[timed] - 1)
    quantiles = np.quantile(single, [0.5, 0.95]).tolist() if len(single) else [None, None]
    known["mape_pct"] = float(single.mean()) if len(single) else None
    return known | {"p50_pct": quantiles[0], "p95_pct": quantiles[1]}


def percent(ours: float, theirs: float) -> float | None:
    """Error in %; None over nothing."""
    return 100 * (ours / theirs - 1) if theirs else None


def call_errors(real: Run, simulated: Run) -> dict[str, dict[str, Errors]]:
    """Errors of each figure of the calls, for all and stage by stage."""
    ours, theirs = _figures(simulated), _figures(real)
    both = sorted(ours.keys() & theirs.keys())
    table = {side: np.array([of[key] for key in both]) for side, of in (("s", ours), ("r", theirs))}
    stage = np.array([key[0] for key in both])
    masks = {"all": np.ones(len(both), np.bool_)} | {name: stage == name for name in STAGES}
    return {
        name: {
            figure: _of_figure(table["r"], table["s"], column, mask) for column, figure in enumerate(FIGURES)
        }
        for name, mask in masks.items()
        if mask.any()
    }


def _of_figure(real: Floats, simulated: Floats, column: int, mask: Bools) -> Errors:
    ours, theirs = simulated[mask][:, column], real[mask][:, column]
    known = ~(np.isnan(ours) | np.isnan(theirs))
    return errors_of(theirs[known], ours[known])


def _figures(run: Run) -> dict[tuple[Any, ...], tuple[float, ...]]:
    """The figures of each finished call, by what it is: stage, question, expert, sample."""
    calls, ready = run.calls, {n: row["ready_s"] for n, row in sessions_of(run).items()}
    finished = calls["status"] == CALL_STATUS.index("finished")
    own = {name: calls[name][finished] for name in calls}
    keys = zip(*(own[name].tolist() for name in ("stage", "question", "expert", "sample")), strict=True)
    at_ready = np.array([ready.get(session, np.nan) for session in own["session"].tolist()])
    return dict(zip(keys, map(tuple, _columns(own, at_ready).tolist()), strict=True))


def _columns(calls: Columns, ready: Floats) -> Floats:
    """Shape (calls, FIGURES); NaN where a call has no such figure, as one that began in another session."""
    ready = np.where(calls["start_s"] < ready, np.nan, ready)
    steps = np.maximum(calls["output_tokens"] - 1, 1)
    tpot = (calls["finish_s"] - calls["first_token_s"]) / steps
    return np.column_stack(
        [
            calls["start_s"] - ready,
            np.where(np.isnan(ready), np.nan, calls["first_token_s"] - calls["start_s"]),
            calls["first_token_s"] - ready,
            np.where((calls["output_tokens"] > 1) & ~np.isnan(ready), tpot, np.nan),
            calls["finish_s"] - ready,
        ]
    )


def sessions_of(run: Run) -> dict[int, dict[str, Any]]:
    """Each session: worker (its first), stage, expert (-1: the aggregator), begin_s, ready_s, end_s."""
    columns = run.timeline
    found: dict[int, dict[str, Any]] = {}
    rows = zip(*(columns[name].tolist() for name in columns), strict=True)
    for row in (dict(zip(columns, values, strict=True)) for values in rows):
        known = found.setdefault(
            row["session"],
            {"worker": row["worker"], "stage": row["stage"], "expert": row["expert"]}
            | {"begin_s": row["start_s"], "ready_s": np.inf, "end_s": row["end_s"]},
        )
        known["worker"] = min(known["worker"], row["worker"])
        known["begin_s"] = min(known["begin_s"], row["start_s"])
        known["end_s"] = max(known["end_s"], row["end_s"])
        if row["state"] != "load":
            known["ready_s"] = min(known["ready_s"], row["start_s"])
    for known in found.values():
        known["ready_s"] = min(known["ready_s"], known["end_s"])
    return found


def session_errors(real: Run, simulated: Run) -> dict[str, Any]:
    """Each session of a replay beside the real one, and the errors over all.

    ``load_first`` is of sessions that were the first on their worker, ``load_later`` of the others.
    """
    ours, theirs = sessions_of(simulated), sessions_of(real)
    both = sorted(ours.keys() & theirs.keys())
    rows = [_pair(number, theirs[number], ours[number]) for number in both]
    first = np.array([_is_first(number, theirs) for number in both], np.bool_)
    for row, is_first in zip(rows, first.tolist(), strict=True):
        row["first_on_worker"] = is_first

    def column(side: str, part: str, mask: Bools) -> Floats:
        return np.array([row[side][part] for row in rows], np.float64)[mask]

    whole = np.ones(len(rows), np.bool_)
    errors = {p: errors_of(column("real", p, whole), column("simulated", p, whole)) for p in SESSION_PARTS}
    for name, mask in (("load_first", first), ("load_later", ~first)):
        errors[name] = errors_of(column("real", "load", mask), column("simulated", "load", mask))
    return {"errors": errors, "rows": rows}


def _pair(number: int, real: dict[str, Any], simulated: dict[str, Any]) -> dict[str, Any]:
    about = {name: real[name] for name in ("worker", "stage", "expert")}
    return {"session": number, **about, "real": _parts(real), "simulated": _parts(simulated)}


def _parts(session: dict[str, Any]) -> dict[str, float]:
    begin, ready, end = session["begin_s"], session["ready_s"], session["end_s"]
    return {"begin": begin, "load": ready - begin, "generate": end - ready, "total": end - begin}


def _is_first(number: int, sessions: dict[int, dict[str, Any]]) -> bool:
    own = sessions[number]
    return all(s["begin_s"] >= own["begin_s"] for s in sessions.values() if s["worker"] == own["worker"])


def stage_errors(real: Run, simulated: Run) -> dict[str, dict[str, float | None]]:
    """Stages and makespan, in seconds, and the error in %."""
    return {
        name: {
            "real": real.metrics[name],
            "simulated": simulated.metrics[name],
            "error_pct": percent(simulated.metrics[name], real.metrics[name]),
        }
        for name in STAGE_FIGURES
    }


def same_worker_share(real: Run, simulated: Run) -> float:
    """Share of the expert calls run in both that ran on the same worker: 1 for the same plan."""
    ours, theirs = _workers(simulated), _workers(real)
    both = ours.keys() & theirs.keys()
    return sum(ours[key] == theirs[key] for key in both) / len(both) if both else 1.0


def _workers(run: Run) -> dict[tuple[Any, ...], int]:
    calls = run.calls
    own = (calls["stage"] == "expert") & (calls["worker"] >= 0)
    keys = zip(*(calls[name][own].tolist() for name in ("question", "expert", "sample")), strict=True)
    return dict(zip(keys, calls["worker"][own].tolist(), strict=True))


def waits_s(run: Run) -> Floats:
    """Seconds between each session's begin and the last end before it: what the coordinator takes."""
    sessions = sorted(sessions_of(run).values(), key=lambda s: float(s["begin_s"]))
    ends: Ints | Floats = np.array([s["end_s"] for s in sessions])
    begins = np.array([s["begin_s"] for s in sessions])
    gaps = [begin - ends[ends <= begin].max() for begin in begins if (ends <= begin).any()]
    return np.array(gaps, np.float64)
