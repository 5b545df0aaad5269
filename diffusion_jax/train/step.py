"""One optimiser step as a pure function: the only place where gradients are taken.

    key = fold_in(key(seed), step) -> loss -> gradient -> optimiser -> settle -> moving average

A step is a function of (state, batch) alone, so a resumed run equals an uninterrupted
one.  A non-finite loss or gradient changes nothing: ``state.finite`` turns False and the state
stays the last good one, however many steps were dispatched already.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import jax
import jax.numpy as jnp
import optax
from jaxtyping import Array

from diffusion_jax.core import seeds
from diffusion_jax.core.control_flow import scan
from diffusion_jax.core.ema import Ema
from diffusion_jax.core.types import Context, Params, Recipe, Report
from diffusion_jax.train.state import TrainState

Batch = dict[str, Array]
Step = Callable[[TrainState, Params, Batch], tuple[TrainState, dict[str, Array]]]
"""(state, frozen parameters, batch) -> (state, metrics)."""


def make_step(
    recipe: Recipe,
    tx: optax.GradientTransformation,
    ema: Ema,
    seed: int,
    accumulate: int = 1,
    steps_per_call: int = 1,
    learning_rate: Callable[[Array], Array] | None = None,
    skip_nonfinite: bool = False,
) -> Step:
    """Build the step; jit it with ``donate_argnums=0``.

    Args:
        recipe: loss and initialisation.
        tx: the optimiser; one that takes extra arguments receives the ``step``.
        ema: the moving average, the loss's ``Context.ema``.
        seed: seed of all random draws, together with the step's number.
        accumulate: micro-batches whose gradients are averaged; divides the batch.
        steps_per_call: k > 1 takes batches [k, b, ...] and makes k steps in one dispatch.
        learning_rate: step -> rate, for the metrics only.
        skip_nonfinite: whether training continues after a non-finite step, which then changes
            the step's number alone; otherwise no later step is applied.

    Returns:
        (state, frozen, batch) -> (state, metrics).  Metrics are float32 [], or [k] for k > 1: the
        recipe's own, loss, grad_norm (before any clip), param_norm, learning_rate if given, and
        finite, bool.
    """
    gradient = _accumulated(recipe, accumulate) if accumulate > 1 else _gradient(recipe)

    optimise = optax.with_extra_args_support(tx)

    def step(state: TrainState, frozen: Params, batch: Batch):
        key = jax.random.fold_in(seeds.key(seed), state.step)
        context = Context(state.step, ema.params(state.ema), frozen, state.carry)
        loss, report, grads = gradient(state.params, context, batch, key)
        norm = optax.tree.norm(grads)
        updates, opt_state = optimise.update(grads, state.opt_state, state.params, step=state.step)
        params = recipe.settle(optax.apply_updates(state.params, updates), report.carry)
        average = ema.update(state.ema, params, state.step)
        finite = state.finite & jnp.isfinite(loss) & jnp.isfinite(norm)
        new = TrainState(state.step + 1, params, opt_state, average, report.carry, finite)
        kept = jax.tree.map(lambda a, b: jnp.where(finite, a, b), new, state)
        metrics = {**report.metrics, "loss": loss, "grad_norm": norm}
        metrics["param_norm"] = optax.tree.norm(kept.params)
        if learning_rate is not None:
            metrics["learning_rate"] = learning_rate(state.step)
        metrics = jax.tree.map(lambda m: jnp.asarray(m, jnp.float32), metrics)
        reported = {**metrics, "finite": finite}
        if skip_nonfinite:
            return kept._replace(step=state.step + 1), reported
        return kept._replace(finite=finite), reported

    if steps_per_call == 1:
        return step
    return lambda state, frozen, batches: scan(
        lambda state, batch: step(state, frozen, batch), state, batches
    )


def _gradient(recipe: Recipe) -> Callable[..., tuple[Array, Report, Params]]:
    def gradient(params, context, batch, key):
        of_loss = jax.value_and_grad(recipe.loss, has_aux=True)
        (loss, report), grads = of_loss(params, context, batch, key)
        return loss, report, grads

    return gradient


def _accumulated(recipe: Recipe, n: int) -> Callable[..., tuple[Array, Report, Params]]:
    """Means over n consecutive micro-batches; the carry is passed from one to the next."""
    one = _gradient(recipe)

    def gradient(params, context, batch, key):
        def body(sums, xs):
            carry, total = sums
            loss, report, grads = one(params, context._replace(carry=carry), *xs)
            part = (loss, report.metrics, grads)
            return (report.carry, jax.tree.map(jnp.add, total, part)), None

        micro, keys = jax.tree.map(lambda x: _split(x, n), batch), jax.random.split(key, n)
        first = jax.tree.map(lambda x: x[0], micro)
        shapes = jax.eval_shape(lambda: one(params, context, first, keys[0]))
        zeros = jax.tree.map(
            lambda a: jnp.zeros(a.shape, a.dtype), (shapes[0], shapes[1].metrics, shapes[2])
        )
        (carry, total), _ = scan(body, (context.carry, zeros), (micro, keys))
        loss, metrics, grads = jax.tree.map(lambda a: a / n, total)
        return loss, Report(metrics, carry), grads

    return gradient


def _split(x: Any, n: int) -> Array:
    """[b, ...] -> [n, b/n, ...] by stride, so each device's micro-batches are its own examples."""
    if x.shape[0] % n:
        raise ValueError(
            f"config.train.accumulate = {n} does not divide the batch of {x.shape[0]}; "
            "make config.train.batch_size a multiple of it"
        )
    return jnp.swapaxes(x.reshape(x.shape[0] // n, n, *x.shape[1:]), 0, 1)
