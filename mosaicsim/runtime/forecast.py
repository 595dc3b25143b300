"""What sessions of a steered run are predicted to take: as profiled, corrected by the pace that is seen."""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np

from mosaicsim.runtime.job import Job
from mosaicsim.runtime.pace import Pace
from mosaicsim.runtime.pool import Pool
from mosaicsim.schedulers.base import AGGREGATING, Course, Instances, SessionCost
from mosaicsim.workload.calls import Workload

NEWS_CALLS = 16
"""Calls that end in a session before its pace is looked at again."""


class Forecast:
    """Costs and predicted seconds of sessions and calls. It knows no clock: who asks says what time it is."""

    def __init__(
        self, workload: Workload, pool: Pool, profiled: Sequence[Sequence[SessionCost]], course: Course
    ) -> None:
        """``profiled[m][w]`` is expert m on ``pool.workers[w]``, shared as the course says."""
        self._profiled, self._costs = profiled, [list(row) for row in profiled]
        self._paces = [Pace() for _ in profiled]
        self._place = {w.index: i for i, w in enumerate(pool.workers)}
        self._instances = course.instances
        self._n_calls = len(workload.calls)
        self._weights = _aggregator_weights(workload, course.instances)
        # where sessions share a worker, seconds are not a session's own
        self._learns = course.slots == 1

    def cost(self, expert: int, group: tuple[int, ...]) -> SessionCost:
        """What a session of the expert is taken to cost there by now."""
        if expert == AGGREGATING:
            return self._instances.costs[self._instances.groups.index(group)]
        return self._costs[expert][self._place[group[0]]]

    def learn(self, job: Job, now: float) -> bool:
        """Correct the costs of a running job's expert by its pace, now and then; whether that was done."""
        ended = job.taken - len(job.calls)
        if not self._learns or job.mixed or job.expert == AGGREGATING or ended < job.learnt + NEWS_CALLS:
            return False
        job.learnt = ended
        profiled, pace = self._profiled[job.expert], self._paces[job.expert]
        cost = profiled[self._place[job.workers[0]]]
        if job.number is None or not pace.see(job.number, job.taken, ended, now - job.ready_s, cost):
            return False
        self._costs[job.expert] = [cost.at_pace(pace.factor) for cost in profiled]
        return True

    def left_s(self, job: Job, now: float, load_s: float) -> float:
        """Predicted seconds until a session is done, counted from its turn; ``load_s`` of them to load.

        Of an expert's under way, what the profile says a session of its size still takes when so many calls
        have ended, but no more than its calls left would take anew. Of the aggregator's, which gets its calls
        one by one, half is forecast by what it was to take in all.
        """
        cost = self.cost(job.expert, job.workers)
        left = cost.predict_s(self.size(job))
        if not job.ready:
            return left + load_s
        if job.expert != AGGREGATING and len(cost.progress):
            ended = job.taken - len(job.calls)
            return min(left, cost.predict_s(job.taken) - cost.ended_s(job.taken, ended / max(job.taken, 1)))
        due = job.ready_s + cost.predict_s(job.taken) - now
        return min(left, max(due, left / 4))

    def longer_s(self, job: Job, left_s: float) -> float:
        """Seconds beyond ``left_s`` that a session's calls would take anew: those that run long go on longer.

        By how many of a session have ended the few last ones are soon done; but they are known to be long.
        """
        return max(0.0, self.cost(job.expert, job.workers).predict_s(self.size(job)) - left_s)

    def size(self, job: Job) -> float:
        """Calls left in a session; the aggregator's by their prompts, which every token has to read."""
        if job.expert != AGGREGATING:
            return len(job.calls)
        n, weights = self._n_calls, self._weights
        return sum([weights[call - n] for call in job.calls])

    def weight(self, call: int) -> float:
        """What a call counts for, in calls of average size."""
        return 1.0 if call < self._n_calls else self._weights[call - self._n_calls]


def _aggregator_weights(workload: Workload, instances: Instances) -> list[float]:
    """What each question's aggregator call counts for: its prompt is known, its output the average."""
    mean, output = instances.mean_prompt_tokens, instances.costs[0].mean_output_tokens
    prompts = workload.aggregator.prompt_tokens
    # before a real run no prompt is known: then all calls count alike
    weights: list[float] = np.where(prompts > 0, (prompts + output) / (mean + output), 1.0).tolist()
    return weights
