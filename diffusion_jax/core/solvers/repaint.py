"""RePaint: steps that are taken several times over, so that what is known reaches the rest.

A sampler that is made to agree with known pixels (``guidance.projected`` with ``known``) moves the
unknown ones as if those had been drawn with them; on one way down they never meet, which is the
seam.  Going back up by q(x_t | x_s) and down again is a step of a Markov chain that lets the two
settle (Lugmayr et al. 2022, section 4.2).  For Gaussian data the distribution of the samples is
known exactly (tests/core/test_repaint.py), and shows *where* repeats help: not while x is nearly
all noise, but for log-SNR of 0 to 6, where the details of data of unit variance are decided.  Data
of variance v want that interval shifted by -log v.

Both functions take any solver; it starts each repeat without memory, so that a multistep solver is
of the first order there.  The noise of going up must be new at every call (not ``brownian``).
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
from jaxtyping import Array

from diffusion_jax.core.noise import Noise, white
from diffusion_jax.core.process import Process
from diffusion_jax.core.solvers.noising import renoise
from diffusion_jax.core.solvers.steps import one_level
from diffusion_jax.core.types import Denoise, NoiseLevel, Solver


def repaint(
    solver: Solver,
    process: Process,
    repeats: int | Array = 500,
    low: float | Array = 1.0,
    high: float | Array = 6.0,
    jump: float | Array = 0.6,
    noise: Noise = white,
) -> Solver:
    """Repeats spread evenly over log-SNR from low to high: the cost does not depend on the grid.

    A repeat noises x to a log-SNR lower by ``jump``, and comes back in one step of the solver.  A
    step of the grid is followed by its share of them.

    Cost in network evaluations (NFE): those of the solver on the grid, and ``repeats`` more for a
    solver of one evaluation a step.  Inpainting half of a row of 16 numbers (AR(1), ρ = 0.95) by
    ``ddim()`` on 50 levels, the samples' KL to the exact conditional distribution is 3.0 nats with
    0 repeats, 0.44 with 100, 0.21 with 200 and 0.08 with 500.

    Args:
        solver: of one level for the whole batch; a deterministic one wants fewer repeats.
        process: gives the level above.
        repeats: of all steps together, >= 0; may be traced.
        low, high: of log-SNR, low < high; may be traced.
        jump: > 0; the longer, the fewer repeats are needed and the larger the solver's own error.
        noise: of going up.
    """
    fraction = lambda level: jnp.clip((level.log_snr - low) / (high - low), 0.0, 1.0)

    def step(key, denoise, x, now, nxt, state):
        one_level("repaint", nxt)
        # Rounded so that the shares of all steps add up to ``repeats``.
        share = lambda level: jnp.floor(fraction(level) * repeats + 1e-3).astype(jnp.int32)
        above = process.at_log_snr(nxt.log_snr - jump)

        def leg(i):
            start = jax.tree.map(lambda a, b: jnp.where(i == 0, a, b), now, above)
            return _Leg(start, nxt, i > 0)

        again = jnp.maximum(share(nxt) - share(now), 0)
        return _walk(solver, noise, key, denoise, x, state, leg, 1 + again)

    return solver._replace(step=step)


def repaint_on_grid(
    solver: Solver,
    resamplings: int | Array = 10,
    low: float | Array = -jnp.inf,
    high: float | Array = jnp.inf,
    back: int = 1,
    noise: Noise = white,
) -> Solver:
    """Each step to a log-SNR in [low, high] is taken ``resamplings`` times (Lugmayr et al. 2022).

    After it x is noised to the level ``back`` steps of the grid before, and walks down from there:
    algorithm 1 of the paper at back = 1.  A grid with k levels in the interval costs
    k·(resamplings - 1)·back more steps; what they gain depends on how far apart the levels are.

    Args:
        solver: of one level for the whole batch.
        resamplings: the paper's U, >= 1; 1 is the solver itself.  May be traced.
        low, high: of log-SNR; may be traced.
        back: >= 1: the paper's jump length, here after every step.
        noise: of going up.

    Raises:
        ValueError: if back is below 1.
    """
    if back < 1:
        raise ValueError(f"repaint_on_grid(back={back}): go back by 1 step or more")

    def init(x: Array) -> _Passed:
        none = jnp.zeros(back, jnp.result_type(float))
        return _Passed(solver.init(x), NoiseLevel(*[none] * 4), jnp.zeros((), jnp.int32))

    def step(key, denoise, x, now, nxt, state):
        one_level("repaint_on_grid", nxt)
        join = lambda new, old: jnp.concatenate([jnp.asarray(new, old.dtype)[None], old])
        passed = jax.tree.map(lambda new, old: join(new, old[:-1]), now, state.levels)
        way = jax.tree.map(join, nxt, passed)  # way[0] is ``nxt``, way[i] the level i steps before
        count = state.count + 1
        within = (low <= nxt.log_snr) & (nxt.log_snr <= high) & (now.log_snr < nxt.log_snr)
        again = jnp.where(within & (count >= back), resamplings - 1, 0)

        def leg(i):
            from_top = (i > 0) & ((i - 1) % back == 0)
            start = jnp.where(i == 0, 1, back - (i - 1) % back)
            at = lambda index: jax.tree.map(lambda leaf: leaf[index], way)
            return _Leg(at(start), at(start - 1), from_top)

        x, inner = _walk(solver, noise, key, denoise, x, state.inner, leg, 1 + again * back)
        return x, _Passed(inner, passed, count)

    return solver._replace(init=init, step=step)


class _Leg(NamedTuple):
    """A step of the solver, and whether x, at the end of the grid's step, is first noised to it."""

    start: NoiseLevel
    end: NoiseLevel
    raised: Array


class _Passed(NamedTuple):
    """The solver's state, the last levels of the grid, newest first, and how many were seen."""

    inner: Any
    levels: NoiseLevel
    count: Array


def _walk(
    solver: Solver, noise: Noise, key: Array, denoise: Denoise, x: Array, state: Any,
    leg: Callable[[Array], _Leg], count: Array,
) -> tuple[Array, Any]:  # fmt: skip
    """The grid's step, leg 0, and its repeats, in one loop: the program has the network once."""
    end = leg(jnp.zeros((), jnp.int32)).end

    def body(i, carry):
        x, state = carry
        start, to, raised = leg(i)
        noise_key, step_key = jax.random.split(jax.random.fold_in(key, i))
        choose = lambda new, old: jnp.where(raised, jnp.asarray(new, old.dtype), old)
        x, state = choose(renoise(noise_key, x, end, start, noise), x), state
        state = jax.tree.map(choose, solver.init(x), state)
        step_key = jnp.where(i == 0, key, step_key)  # the first is the solver's own, bit for bit
        moved, state = solver.step(step_key, denoise, x, start, to, state)
        return moved.astype(x.dtype), state

    return jax.lax.fori_loop(0, count, body, (x, state))


__all__ = ["repaint", "repaint_on_grid"]
