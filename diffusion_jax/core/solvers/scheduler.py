"""Solvers as diffusers' schedulers run them, where that is not the method on any list of levels.

Two habits of theirs are here.  DDIM and PNDM step by ⌊T/n⌋ of the table, whatever the grid says,
and call the network at the grid's next level; on "leading" levels that is the same.  Multistep
methods end at lower order: the step to the last level and the one to the end, in runs of few steps.
So these belong to the grids that ``convert.schedulers`` pairs them with; on others take
``SOLVERS``.
"""

from __future__ import annotations

from collections.abc import Callable

import jax
import jax.numpy as jnp
import numpy as np
from jaxtyping import Array

from diffusion_jax.core.noise import Noise, white
from diffusion_jax.core.process import Process
from diffusion_jax.core.solvers.dpm import multistep
from diffusion_jax.core.solvers.history import Cap, check_order, empty, push
from diffusion_jax.core.solvers.multistep import CONSTANT, adams, in_log_snr
from diffusion_jax.core.solvers.steps import EPS, FORMS, eps_factor, follow
from diffusion_jax.core.solvers.unipc import unipc
from diffusion_jax.core.types import NoiseLevel, Prediction, Solver, like

FEW = 15
"""Runs of fewer steps than this end at lower order, but for UniPC's."""


def scheduler_ddim(process: Process, steps: int) -> Solver:
    """DDIM with steps of ⌊T/n⌋ of the table; the one that would leave it goes to ``nxt``.

    Args:
        process: the model's, a table of T levels (1/n of the time on a continuous schedule).
        steps: n, of the whole grid.
    """
    moved_by = _stride(process, steps)

    def step(key, denoise, x, now, nxt, state):
        del key
        return follow(denoise(x, now), moved_by(now, -1, nxt)), state

    return Solver(lambda x: (), step)


