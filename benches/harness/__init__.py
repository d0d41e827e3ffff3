"""What the benchmarks share: processes, peers, load, rounds and tables."""
