"""Costs of compiled programs and limits of chips: pure functions, independent of models."""
