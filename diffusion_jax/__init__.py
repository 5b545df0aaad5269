"""Diffusion models in pure functions; see README.md for the map."""

from diffusion_jax.backend import configure

configure()
