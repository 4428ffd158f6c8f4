"""Prefect tasks: one file for each stage, a thin skin of retries, caching and limits over one call into compressor."""
