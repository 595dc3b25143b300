"""One vLLM engine in this process, stepped by its owner, so that calls come and go while it runs.

vLLM's V1 ``LLMEngine`` with its core in process: ``step()`` is one iteration. Imported in worker processes
only, after :data:`ENVIRONMENT` is in force.
"""

from __future__ import annotations

import gc
import math
import time
from dataclasses import dataclass, replace
from typing import Any

from mosaicsim.executors.messages import Begun, CallRequest, CallResult, EngineArguments

ENVIRONMENT = {
    "VLLM_ENABLE_V1_MULTIPROCESSING": "0",
    "VLLM_NO_USAGE_STATS": "1",
    "VLLM_LOGGING_LEVEL": "WARNING",
    "TOKENIZERS_PARALLELISM": "false",
}
"""Of every engine process: the core is stepped in process, and nothing is reported home."""

CPU_ENVIRONMENT = {
    "OMP_NUM_THREADS": "1",
    # pinning is ours to do, and automatic binding refuses tensor parallelism on one NUMA node
    "VLLM_CPU_OMP_THREADS_BIND": "nobind",
    # without it the first request with logprobs compiles for 20 s
    "TORCHDYNAMO_DISABLE": "1",
}
"""Of an engine process on a CPU core, in addition."""


@dataclass(frozen=True)
class Step:
    """One iteration as it was: how long, what it held, and what ended with it.

    ``running`` sequences made ``generated`` tokens; a step that generated fewer, or that ended a prefill,
    did prefill work. ``waiting`` sequences were not admitted.
    """

    seconds: float
    running: int
    waiting: int
    generated: int
    prefilled: bool
    results: tuple[CallResult, ...]


