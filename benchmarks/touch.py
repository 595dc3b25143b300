"""Seconds a GiB takes to be touched for the first time: more of them, or after a pause, may take longer each.

python benchmarks/touch.py --gib 3
python benchmarks/touch.py --gib 10

In a virtual machine the host may back memory only when it is touched, and take it back while it is free: an
engine that starts after a pause is then slower than one that follows another at once.
"""

from __future__ import annotations

import argparse
import json
import mmap
import time


def touch_s(gib: float) -> float:
    """Seconds to map so much memory and write to each page, a GiB."""
    began = time.perf_counter()
    with mmap.mmap(-1, int(gib * 2**30)) as memory:
        memory[:: mmap.PAGESIZE] = b"\1" * -(-len(memory) // mmap.PAGESIZE)
        return (time.perf_counter() - began) / gib


def main() -> None:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--gib", type=float, default=3)
    parser.add_argument("--pauses", type=float, nargs="+", default=[0, 0, 30, 0])
    arguments = parser.parse_args()
    rows = []
    for pause in arguments.pauses:
        time.sleep(pause)
        rows.append({"free_for_s": pause, "s_per_gib": round(touch_s(arguments.gib), 3)})
    print(json.dumps({"gib": arguments.gib, "touched": rows}, indent=1))


if __name__ == "__main__":
    main()
