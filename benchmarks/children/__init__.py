"""Scripts that benchmarks run as separate processes: contenders and load generators."""
