"""Measuring what a model costs on this machine: what to run, running it, fitting, and the profile file."""
