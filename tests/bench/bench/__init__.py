"""Benchmarks: each is measured against a peer in the same run, and says so as ratios. See docs/benchmarks.md."""
