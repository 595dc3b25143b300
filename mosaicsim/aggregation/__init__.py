"""When the aggregator may be skipped."""
