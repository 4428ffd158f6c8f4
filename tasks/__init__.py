"""Prefect tasks: a thin skin of retries, caching and progress over compressor, and what its files share."""
