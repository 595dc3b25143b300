"""Replay one generated online trace here and in NVIDIA's offline replay, CPU seconds against CPU seconds.

    python benchmarks/peers.py                # one and four replicas, blocks of 16 and of 64 tokens
    python benchmarks/peers.py --json

The peer is what ``python -m dynamo.replay`` of ai-dynamo runs, installed from PyPI into a venv of its own the
first time. Both sides get the same requests, engine limits, iteration times and round-robin dispatch;
`benchmarks/README.md` says what is counted and what the two do differently.
"""

from __future__ import annotations

import argparse
import json
import os
import platform
import subprocess
import sys
import tempfile
import time
from dataclasses import dataclass
from importlib.metadata import version
from math import log, sqrt
from pathlib import Path
from statistics import median
from typing import Any

import numpy as np
import numpy.typing as npt

from mosaicsim.executors.engine import Engine, EngineConfig
from mosaicsim.hardware.latency import HostOverhead, TwoRegimeLatency

PEER = "ai-dynamo==1.3.1"
RATE_PER_S = 6.45
"""Poisson arrivals a replica."""

PROMPT_TOKENS = (1155, 1020, 8192)
OUTPUT_TOKENS = (211, 129, 4096)
"""Mean, median and cap of the chat lengths: the means and medians published for the Azure conversation trace
(Patel et al., Splitwise, arXiv 2311.18677), drawn here as lognormals."""

KV_CAPACITY_TOKENS = 409_600
MAX_NUM_SEQS = 256
MAX_NUM_BATCHED_TOKENS = 2048
"""vLLM V1's limits for Llama-3.1-8B on an A100-80G, which holds 411,529 tokens of KV beside the weights."""

STEP_S = 11.2e-3
PREFILL_TOKEN_S = 54e-6
CONTEXT_TOKEN_S = 80e-9
"""Iteration time of the same pair, fitted to ai-dynamo/aiconfigurator's operator tables (Apache-2.0): base, a
prefill token, a context token. The 0.03 ms a sequence is left out: the peer's profile has no such term."""

TRACE_BLOCK_SIZE = 512
"""Tokens a hash id of the trace file stands for: the peer's default."""


@dataclass(frozen=True)
class Trace:
    """n requests in order of arrival; every column has shape (n,)."""

    arrivals_s: npt.NDArray[np.float64]
    prompt_tokens: npt.NDArray[np.int64]
    output_tokens: npt.NDArray[np.int64]


def generate(requests: int, replicas: int, seed: int) -> Trace:
    """A seeded trace: Poisson arrivals at the replicas' joint rate, lognormal lengths."""
    rng = np.random.default_rng(seed)
    gaps_s = rng.exponential(1 / (RATE_PER_S * replicas), requests)
    return Trace(
        np.cumsum(gaps_s), lengths(rng, requests, PROMPT_TOKENS), lengths(rng, requests, OUTPUT_TOKENS)
    )


def lengths(rng: np.random.Generator, n: int, shape: tuple[int, int, int]) -> npt.NDArray[np.int64]:
    """Draw n lognormal token counts of the given (mean, median, cap)."""
    mean, middle, cap = shape
    drawn = rng.lognormal(log(middle), sqrt(2 * log(mean / middle)), n)
    return np.clip(np.rint(drawn), 1, cap).astype(np.int64)


# --- our side


def replay_ours(trace: Trace, replicas: int, block_size: int) -> dict[str, float]:
    """Replay on mosaicsim's engine and summarise; request i goes to replica i mod ``replicas``."""
    config = EngineConfig(
        policy="v1",
        max_num_seqs=MAX_NUM_SEQS,
        max_num_batched_tokens=MAX_NUM_BATCHED_TOKENS,
        block_size=block_size,
        num_gpu_blocks=KV_CAPACITY_TOKENS // block_size,
    )
    tables = latency().compile(MAX_NUM_SEQS, MAX_NUM_BATCHED_TOKENS, HostOverhead())
    first_token_s, finish_s = np.empty_like(trace.arrivals_s), np.empty_like(trace.arrivals_s)
    generated = 0
    for replica in range(replicas):
        mine = slice(replica, None, replicas)
        engine = Engine(config, tables)
        engine.add(
            trace.prompt_tokens[mine].tolist(),
            trace.output_tokens[mine].tolist(),
            arrive=trace.arrivals_s[mine].tolist(),
        )
        engine.advance()
        first_token_s[mine], finish_s[mine] = engine.first_token, engine.finish
        generated += sum(map(engine.tokens_generated, range(len(engine.finish))))
    return summary(trace, first_token_s, finish_s, generated)


