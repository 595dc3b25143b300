"""Synthetic traces: a full block of calls whose lengths, answers and agreement meet published figures."""

from mosaicsim.workload.synthetic.generate import generate, generator
from mosaicsim.workload.synthetic.spec import SyntheticSpec, load_spec

__all__ = ["SyntheticSpec", "generate", "generator", "load_spec"]
