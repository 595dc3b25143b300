"""mosaicsim: schedule Mixture-of-Agents workloads over a GPU cluster, in simulation and for real."""

__version__ = "0.1.0"
