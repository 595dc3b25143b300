"""The workers of a run, and how the aggregator stage is dealt to them."""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np

from mosaicsim.schedulers.base import WorkerView
from mosaicsim.schedulers.shares import deal_evenly
from mosaicsim.workload.calls import Ints


@dataclass(frozen=True)
class Pool:
    """The workers and how they are used.

    ``workers`` are as schedulers see them; each runs ``slots`` sessions at a time; an aggregator instance
    takes ``aggregator_tp`` workers of one island. ``islands`` are the sets of workers (of one device, on one
    host) that tensor parallelism can span, ``aggregator_speed`` how fast an instance is on each, in any unit.
    No more than ``at_once`` workers are busy at a time (None: all may be).
    """

    workers: tuple[WorkerView, ...]
    slots: int
    aggregator_tp: int
    islands: tuple[tuple[int, ...], ...]
    aggregator_speed: tuple[float, ...]
    at_once: int | None = None

    def deal_aggregation(self, call_ids: Ints, alive: set[int]) -> list[tuple[tuple[int, ...], Ints]]:
        """Make as many groups of ``aggregator_tp`` living workers as there can be; share calls by speed.

        Every share is spread over the whole of ``call_ids``: neighbours are of one category, and alike in
        length.
        """
        groups, speeds, tp = [], [], self.aggregator_tp
        for island, speed in zip(self.islands, self.aggregator_speed, strict=True):
            left = [w for w in island if w in alive]
            for i in range(0, len(left) // tp * tp, tp):
                groups.append(tuple(left[i : i + tp]))
                speeds.append(speed)
        most = len(groups) if self.at_once is None else self.at_once // tp
        groups, speeds = groups[:most], speeds[:most]
        if not groups:
            return []
        ends = np.rint(np.cumsum(speeds) / sum(speeds) * len(call_ids)).astype(np.int64)
        shares = deal_evenly(call_ids, np.diff(ends, prepend=0).tolist())
        return [(group, share) for group, share in zip(groups, shares, strict=True) if len(share)]
