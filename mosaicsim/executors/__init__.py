"""The worlds a plan runs in."""
