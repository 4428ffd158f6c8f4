"""Prefect flows: the order of the stages, their parameters, and the command line."""
