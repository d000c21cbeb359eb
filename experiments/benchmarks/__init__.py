"""Benchmarks: ``python -m experiments.benchmarks.losses``, ``.samplers``, ``.networks``."""
