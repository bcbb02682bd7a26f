"""Benchmarks of segkern beside the libraries it stands in for; see docs/benchmarks.md."""
