"""How long a worker takes to be up: as a process of this machine, and as an actor of a local Ray cluster.

python benchmarks/ray_start.py [--repeats N] [--json]

Up is: vLLM imported, no model loaded. One worker at a time, on the CPU.
"""

from __future__ import annotations

import argparse
import json
import queue
import statistics
import sys
import tempfile
import time
from pathlib import Path

from mosaicsim.execution import ExecutionSection
from mosaicsim.executors.link import Connect, Inbox
from mosaicsim.executors.machine import Machine, local
from mosaicsim.executors.messages import Died, Quit
from mosaicsim.executors.ray_cluster import RayCluster


def seconds_until_up(connect: Connect, folder: Path) -> float:
    inbox: Inbox = queue.SimpleQueue()
    began = time.monotonic()
    link = connect((0,), folder / "worker.log", inbox)
    inbox.get()
    up_s = time.monotonic() - began
    link.send(Quit())
    while not isinstance(inbox.get()[1], Died):
        pass
    return up_s


def main() -> None:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--repeats", type=int, default=3)
    parser.add_argument("--json", action="store_true")
    arguments = parser.parse_args()
    section = ExecutionSection(questions="none", models={}, executor="ray")
    here = local(Machine.here(), "cpu", section)
    with tempfile.TemporaryDirectory() as name:
        folder = Path(name)
        seconds_until_up(here, folder)  # vLLM's files are in the page cache from here on
        process = [seconds_until_up(here, folder) for _ in range(arguments.repeats)]
        began = time.monotonic()
        cluster = RayCluster(section, "cpu", ["host0"])
        cluster_s = time.monotonic() - began
        try:
            actor = [seconds_until_up(cluster, folder) for _ in range(arguments.repeats)]
        finally:
            began = time.monotonic()
            cluster.close()
    figures = {
        "process_up_s": round(statistics.median(process), 1),
        "ray_cluster_up_s": round(cluster_s, 1),
        "actor_up_s": round(statistics.median(actor), 1),
        "ray_cluster_down_s": round(time.monotonic() - began, 1),
    }
    if arguments.json:
        json.dump(figures, sys.stdout)
    else:
        print("\n".join(f"{name:20} {value:6.1f}" for name, value in figures.items()))


if __name__ == "__main__":
    main()
