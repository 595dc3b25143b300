"""The measuring process: starts an engine, runs the points of a design, says what each step took.

Run as ``python -m mosaicsim.profiling.probe`` with its environment set; reads one line of JSON, a
:class:`Request`, and writes a line of JSON for each thing that happens. It then keeps its engine busy until
its input ends, so that another measured beside it sees the machine as it will be used; for each further line
it changes its session, an engine closed and another started.
"""

from __future__ import annotations

import json
import os
import select
import sys
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import asdict, dataclass
from typing import Any, TextIO

from mosaicsim.executors.messages import CallRequest, EngineArguments
from mosaicsim.executors.vllm_engine import VllmEngine, in_one_line
from mosaicsim.profiling.design import Limits, Point, Speed, design, passes
from mosaicsim.profiling.samples import StepSample

Say = Callable[[str, Any], None]


@dataclass(frozen=True)
class Request:
    """What to measure: EngineArgs keywords, the core to stay on (None: none), and seconds of measuring."""

    engine: dict[str, Any]
    core: int | None
    budget_s: float


@dataclass(frozen=True)
class Composition:
    """What the scheduler put into a step; see :class:`~mosaicsim.profiling.samples.StepSample`."""

    batch: int
    prefill_tokens: int
    context_tokens: int
    pairs: float


class ProbedEngine(VllmEngine):
    """An engine that tells what each step held, and how long the model itself took."""

    def __init__(self, arguments: EngineArguments) -> None:
        """Load the model and hook into the core, which is in this process."""
        super().__init__(arguments)
        self._processed: list[Composition] = []
        self._model_s = 0.0
        core = self._engine.engine_core.engine_core
        update = core.scheduler.update_from_output

        def update_from_output(scheduled: Any, output: Any) -> Any:
            self._processed.append(_composition(scheduled))
            return update(scheduled, output)

        core.scheduler.update_from_output = update_from_output
        for name in ("execute_model", "sample_tokens"):
            setattr(core.model_executor, name, self._timed(getattr(core.model_executor, name)))

    def _timed(self, call: Callable[..., Any]) -> Callable[..., Any]:
        def timed(*args: Any, **kwargs: Any) -> Any:
            began = time.perf_counter()
            result = call(*args, **kwargs)
            self._model_s += time.perf_counter() - began
            return result

        return timed

    def measured_step(self) -> tuple[Composition, float, float]:
        """Run until a step's result is there: what it held, seconds, and those that were not the model's.

        With async scheduling the engine plans a step while another runs, so results come a step late and
        the host's time is hidden: it counts as 0.
        """
        seconds, self._model_s = 0.0, 0.0
        self._processed.clear()
        while not self._processed:
            seconds += self.step().seconds
        hidden = self.resolved["async_scheduling"]
        return self._processed[-1], seconds, 0.0 if hidden else max(0.0, seconds - self._model_s)

    @property
    def held(self) -> tuple[int, ...]:
        """Calls in the engine."""
        return tuple(self._internal)

    @property
    def shape(self) -> dict[str, Any]:
        """The model's config.json, of the text part where there are several."""
        config: dict[str, Any] = self._engine.vllm_config.model_config.hf_text_config.to_dict()
        return {key: value for key, value in config.items() if isinstance(value, (int, float, str, bool))}


def _composition(scheduled: Any) -> Composition:
    """Of vLLM's SchedulerOutput. A chunk of one token after others is the same work as a decode."""
    computed = {r.req_id: r.num_computed_tokens for r in scheduled.scheduled_new_reqs}
    cached = scheduled.scheduled_cached_reqs
    computed.update(zip(cached.req_ids, cached.num_computed_tokens, strict=True))
    batch = tokens = context = 0
    pairs = 0.0
    for request, new in scheduled.num_scheduled_tokens.items():
        before = computed[request]
        if new == 1 and before:
            batch += 1
            context += before + 1
        else:
            tokens += new
            context += before
            pairs += new * (before + new / 2)
    return Composition(batch, tokens, context, pairs)