def _stride(process: Process, steps: int, part: int = 1) -> Callable:
    """(level, count, otherwise) -> the level that many strides noisier, ``otherwise`` below 1/T."""
    size = process.schedule.steps
    length = 1 / steps / part if size is None else (size // steps // part) / size
    least = 0.0 if size is None else 0.5 / size

    def moved(level: NoiseLevel, count: int, otherwise: NoiseLevel) -> NoiseLevel:
        t = level.t + count * length
        there = process.at(jnp.clip(t, least, 1.0))
        return jax.tree.map(lambda a, b: jnp.where(t > least, a, b), there, otherwise)

    return moved


Value = Callable[[Prediction, NoiseLevel], Array]
"""(prediction, its level) -> the network's output that is averaged over steps."""
Noise0 = Callable[[Array, Array, NoiseLevel], Array]
"""(an average of outputs, x, level of x) -> eps."""


def _v_of(prediction: Prediction, level: NoiseLevel) -> Array:
    x0, eps = prediction.x0, prediction.eps
    return like(level.alpha, x0) * eps - like(level.sigma, x0) * x0


AVERAGES: dict[str, tuple[Value, Noise0]] = {
    "eps": (lambda prediction, level: prediction.eps, lambda mean, x, level: mean),
    "v": (_v_of, lambda v, x, level: like(level.alpha, x) * v + like(level.sigma, x) * x),
}


def scheduler_pndm(
    process: Process, steps: int, average: str = "eps", runge_kutta: bool = False
) -> Solver:
    """PLMS (or PNDM) whose steps are strides of the table, and whose last one is of order 4 too.

    Args:
        process, steps: see ``scheduler_ddim``.
        average: of ``AVERAGES``: what the weights of Liu et al. 2022 (eq. 12) are applied to: eps,
            or the v's of all levels, of which an eps is then made with the present x.
        runge_kutta: three pseudo Runge-Kutta steps at first, with halves of ⌊⌊T/n⌋/2⌋.

    Raises:
        ValueError: for an unknown average, or fewer than 4 steps with ``runge_kutta``.
    """
    if average not in AVERAGES:
        raise ValueError(f"scheduler_pndm(average={average!r}): known are {', '.join(AVERAGES)}")
    if runge_kutta and steps < 4:
        raise ValueError(
            f"sampler.steps = {steps} is too few for scheduler_pndm(runge_kutta=True), which needs "
            "at least 4"
        )
    value, eps_of = AVERAGES[average]
    stride, half = _stride(process, steps), _stride(process, steps, part=2)

    def move(x, mean, now, to):
        """x/alpha moves along eps by the way of sigma/alpha."""
        alpha = like(jnp.where(now.alpha > 0, now.alpha, 1.0), x)
        along = like(eps_factor(now, to), x) * eps_of(mean, x, now)
        return x * like(to.alpha, x) / alpha + along

    def heun(denoise, x, now, nxt, history):
        start = value(denoise(x, now), now)
        history = push(history, start, now)
        reached = move(x, start, now, stride(now, -1, nxt))
        if steps == 1:
            return reached, history
        end = value(denoise(reached, nxt), nxt)
        return move(x, (start + end) / 2, stride(nxt, 1, now), nxt), history

    def kutta(denoise, x, now, nxt, history):
        output = lambda x, level: value(denoise(x, level), level)
        middle = half(nxt, 1, now)
        e1 = output(x, now)
        e2 = output(move(x, e1, now, half(now, -1, nxt)), middle)
        e3 = output(move(x, e2, now, middle), middle)
        e4 = output(move(x, e3, now, nxt), nxt)
        return move(x, (e1 + 2 * e2 + 2 * e3 + e4) / 6, now, nxt), push(history, e1, now)

    def later(denoise, x, now, nxt, history):
        history = push(history, value(denoise(x, now), now), now)
        row = jnp.asarray(CONSTANT, x.dtype)[jnp.minimum(history.count, 4) - 1]
        mean = jnp.tensordot(row, history.values.astype(x.dtype), 1)
        return move(x, mean, now, stride(now, -1, nxt)), history

    first, count = (kutta, 3) if runge_kutta else (heun, 1)

    def step(key, denoise, x, now, nxt, history):
        del key
        run = lambda way: lambda x, history: way(denoise, x, now, nxt, history)
        return jax.lax.cond(history.count < count, run(first), run(later), x, history)

    return Solver(lambda x: empty(x, 4), step)


def scheduler_dpm(
    levels: NoiseLevel | None = None,
    order: int = 2,
    form: str = "x0",
    eta: float = 0.0,
    rule: str = "midpoint",
    lower_order_final: bool = True,
    euler_at_final: bool = False,
    noise: Noise = white,
) -> Solver:
    """``dpm.multistep`` with diffusers' third order (``curvature=0.5``) and its way to end.

    Args:
        levels: of the whole grid, which say where the end is; None for full order throughout.
        order: 1 to 3.
        form: of ``steps.FORMS``.
        eta, rule, noise: see ``dpm.multistep``; order 3 is of rule "exact".
        lower_order_final: orders 2 and 1 in the last steps of a run of fewer than 15.
        euler_at_final: order 1 in the very last step of any run.
    """
    check_order("scheduler_dpm", order, 3)
    cap = _cap(levels, lower_order_final, euler_at_final)
    return multistep(FORMS[form], order, eta, rule, 0.5, cap, noise)


def scheduler_deis(
    levels: NoiseLevel | None = None, order: int = 2, lower_order_final: bool = True
) -> Solver:
    """DEIS in log ρ, and its way to end; arguments as those of ``scheduler_dpm``."""
    check_order("scheduler_deis", order, 3)
    return adams(EPS, in_log_snr, order, _cap(levels, lower_order_final))


def scheduler_unipc(
    levels: NoiseLevel | None = None,
    order: int = 2,
    variant: str = "bh2",
    lower_order_final: bool = True,
) -> Solver:
    """UniPC whose order falls at the end of any run; arguments as ``unipc``, ``scheduler_dpm``."""
    return unipc(order, variant, True, _cap(levels, lower_order_final, few=np.inf))


def _cap(
    levels: NoiseLevel | None, lower: bool, euler: bool = False, few: float = FEW
) -> Cap | None:
    """The most that the order of a step to ``nxt`` may be: 2 to the last level, 1 beyond it."""
    if levels is None:
        return None
    lower = lower and levels.t.shape[0] < few
    last, most = levels.log_snr[-1], 99
    to_last, beyond = 2 if lower else most, 1 if lower or euler else most

    def cap(nxt: NoiseLevel) -> Array:
        late = jnp.where(nxt.log_snr == last, to_last, beyond)
        return jnp.where(nxt.log_snr >= last, late, most)

    return cap


SCHEDULER_SOLVERS: dict[str, Callable[..., Solver]] = {
    "scheduler_ddim": scheduler_ddim,
    "scheduler_pndm": scheduler_pndm,
    "scheduler_dpm": scheduler_dpm,
    "scheduler_deis": scheduler_deis,
    "scheduler_unipc": scheduler_unipc,
}
