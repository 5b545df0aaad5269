"""Experiments: each file is ``base`` plus its difference."""
