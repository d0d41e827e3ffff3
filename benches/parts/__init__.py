"""What benches/bench.py measures, part by part: each says how long it takes, runs, and returns what it found."""