def latency() -> TwoRegimeLatency:
    """The iteration time that :func:`peer_timing` gives the peer.

    The peer charges a step its prefill tokens and the context of all it computes, fresh prompts
    included; ours counts the context of the decodes, so a prefill token brings its own.
    """
    return TwoRegimeLatency(
        decode_base_s=STEP_S,
        decode_per_sequence_s=0.0,
        decode_per_context_token_s=CONTEXT_TOKEN_S,
        mixed_base_s=STEP_S,
        mixed_per_sequence_s=0.0,
        mixed_per_prefill_token_s=PREFILL_TOKEN_S + CONTEXT_TOKEN_S,
        mixed_per_context_token_s=CONTEXT_TOKEN_S,
    )


def summary(
    trace: Trace, first_token_s: npt.NDArray[np.float64], finish_s: npt.NDArray[np.float64], generated: int
) -> dict[str, float]:
    """The figures of the peer's report that both sides have, in its names (milliseconds)."""
    ttft = (first_token_s - trace.arrivals_s) * 1e3
    e2e = (finish_s - trace.arrivals_s) * 1e3
    several = trace.output_tokens > 1
    tpot = (e2e - ttft)[several] / (trace.output_tokens[several] - 1)
    report = {
        "completed_requests": float(np.count_nonzero(finish_s >= 0)),
        "total_output_tokens": float(generated),
        "duration_ms": float(finish_s.max() - trace.arrivals_s[0]) * 1e3,
    }
    for name, values in (("ttft_ms", ttft), ("tpot_ms", tpot), ("e2e_latency_ms", e2e)):
        levels = np.percentile(values, (0, 50, 75, 90, 95, 99, 100))
        report |= {f"mean_{name}": float(values.mean()), f"std_{name}": float(values.std())}
        keys = ("min", "median", "p75", "p90", "p95", "p99", "max")
        report |= {f"{key}_{name}": float(level) for key, level in zip(keys, levels, strict=True)}
    return report


# --- the peer's side


def peer_python(venv: Path) -> Path:
    """The interpreter of the peer's venv, made and filled the first time."""
    python = venv / ("Scripts/python.exe" if os.name == "nt" else "bin/python")
    name, wanted = PEER.split("==")
    probe = f"from importlib.metadata import version; assert version({name!r}) == {wanted!r}"
    if python.exists() and subprocess.run([python, "-c", probe], capture_output=True).returncode == 0:
        return python
    print(f"installing {PEER} into {venv}", file=sys.stderr)
    steps = [
        [sys.executable, "-m", "venv", str(venv)],
        [str(python), "-m", "pip", "install", "--quiet", PEER],
    ]
    for step in steps:
        if subprocess.run(step, stdout=sys.stderr).returncode:
            raise SystemExit(f"could not install {PEER} into {venv}; --venv names another folder")
    return python


def peer_timing(path: Path) -> None:
    """Write :func:`latency` as the peer's profile: prefill ms by tokens, decode ms by context tokens."""
    tokens = np.array([0.0, 1e6])
    decode_ms = (STEP_S + CONTEXT_TOKEN_S * tokens) * 1e3
    np.savez(
        path,
        prefill_isl=tokens,
        prefill_ttft_ms=PREFILL_TOKEN_S * 1e3 * tokens,
        decode_active_kv_tokens=tokens,
        decode_context_length=np.array([1.0, 1e5]),
        decode_itl=np.column_stack([decode_ms, decode_ms]),
    )