class Bench:
    """Runs points on an engine and collects the samples."""

    def __init__(self, engine: ProbedEngine) -> None:
        self.engine = engine
        self.limits = limits_of(engine.resolved)
        self.samples: list[StepSample] = []
        self._calls = 0
        self._vocabulary = max(8, int(engine.shape["vocab_size"]) - 8)

    def run(self, index: int, point: Point) -> None:
        """Measure one point; its samples carry ``index``."""
        engine = self.engine
        lasting = point.output_tokens(self.limits)
        for _ in range(point.batch):
            self._add(point.prompt_tokens, lasting)
        for _ in range(point.setup_steps(self.limits) + point.steps if point.batch else 0):
            self._step(index, point)
        for prompts in point.prefills:
            before = engine.unfinished
            for tokens in prompts:
                self._add(tokens, 1)
            while engine.unfinished > before:
                self._step(index, point)
        self.clear()

    def clear(self) -> None:
        """Take what is left out of the engine."""
        for call in range(self._calls):
            if self.engine.holds(call):
                self.engine.cancel(call)
        while self.engine.unfinished:
            self.engine.step()

    def first_impression(self) -> Speed:
        """Warm the engine up, and see how fast it is."""
        limits = self.limits
        tokens = max(1, min(256, limits.max_model_len // 2, limits.max_num_batched_tokens // 2))
        point = Point(1, tokens, 4)
        self.run(-1, point)
        self.samples.clear()
        self.run(-1, point)
        prefill = next(s for s in self.samples if s.prefill_tokens)
        step_s = min(s.seconds for s in self.samples if not s.prefill_tokens)
        self.samples.clear()
        return Speed(step_s, max(prefill.seconds - step_s, 0.1 * prefill.seconds) / tokens)

    def _add(self, prompt_tokens: int, output_tokens: int) -> None:
        prompt = tuple(4 + (self._calls * 131 + 17 * i) % self._vocabulary for i in range(prompt_tokens))
        sampling = {"max_tokens": output_tokens, "min_tokens": output_tokens, "ignore_eos": True}
        # asked for as real calls ask for it: a confidence needs the log-probability
        self.engine.add(CallRequest(self._calls, prompt, {**sampling, "temperature": 0.0, "logprobs": 0}))
        self._calls += 1

    def _step(self, index: int, point: Point) -> Composition:
        held, seconds, host_s = self.engine.measured_step()
        self.samples.append(
            StepSample(
                index,
                point.held_out,
                held.batch,
                held.prefill_tokens,
                held.context_tokens,
                held.pairs,
                seconds,
                host_s,
            )
        )
        return held


def limits_of(resolved: dict[str, Any]) -> Limits:
    """What the engine can hold. vLLM keeps one block for itself, so the capacity is one block short."""
    return Limits(
        resolved["max_num_seqs"],
        resolved["max_num_batched_tokens"],
        resolved["max_model_len"],
        (resolved["num_gpu_blocks"] - 1) * resolved["block_size"],
    )


def measure(request: Request, say: Say, told: Callable[[], str | None]) -> None:
    """Start an engine as a first session does, run the points, then change sessions when told to.

    ``told`` gives the parent's next line, None where there is none yet, and "" at its end.
    """
    arguments = EngineArguments("measured", request.engine)
    with _timed(say, "import_s"):
        import vllm.v1.engine.llm_engine  # noqa: F401  # as a worker does before its first session
    with _timed(say, "first_load_s"):
        bench = Bench(ProbedEngine(arguments))
    say("resolved", bench.engine.resolved)
    say("shape", bench.engine.shape)
    speed = bench.first_impression()
    points = design(bench.limits, speed, request.budget_s)
    rounds = passes(points, speed, request.budget_s)
    for done in range(rounds * len(points)):
        say("progress", [done, rounds * len(points)])
        bench.run(done % len(points), points[done % len(points)])
    say("samples", [list(asdict(s).values()) for s in bench.samples])
    if request.engine.get("enable_sleep_mode") and bench.engine.resolved["device"] != "cpu":
        bench.engine.sleep()
        with _timed(say, "wake_s"):
            bench.engine.wake()
            bench.run(-1, Point(1, 1, 1))
    say("done", None)
    while (line := told()) != "":
        if line is not None:
            bench = _changed(bench, arguments, say)
        bench.run(-1, Point(min(4, bench.limits.max_num_seqs), 4, 8))


def _changed(bench: Bench, arguments: EngineArguments, say: Say) -> Bench:
    """A session change: the old engine closed, and a new one started."""
    began = time.perf_counter()
    bench.engine.close()
    closed = time.perf_counter()
    changed = Bench(ProbedEngine(arguments))
    say("change_s", [closed - began, time.perf_counter() - closed])
    return changed


@contextmanager
def _timed(say: Say, name: str) -> Iterator[None]:
    began = time.perf_counter()
    yield
    say(name, time.perf_counter() - began)


def _said_on(out: TextIO) -> Say:
    def say(name: str, value: Any) -> None:
        out.write(json.dumps([name, value]) + "\n")
        out.flush()

    return say


def _told() -> str | None:
    """The parent's next line, if it has said one; "" where it has closed our input or gone away."""
    return sys.stdin.readline() if select.select([sys.stdin], [], [], 0)[0] else None


def main() -> None:
    """Serve one request."""
    # vLLM logs to standard output, which is ours: from here on that is the log
    out = os.fdopen(os.dup(1), "w")
    os.dup2(2, 1)
    say = _said_on(out)
    request = Request(**json.loads(sys.stdin.readline()))
    if request.core is not None:
        os.sched_setaffinity(0, {request.core})
    try:
        measure(request, say, _told)
    except Exception as error:
        say("error", in_one_line(error))
        raise


if __name__ == "__main__":
    main()
