"""Experiments: ``python -m experiments.train``, ``.sample`` and ``.evaluate``; see README.md."""
