"""The table of noise levels that a scheduler_config.json describes."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from typing import Any

import numpy as np

from diffusion_jax.convert.scheduler_fields import FILE, settings_of, unknown
from diffusion_jax.core import schedules
from diffusion_jax.core.process import Process, vp
from diffusion_jax.core.schedules import Schedule

_LEAST = 2.0**-24
"""alpha² of the noisiest level where diffusers keeps sigma/alpha finite there."""


def process_of(config: Mapping[str, Any]) -> Process:
    """The table of noise levels, on the variance preserving path.

    Args:
        config: entries of scheduler_config.json.

    Raises:
        ValueError: for an unsupported table.
    """
    s = settings_of(config)
    betas = _betas(s)
    if not s.get("rescale_betas_zero_snr"):
        return Process(schedules.discrete(betas), vp)
    zero = s["_class_name"] in ENDS_AT_ZERO
    return Process(
        (schedules.zero_terminal_snr(schedules.discrete(betas)) if zero else _nearly(betas)), vp
    )


def _betas(s: Mapping[str, Any]) -> np.ndarray:
    if s["trained_betas"] is not None:
        return np.asarray(s["trained_betas"], np.float64)
    name = s["beta_schedule"]
    if name not in BETAS:
        raise ValueError(unknown("beta_schedule", name, BETAS))
    return BETAS[name](s["num_train_timesteps"], s["beta_start"], s["beta_end"])


def _nearly(betas: np.ndarray) -> Schedule:
    """Zero terminal SNR (Lin et al. 2024, algorithm 1) with alpha² = 2^-24 in place of 0."""
    alpha = np.cumprod(np.sqrt(1 - betas))
    alpha = (alpha - alpha[-1]) * alpha[0] / (alpha[0] - alpha[-1])
    bar = np.append(alpha[:-1] ** 2, _LEAST)
    if len(bar) > 1 and bar[-2] <= _LEAST:
        raise ValueError(
            f"{FILE}: rescale_betas_zero_snr = True makes the levels of these betas noisier than "
            f"the last one, alpha² = 2^-24, which this class has; take DDIMScheduler"
        )
    return schedules.discrete(1 - bar / np.append(1.0, bar[:-1]))


def first_is_short(s: Mapping[str, Any]) -> bool:
    """Whether diffusers' float32 finds the table's noisiest sigma just short of its own logarithm.

    It looks a sigma up among the table's logarithms, rounded to float32, and some of its schedulers
    cut the index off: T - 1 is then told as T - 2.  Which one is a matter of the last bit, found
    here by the same operations, each rounded correctly.
    """
    single = np.float32
    if s.get("rescale_betas_zero_snr"):
        bar = single(_LEAST)
    else:
        betas = _single_betas(s)
        bar = single(np.cumprod((single(1) - betas).astype(np.float64))[-1])
    sigma = np.sqrt((single(1) - bar) / bar)
    return bool(np.log(sigma) > np.log(np.float64(sigma)))


def _single_betas(s: Mapping[str, Any]) -> np.ndarray:
    """float32, where ``linspace`` goes from either end to the middle by fused steps."""
    if s["trained_betas"] is not None or s["beta_schedule"] not in ("linear", "scaled_linear"):
        return _betas(s).astype(np.float32)
    root = s["beta_schedule"] == "scaled_linear"
    power = 0.5 if root else 1.0
    start, end = np.float32(s["beta_start"] ** power), np.float32(s["beta_end"] ** power)
    steps = s["num_train_timesteps"]
    step = np.float64(np.float32((end - start) / np.float32(max(steps - 1, 1))))
    i = np.arange(steps)
    up, down = np.float64(start) + step * i, np.float64(end) - step * (steps - 1 - i)
    line = np.where(i < steps // 2, up, down).astype(np.float32)
    return line**2 if root else line


ENDS_AT_ZERO = ("DDIMScheduler", "DDPMScheduler", "LCMScheduler")
"""Classes whose zero terminal SNR is exactly that."""

BETAS: dict[str, Callable[[int, float, float], np.ndarray]] = {
    "linear": schedules.linear_betas,
    "scaled_linear": schedules.scaled_linear_betas,
    "squaredcos_cap_v2": lambda steps, start, end: schedules.cosine_betas(steps),
}
