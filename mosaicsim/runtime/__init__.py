"""Running without a clock: orchestrator, events, run log."""
