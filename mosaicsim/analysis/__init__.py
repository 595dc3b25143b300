"""What happened: metrics, bounds, comparisons."""
