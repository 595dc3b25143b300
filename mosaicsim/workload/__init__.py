"""What has to be computed: traces, routing, generation, the call table."""
