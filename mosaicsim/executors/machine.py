"""What this machine offers a real run: GPUs, cores, memory; and how its workers are started."""

from __future__ import annotations

import os
import subprocess
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path

from mosaicsim.errors import ScenarioError
from mosaicsim.execution import ExecutionSection
from mosaicsim.executors.link import Connect, Inbox, Link
from mosaicsim.executors.process import ProcessLink
from mosaicsim.executors.vllm_engine import CPU_ENVIRONMENT, ENVIRONMENT


@dataclass(frozen=True)
class Machine:
    """Ids of its GPUs (as CUDA_VISIBLE_DEVICES takes them) and of the CPU cores it may use."""

    gpus: tuple[str, ...]
    cores: tuple[int, ...]

    @classmethod
    def here(cls) -> Machine:
        """This machine, as far as this process may use it."""
        return cls(_gpus(os.environ), tuple(sorted(os.sched_getaffinity(0))))

    def device(self, section: ExecutionSection) -> str:
        """``cuda`` or ``cpu``. Raises ScenarioError where a GPU is asked for and there is none."""
        if section.device == "cuda" and not self.gpus:
            raise ScenarioError(
                "execution.device: cuda, but no NVIDIA GPU is visible here (`nvidia-smi -L`); "
                "accepted: auto, cpu, or a machine with a GPU"
            )
        return "cuda" if self.gpus and section.device != "cpu" else "cpu"

    def core_sets(self, each: int) -> list[tuple[int, ...]]:
        """Disjoint sets of ``each`` cores."""
        return [self.cores[i : i + each] for i in range(0, len(self.cores) - each + 1, each)]

    def require(self, section: ExecutionSection, n_workers: int, at_once: int) -> None:
        """Raise ScenarioError unless so many workers, ``at_once`` of them busy, can run here."""
        if self.device(section) == "cuda":
            if n_workers > len(self.gpus):
                raise ScenarioError(
                    f"cluster.hosts: {n_workers} workers, but this machine has {len(self.gpus)} visible GPUs"
                )
            return
        sets = len(self.core_sets(section.cores_per_worker))
        if at_once > sets:
            raise ScenarioError(
                f"cluster.workers_at_once: {at_once} workers may be busy at once, but this machine's "
                f"{len(self.cores)} cores make {sets} sets of {section.cores_per_worker} "
                f"(execution.cores_per_worker); set it to at most {sets}"
            )


def local(machine: Machine, device: str, section: ExecutionSection) -> Connect:
    """Workers as processes of this machine, each seeing its own GPUs only."""

    def connect(workers: tuple[int, ...], output: Path, inbox: Inbox) -> Link:
        gpus = [machine.gpus[w] for w in workers] if device == "cuda" else []
        return ProcessLink(environment_of(device, gpus, section.cores_per_worker), output, inbox)

    return connect


def environment_of(device: str, gpus: Sequence[str], cores: int) -> Mapping[str, str]:
    """Environment variables of a worker process."""
    if device == "cuda":
        return {**ENVIRONMENT, "CUDA_VISIBLE_DEVICES": ",".join(gpus)}
    return {**ENVIRONMENT, **CPU_ENVIRONMENT, "OMP_NUM_THREADS": str(cores)}


def free_memory_bytes() -> int | None:
    """Memory that new processes can have, where the system says so."""
    try:
        lines = Path("/proc/meminfo").read_text().splitlines()
    except OSError:
        return None
    return next((int(line.split()[1]) << 10 for line in lines if line.startswith("MemAvailable:")), None)


def _gpus(environment: Mapping[str, str]) -> tuple[str, ...]:
    try:
        listed = subprocess.run(["nvidia-smi", "-L"], capture_output=True, text=True, timeout=60).stdout
    except (OSError, subprocess.TimeoutExpired):
        return ()
    count = sum(line.startswith("GPU ") for line in listed.splitlines())
    given = environment.get("CUDA_VISIBLE_DEVICES")
    if given is None:
        return tuple(map(str, range(count)))
    return tuple(name for name in (part.strip() for part in given.split(",")) if name)[:count]