class VllmEngine:
    """A loaded model. ``resolved`` holds the settings the engine chose, in vLLM's names."""

    def __init__(self, arguments: EngineArguments) -> None:
        """Load the model. Raises whatever vLLM raises."""
        from vllm import __version__
        from vllm.engine.arg_utils import EngineArgs
        from vllm.v1.engine.llm_engine import LLMEngine

        self.expert = arguments.expert
        self.asleep = False
        self._engine = LLMEngine.from_engine_args(
            EngineArgs(**{"disable_log_stats": False, **arguments.vllm}), stat_loggers=[self._logger]
        )
        config = self._engine.vllm_config
        self.resolved: dict[str, Any] = {
            "vllm": __version__,
            "model": config.model_config.model,
            "dtype": str(config.model_config.dtype).removeprefix("torch."),
            "max_model_len": config.model_config.max_model_len,
            "num_gpu_blocks": config.cache_config.num_gpu_blocks,
            "block_size": config.cache_config.block_size,
            "prefix_caching": bool(config.cache_config.enable_prefix_caching),
            "max_num_seqs": config.scheduler_config.max_num_seqs,
            "max_num_batched_tokens": config.scheduler_config.max_num_batched_tokens,
            "async_scheduling": bool(getattr(config.scheduler_config, "async_scheduling", False)),
            "enforce_eager": bool(config.model_config.enforce_eager),
            "tensor_parallel_size": config.parallel_config.tensor_parallel_size,
            "device": str(config.device_config.device_type),
        }
        self._internal: dict[int, str] = {}
        self._running = self._waiting = self._generated = 0
        self._ended_prefill = False

    @property
    def unfinished(self) -> int:
        """Calls in the engine."""
        return len(self._internal)

    def holds(self, call_id: int) -> bool:
        """Whether the call is in the engine."""
        return call_id in self._internal

    def add(self, call: CallRequest) -> None:
        """Queue a call. Raises what vLLM raises for one it refuses."""
        from vllm import SamplingParams
        from vllm.sampling_params import RequestOutputKind

        params = SamplingParams(**call.sampling, output_kind=RequestOutputKind.FINAL_ONLY)
        prompt: Any = {"prompt_token_ids": list(call.prompt_token_ids)}
        self._internal[call.call_id] = self._engine.add_request(str(call.call_id), prompt, params)

    def cancel(self, call_id: int) -> CallResult:
        """Take a call out of the engine and return what it had come to."""
        internal = self._internal.pop(call_id)
        state = self._engine.output_processor.request_states.get(internal)
        stats = state.stats if state is not None else None
        self._engine.abort_request([internal], internal=True)
        return CallResult(
            call_id=call_id,
            start_s=_seen(getattr(stats, "scheduled_ts", 0.0)),
            first_token_s=_seen(getattr(stats, "first_token_ts", 0.0)),
            finish_s=time.monotonic(),
            output_tokens=int(getattr(stats, "num_generation_tokens", 0)),
            preemptions=int(getattr(stats, "num_preemptions", 0)),
            text="",
            logprob=math.nan,
            finish_reason="cancelled",
        )

    def take(self, call_id: int) -> Begun | None:
        """Take a call out of the engine with what it has generated, so that another can go on with it.

        None, and it stays, where it stops at some text: what is generated elsewhere would not be seen to
        complete it.
        """
        state = self._engine.output_processor.request_states.get(self._internal[call_id])
        detokenizer = getattr(state, "detokenizer", None)
        if detokenizer is None or getattr(detokenizer, "stop", None):
            return None
        tokens, text = tuple(detokenizer.output_token_ids), str(getattr(detokenizer, "output_text", ""))
        logprob = getattr(state.logprobs_processor, "cumulative_logprob", None)
        came_to = replace(
            self.cancel(call_id),
            output_tokens=len(tokens),
            text=text,
            logprob=math.nan if logprob is None else float(logprob),
            finish_reason="withdrawn",
        )
        return Begun(came_to, tokens)

    def withdraw(self, call_id: int) -> bool:
        """Take a call out of the engine if it has never been scheduled; whether it was."""
        state = self._engine.output_processor.request_states.get(self._internal[call_id])
        if state is None or getattr(state.stats, "scheduled_ts", 0.0) > 0:
            return False
        self._engine.abort_request([self._internal.pop(call_id)], internal=True)
        return True

    def step(self) -> Step:
        """Run one iteration."""
        self._running = self._waiting = self._generated = 0
        self._ended_prefill = False
        began = time.monotonic()
        outputs = self._engine.step()
        seconds = time.monotonic() - began
        results = tuple(self._result(output) for output in outputs if output.finished)
        # the scheduler's count is taken after the step, so that what just ended is missing from it
        running = self._running + len(results)
        return Step(
            seconds,
            running,
            self._waiting,
            self._generated,
            self._ended_prefill or self._generated < running,
            results,
        )

    def sleep(self) -> None:
        """Free the device's memory and keep the weights in the host's."""
        self._engine.sleep(level=1)
        self.asleep = True

    def wake(self) -> None:
        """Undo :meth:`sleep`."""
        self._engine.wake_up()
        self.asleep = False

    def close(self) -> None:
        """Free everything the engine holds."""
        self._engine.engine_core.shutdown()
        del self._engine
        gc.collect()
        if self.resolved["device"] != "cpu":
            import torch

            torch.cuda.empty_cache()

    def _result(self, output: Any) -> CallResult:
        call_id = int(output.request_id.partition("-")[0])
        self._internal.pop(call_id, None)
        done, stats = output.outputs[0], output.metrics
        logprob = done.cumulative_logprob
        return CallResult(
            call_id=call_id,
            start_s=stats.scheduled_ts,
            first_token_s=stats.first_token_ts,
            finish_s=stats.last_token_ts,
            output_tokens=len(done.token_ids),
            preemptions=int(getattr(stats, "num_preemptions", 0)),
            text=done.text,
            logprob=math.nan if logprob is None else float(logprob),
            finish_reason=str(done.finish_reason),
        )

    def _logger(self, vllm_config: Any, engine_index: int = 0) -> Any:
        """A stat logger that keeps the last step's counts; vLLM makes one an engine."""
        from vllm.v1.metrics.loggers import StatLoggerBase

        owner = self

        class LastStep(StatLoggerBase):  # type: ignore[misc]  # vllm is an extra
            def __init__(self, vllm_config: Any, engine_index: int = 0) -> None:
                pass

            def record(self, scheduler_stats: Any, iteration_stats: Any, *_: Any, **__: Any) -> None:
                owner._count(scheduler_stats, iteration_stats)

            def log_engine_initialized(self) -> None:
                pass

        return LastStep(vllm_config, engine_index)

    def _count(self, scheduler: Any, iteration: Any) -> None:
        if scheduler is not None:
            self._running, self._waiting = scheduler.num_running_reqs, scheduler.num_waiting_reqs
        if iteration is not None:
            self._generated = iteration.num_generation_tokens
            self._ended_prefill = bool(iteration.time_to_first_tokens_iter)


def _seen(timestamp: float) -> float:
    """vLLM's 0.0 for a moment that did not come is our -1."""
    return timestamp if timestamp > 0 else -1.0


def in_one_line(error: BaseException) -> str:
    """What vLLM raised, its kind and words; a validation error says what is wrong below its first line."""
    words = " ".join(str(error).split())
    return f"{type(error).__name__}: {words[:300] or 'no message'}"
