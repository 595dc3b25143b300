"""What it runs on: devices, latency models, measured profiles, the cluster."""
