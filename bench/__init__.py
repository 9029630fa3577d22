"""Benchmarks of every rule beside what people use today; not installed. ``python -m bench --help``; see README.md."""
