"""A step compiled for the devices, and its FLOPs."""

from __future__ import annotations

from collections.abc import Callable
from functools import cache
from typing import Any, NamedTuple

import jax
import optax
from jax.sharding import Mesh, NamedSharding
from jax.sharding import PartitionSpec as P

from diffusion_jax.core.ema import Ema
from diffusion_jax.core.types import Params, Recipe
from diffusion_jax.profiling.flops import count
from diffusion_jax.train.offload import fetched, returned
from diffusion_jax.train.plan import Plan
from diffusion_jax.train.sharding import on_mesh
from diffusion_jax.train.state import TrainState
from diffusion_jax.train.step import Batch, Step, make_step

_COMPILED = "/jax/core/compile/backend_compile_duration"
_compilations: list[float] = []


class Program:
    """A step with donated state, compiled at the first call for each shape of a batch.

    Args:
        step: from ``make_step``.
        places: a NamedSharding for each leaf of the state.
        mesh: the mesh that metrics are copied to.

    Attributes:
        jitted: the jitted step.
        flops: FLOPs of one call over all devices, the mean of the calls so far; 0 before any.
    """

    def __init__(self, step: Step, places: TrainState, mesh: Mesh):
        out = (places, NamedSharding(mesh, P()))

        def on_devices(state: TrainState, frozen: Params, batch: Batch):
            state, metrics = step(fetched(state, places), frozen, batch)
            return returned(state, places), metrics

        self.jitted = jax.jit(on_mesh(on_devices, mesh), donate_argnums=0, out_shardings=out)
        self._compiled: dict[Any, _Compiled] = {}
        self._calls, self.flops = 0, 0.0

    @classmethod
    def of(
        cls,
        recipe: Recipe,
        tx: optax.GradientTransformation,
        ema: Ema,
        plan: Plan,
        places: TrainState,
        mesh: Mesh,
        seed: int,
        learning_rate: Callable[[Any], Any] | None,
        steps_per_call: int,
    ) -> Program:
        """The program of a run; ``steps_per_call`` is the plan's, or 1 for single steps."""
        step = make_step(
            recipe, tx, ema, seed, plan.accumulate, steps_per_call, learning_rate,
            skip_nonfinite=plan.skip_nonfinite > 0,
        )  # fmt: skip
        return cls(step, places, mesh)

    def __call__(self, state: TrainState, frozen: Params, batch: Batch):
        shapes = tuple((name, x.shape, x.dtype) for name, x in sorted(batch.items()))
        if shapes not in self._compiled:
            traced = self.jitted.trace(state, frozen, batch)
            made = _Compiled(traced.lower().compile(), count(traced.jaxpr).total)
            self._compiled[shapes] = made
        chosen = self._compiled[shapes]
        self._calls += 1
        self.flops += (chosen.flops - self.flops) / self._calls
        return chosen.call(state, frozen, batch)


class _Compiled(NamedTuple):
    """A program for batches of one shape, and the FLOPs of a call."""

    call: Any
    flops: float


def compilations() -> tuple[int, float]:
    """Number of programs that this process compiled since the first call, and seconds."""
    _listen()
    return len(_compilations), sum(_compilations)


@cache
def _listen() -> None:
    jax.monitoring.register_event_duration_secs_listener(_heard)


def _heard(event: str, duration_secs: float, **_: Any) -> None:
    if event == _COMPILED:
        _compilations.append(duration_secs)
