"""From a config to the diffusion process: schedule, shift, terminal SNR and path."""

from __future__ import annotations

from diffusion_jax.core import process, schedules
from diffusion_jax.core.learned_schedule import LEARNED, LearnedSchedule
from diffusion_jax.core.process import Process, Schedule
from diffusion_jax.core.types import Params
from diffusion_jax.spec import Config, build


def learned_schedule(config: Config) -> LearnedSchedule | None:
    """What ``config.process.schedule`` names, if it has parameters."""
    schedule = _schedule(config)
    return schedule if isinstance(schedule, LearnedSchedule) else None


def _schedule(config: Config) -> Schedule | LearnedSchedule:
    known = {**schedules.SCHEDULES, **LEARNED}
    return build(known, config.process.schedule, "process.schedule")


def noise_process(config: Config, params: Params | None = None) -> Process:
    """Schedule, shift, terminal SNR and path.

    Args:
        config: the experiment.
        params: of a learned schedule; None for those before training.
    """
    section = config.process
    schedule = _schedule(config)
    if isinstance(schedule, LearnedSchedule):
        if section.zero_terminal_snr:
            raise ValueError(
                "config.process.zero_terminal_snr = True has no meaning for a learned schedule, "
                "whose ends are trained; set it to False"
            )
        schedule = schedule.schedule(schedule.init() if params is None else params)
    if section.shift:
        schedule = schedules.shifted(schedule, section.shift)
    if section.zero_terminal_snr:
        schedule = schedules.zero_terminal_snr(schedule)
    if section.path not in process.PATHS:
        known = ", ".join(sorted(process.PATHS))
        raise ValueError(f"config.process.path = {section.path!r}; known are {known}")
    return Process(schedule, process.PATHS[section.path])
