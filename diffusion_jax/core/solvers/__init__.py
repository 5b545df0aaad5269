"""Solvers by name, for ``config.sampler.solver``."""

from collections.abc import Callable

from jaxtyping import Array

from diffusion_jax.core.solvers import dpm, noising, runge_kutta
from diffusion_jax.core.solvers.adaptive import adaptive
from diffusion_jax.core.solvers.ancestral import ancestral, ddpm
from diffusion_jax.core.solvers.ddim import ddim
from diffusion_jax.core.solvers.er_sde import er_sde
from diffusion_jax.core.solvers.invertible import edict
from diffusion_jax.core.solvers.jump import jump
from diffusion_jax.core.solvers.multistep import deis, exponential_adams, ipndm, lms, plms, pndm
from diffusion_jax.core.solvers.sa_solver import sa_solver
from diffusion_jax.core.solvers.scheduler import SCHEDULER_SOLVERS
from diffusion_jax.core.solvers.unipc import unipc
from diffusion_jax.core.types import Solver


def euler_ancestral(eta: float | Array = 1.0, noise: noising.Noise = noising.white) -> Solver:
    """k-diffusion's name for ``ddim(eta)``."""
    return ddim(eta, noise)


def langevin(
    snr: float = 0.16, corrections: int = 1, noise: noising.Noise = noising.white
) -> Solver:
    """``noising.langevin`` around DDPM: the predictor-corrector sampler of Song et al. 2021."""
    return noising.langevin(ddpm(noise=noise), snr, corrections, noise)


def restart(noise: noising.Noise = noising.white) -> Solver:
    """Heun's method on a grid that goes up and down, ``grids.restart`` (Xu et al. 2023)."""
    return noising.renoising(runge_kutta.heun(), noise)


SOLVERS: dict[str, Callable[..., Solver]] = {
    "ddpm": ddpm,
    "ddim": ddim,
    "euler": runge_kutta.euler,
    "euler_ancestral": euler_ancestral,
    "heun": runge_kutta.heun,
    "midpoint": runge_kutta.midpoint,
    "rk4": runge_kutta.rk4,
    "flow_euler": runge_kutta.euler,
    "flow_heun": runge_kutta.flow_heun,
    "edm": noising.edm,
    "dpm_2": dpm.dpm_2,
    "dpm_2_ancestral": noising.dpm_2_ancestral,
    "lms": lms,
    "plms": plms,
    "pndm": pndm,
    "ipndm": ipndm,
    "deis": deis,
    "exponential_adams": exponential_adams,
    "dpm_solver": dpm.dpm_solver,
    "dpm_multistep": dpm.dpm_multistep,
    "dpmpp_2s": dpm.dpmpp_2s,
    "dpmpp_3s": dpm.dpmpp_3s,
    "dpmpp_2m": dpm.dpmpp_2m,
    "dpmpp_3m": dpm.dpmpp_3m,
    "dpmpp_2s_ancestral": noising.dpmpp_2s_ancestral,
    "dpmpp_sde": dpm.dpmpp_sde,
    "dpmpp_2m_sde": dpm.dpmpp_2m_sde,
    "dpmpp_3m_sde": dpm.dpmpp_3m_sde,
    "unipc": unipc,
    "sa_solver": sa_solver,
    "er_sde": er_sde,
    "langevin": langevin,
    "restart": restart,
    "adaptive": adaptive,
    "consistency": noising.consistency,
    "edict": edict,
    "jump": jump,
}

NAMED = {**SOLVERS, **SCHEDULER_SOLVERS}
"""Those of any grid, and those of the grids that belong to them: all that a config may name."""

__all__ = ["NAMED", "SOLVERS", "ancestral", "ddim", "ddpm"]