def write_mooncake(trace: Trace, path: Path) -> None:
    """Write the trace as Mooncake JSONL, no two prompts sharing a block."""
    blocks = -(-trace.prompt_tokens // TRACE_BLOCK_SIZE)
    ends = np.cumsum(blocks)
    columns = (trace.arrivals_s, trace.prompt_tokens, trace.output_tokens, ends - blocks, ends)
    with path.open("w") as lines:
        for at_s, prompt, output, start, end in zip(*(column.tolist() for column in columns), strict=True):
            row = {"timestamp": at_s * 1e3, "input_length": prompt, "output_length": output}
            lines.write(json.dumps(row | {"hash_ids": list(range(start, end))}) + "\n")


def replay_peer(python: Path, trace: Trace, replicas: int, block_size: int, repeats: int) -> dict[str, Any]:
    """Replay in the peer's venv; see `peers_dynamo.py` for the returned object.

    Prefix caching stays on, its default: no prompt repeats here, and off costs it 25-80 % more CPU.
    """
    with tempfile.TemporaryDirectory() as scratch:
        write_mooncake(trace, Path(scratch, "trace.jsonl"))
        peer_timing(Path(scratch, "timing.npz"))
        job = {
            "trace": str(Path(scratch, "trace.jsonl")),
            "trace_block_size": TRACE_BLOCK_SIZE,
            "replicas": replicas,
            "repeats": repeats,
            "engine": {
                "engine_type": "vllm",
                "block_size": block_size,
                "num_gpu_blocks": KV_CAPACITY_TOKENS // block_size,
                "max_num_seqs": MAX_NUM_SEQS,
                "max_num_batched_tokens": MAX_NUM_BATCHED_TOKENS,
                "enable_prefix_caching": True,
                "enable_chunked_prefill": True,
                "planner_profile_data": str(Path(scratch, "timing.npz")),
            },
        }
        ran = subprocess.run(
            [python, Path(__file__).with_name("peers_dynamo.py")],
            input=json.dumps(job),
            capture_output=True,
            text=True,
            env=os.environ | {"DYN_LOG": "error"},
        )
    if ran.returncode:
        raise SystemExit(f"the peer's replay failed:\n{ran.stderr}")
    outcome: dict[str, Any] = json.loads(ran.stdout.splitlines()[-1])
    return outcome


# --- the comparison


def compare(
    python: Path, requests: int, replicas: int, block_size: int, repeats: int, seed: int
) -> dict[str, Any]:
    """Replay one trace on both sides; exits if one of them lost a request or a token."""
    trace = generate(requests, replicas, seed)
    ours_s, ours = [], {}
    for _ in range(repeats):
        began = time.process_time()
        ours = replay_ours(trace, replicas, block_size)
        ours_s.append(time.process_time() - began)
    peer = replay_peer(python, trace, replicas, block_size, repeats)
    peer_s = [cpu_s - peer["load_cpu_s"] for cpu_s in peer["cpu_s"]]
    for figure, due in (("completed_requests", requests), ("total_output_tokens", trace.output_tokens.sum())):
        if not ours[figure] == peer["report"][figure] == due:
            raise SystemExit(
                f"{figure}: {due} due, {ours[figure]:.0f} here, {peer['report'][figure]} in the peer"
            )
    return {
        "requests": requests,
        "replicas": replicas,
        "block_size": block_size,
        "output_tokens": int(trace.output_tokens.sum()),
        "ours_cpu_s": min(ours_s),
        "peer_cpu_s": min(peer_s),
        "ratio": min(peer_s) / min(ours_s),
        "ours_median_cpu_s": median(ours_s),
        "peer_median_cpu_s": median(peer_s),
        "ours_requests_per_s": requests / min(ours_s),
        "peer_requests_per_s": requests / min(peer_s),
        "ours_mean_ttft_ms": ours["mean_ttft_ms"],
        "peer_mean_ttft_ms": peer["report"]["mean_ttft_ms"],
        "ours_mean_tpot_ms": ours["mean_tpot_ms"],
        "peer_mean_tpot_ms": peer["report"]["mean_tpot_ms"],
        "peer_load_cpu_s": peer["load_cpu_s"],
        "repeats": repeats,
        "seed": seed,
        "versions": {
            "mosaicsim": version("mosaicsim"),
            "ai-dynamo": peer["version"],
            "python": platform.python_version(),
        },
    }


def table(rows: list[dict[str, Any]]) -> str:
    """The rows as aligned text."""
    sizes, speed = ("requests", "replicas", "block"), ("here_s", "peer_s", "ratio")
    checks = ("ttft_ms", "(peer)", "tpot_ms", "(peer)")
    shown = ["".join(f"{word:>9}" for word in sizes + speed + checks)]
    for row in rows:
        counts = f"{row['requests']:>9}{row['replicas']:>9}{row['block_size']:>9}"
        cpu = f"{row['ours_cpu_s']:>9.3f}{row['peer_cpu_s']:>9.3f}{row['ratio']:>8.1f}x"
        ttft = f"{row['ours_mean_ttft_ms']:>9.1f}{row['peer_mean_ttft_ms']:>9.1f}"
        tpot = f"{row['ours_mean_tpot_ms']:>9.2f}{row['peer_mean_tpot_ms']:>9.2f}"
        shown.append(counts + cpu + ttft + tpot)
    return "\n".join(shown)


def positive(text: str) -> int:
    """An argument that counts something."""
    if not text.isdecimal() or int(text) < 1:
        raise argparse.ArgumentTypeError(f"{text!r} is not a whole number above 0")
    return int(text)


def arguments() -> argparse.Namespace:
    cache = Path(os.environ.get("XDG_CACHE_HOME", Path.home() / ".cache"))
    parser = argparse.ArgumentParser(description=(__doc__ or "").splitlines()[0])
    parser.add_argument("--requests", type=positive, default=20_000)
    parser.add_argument("--replicas", type=positive, nargs="+", default=[1, 4])
    parser.add_argument(
        "--block-sizes", type=positive, nargs="+", default=[16, 64], help="vLLM's and the peer's default"
    )
    parser.add_argument(
        "--repeats", type=positive, default=3, help="the best is compared, the median recorded"
    )
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--venv", type=Path, default=cache / "mosaicsim" / PEER.replace("==", "-"))
    parser.add_argument("--json", action="store_true")
    return parser.parse_args()


def main() -> None:
    asked = arguments()
    python = peer_python(asked.venv)
    rows = [
        compare(python, asked.requests, replicas, block_size, asked.repeats, asked.seed)
        for block_size in asked.block_sizes
        for replicas in asked.replicas
    ]
    print(json.dumps(rows, indent=1) if asked.json else table(rows))


if __name__ == "__main__":
    main()
