"""Solvers by name."""

from collections.abc import Callable

from diffusion_jax.core.solvers.ancestral import ancestral, ddpm
from diffusion_jax.core.solvers.ddim import ddim
from diffusion_jax.core.types import Solver

SOLVERS: dict[str, Callable[..., Solver]] = {"ddpm": ddpm, "ddim": ddim}

__all__ = ["SOLVERS", "ancestral", "ddim", "ddpm"]
