"""One real session against the simulated engine with a profile of `mosaicsim profile`.

    mosaicsim profile --model MODEL --device NAME -o profile.yaml --engine max_num_seqs=16 ...
    python benchmarks/session.py MODEL profile.yaml

The calls' lengths are drawn here and generated exactly (min_tokens = max_tokens); the engine has the
settings that the profile states. Prints JSON: errors of the makespan, of each call's end-to-end time (all
calls wait from the start), and of the step times alone.
"""

from __future__ import annotations

import argparse
import json
import os
import time
from pathlib import Path
from typing import Any

import numpy as np

from mosaicsim.executors.engine import Engine, EngineConfig
from mosaicsim.executors.vllm_engine import CPU_ENVIRONMENT, ENVIRONMENT
from mosaicsim.hardware.catalog import load_catalog
from mosaicsim.hardware.latency import HostOverhead, StepTables
from mosaicsim.hardware.profile_file import Measured, load_profile_file

NOT_ARGUMENTS = {"vllm", "num_gpu_blocks", "prefix_caching", "concurrent"}


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("model")
    parser.add_argument("profile", type=Path)
    parser.add_argument("--calls", type=int, default=60)
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--core", type=int)
    asked = parser.parse_args()
    measured = load_profile_file(asked.profile).measured[0]
    tables = compiled(asked.profile, measured)
    rng = np.random.default_rng(asked.seed)
    prompt = np.clip(rng.lognormal(4.6, 0.6, asked.calls), 12, 900).astype(int).tolist()
    output = np.clip(rng.lognormal(3.7, 0.7, asked.calls), 2, 300).astype(int).tolist()
    if asked.core is not None:
        os.sched_setaffinity(0, {asked.core})
    real_s, steps = run_real(asked.model, measured.engine, prompt, output)
    simulated_s = np.array(simulate(measured, tables, prompt, output))
    real_steps = np.array([seconds for _, seconds in steps])
    step_s = np.array([priced(tables, held) for held, _ in steps])
    print(
        json.dumps(
            {
                "calls": asked.calls,
                "makespan_s": round(real_s.max(), 2),
                "makespan_error_pct": round(100 * (simulated_s.max() / real_s.max() - 1), 2),
                "e2e_mape_pct": round(100 * float(np.mean(np.abs(simulated_s / real_s - 1))), 2),
                "steps": len(steps),
                "step_sum_error_pct": round(100 * (step_s.sum() / real_steps.sum() - 1), 2),
                "step_mape_pct": round(100 * float(np.mean(np.abs(step_s / real_steps - 1))), 2),
            }
        )
    )


def compiled(path: Path, measured: Measured) -> StepTables:
    profile = load_catalog(files=[path]).profile(measured.model, measured.device, tp=measured.tp)
    engine = measured.engine
    host = profile.host or HostOverhead()
    return profile.latency.compile(int(engine["max_num_seqs"]), int(engine["max_num_batched_tokens"]), host)


def run_real(model: str, settings: dict[str, Any], prompt: list[int], output: list[int]) -> Any:
    """Seconds from the start to each call's end, and each step's content and seconds."""
    os.environ.update({**ENVIRONMENT, **CPU_ENVIRONMENT})
    from mosaicsim.executors.messages import CallRequest, EngineArguments
    from mosaicsim.profiling.probe import ProbedEngine

    arguments = {k: v for k, v in settings.items() if k not in NOT_ARGUMENTS}
    arguments |= {"model": model, "enable_prefix_caching": False}
    engine = ProbedEngine(EngineArguments("session", arguments))
    vocabulary = engine.shape["vocab_size"]

    def call(i: int, prompt_tokens: int, output_tokens: int) -> CallRequest:
        exact = {"max_tokens": output_tokens, "min_tokens": output_tokens, "ignore_eos": True}
        tokens = np.random.default_rng(i).integers(4, vocabulary - 4, prompt_tokens).tolist()
        return CallRequest(i, tuple(tokens), {**exact, "temperature": 0.0, "logprobs": 0})

    engine.add(call(len(prompt), 64, 6))
    while engine.unfinished:
        engine.step()
    waiting = [call(i, *lengths) for i, lengths in enumerate(zip(prompt, output, strict=True))][::-1]
    ends, steps = np.zeros(len(prompt)), []
    began = time.monotonic()
    while waiting or engine.unfinished:
        while waiting and engine.unfinished < engine.resolved["max_num_seqs"]:
            engine.add(waiting.pop())
        held = set(engine.held)
        composition, seconds, _ = engine.measured_step()
        now = time.monotonic() - began
        for i in held - set(engine.held):
            ends[i] = now
        steps.append((composition, seconds))
    return ends, steps


def simulate(measured: Measured, tables: StepTables, prompt: list[int], output: list[int]) -> list[float]:
    settings = measured.engine
    block_size = int(settings["block_size"])
    config = EngineConfig(
        policy="v1",
        max_num_seqs=int(settings["max_num_seqs"]),
        max_num_batched_tokens=int(settings["max_num_batched_tokens"]),
        block_size=block_size,
        num_gpu_blocks=measured.kv_capacity_tokens // block_size,
    )
    engine = Engine(config, tables)
    engine.add(prompt, output)
    engine.advance()
    return engine.finish


def priced(tables: StepTables, held: Any) -> float:
    if held.prefill_tokens:
        return tables.mixed_s(held.batch, held.prefill_tokens, held.context_tokens, held.pairs)
    return tables.decode_s(held.batch, held.context_tokens)


if __name__ == "__main__":
    main()
