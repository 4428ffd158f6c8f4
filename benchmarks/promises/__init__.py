"""One way to break an archive a file; benchmarks/promise.py calls them."""
