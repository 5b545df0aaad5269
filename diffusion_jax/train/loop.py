"""The training loop, the same for every recipe.

While the device computes step k, the host places the batch of step k + 1 and reads the metrics of
step k - 1; the device waits for the host only at a checkpoint or a hook.  The batch and the random
draws of a step depend on its number alone, so a resumed run repeats the uninterrupted one exactly.
"""

from __future__ import annotations

import os
import sys
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import Any, NamedTuple

import jax
import numpy as np
import optax
from jax.sharding import Mesh
from tqdm import tqdm

from diffusion_jax.core import seeds
from diffusion_jax.core.ema import Ema
from diffusion_jax.core.types import Params, Recipe
from diffusion_jax.train import sharding, workdir
from diffusion_jax.train.checkpoint import Checkpoints
from diffusion_jax.train.feed import HostBatches, example, feed
from diffusion_jax.train.gauges import Gauges
from diffusion_jax.train.log import Log, Meter, NonFinite, open_log
from diffusion_jax.train.offload import fetched
from diffusion_jax.train.plan import Plan, check
from diffusion_jax.train.preemption import EXIT_CODES, Stopped, stop_signals
from diffusion_jax.train.program import Program
from diffusion_jax.train.state import TrainState, abstract_state, init_state, with_shardings
from diffusion_jax.train.symptoms import Watch
from diffusion_jax.train.trace import Trace


class Hook(NamedTuple):
    """Something to do between steps, such as a grid of samples.

    Attributes:
        every: steps between calls, with one at the end; 0 for never.
        call: (steps done, state) -> name -> image uint8 [h, w, c] or number for TensorBoard, or
            None.  The next step reuses the state's memory: copy what you keep.
    """

    every: int
    call: Callable[[int, TrainState], Mapping[str, Any] | None]


class _Session(NamedTuple):
    """What ``_run`` needs in one session of a run."""

    calls: dict[int, Program]
    frozen: Params
    data: Callable[[int], HostBatches]
    mesh: Mesh
    plan: Plan
    hooks: Sequence[Hook]
    places: TrainState
    save: Callable[[TrainState], None]
    stop: Callable[[int], str | None]
    gauges: Gauges
    trace: Trace
    watch: Watch


def train(
    recipe: Recipe,
    tx: optax.GradientTransformation,
    ema: Ema,
    data: Callable[[int], HostBatches],
    plan: Plan,
    folder: str | os.PathLike,
    config: Mapping[str, Any],
    *,
    mesh: Mesh | None = None,
    rules: sharding.Rules = (),
    split: str = "all",
    offload: str = "none",
    frozen: Params = None,
    start: Params = None,
    seed: int = 0,
    learning_rate: Callable[[Any], Any] | None = None,
    hooks: Sequence[Hook] = (),
) -> TrainState:
    """Train until ``plan.steps``, from the newest good checkpoint in the folder if it has one.

    The folder gets config.json, metrics.jsonl, tensorboard/ and checkpoints/.

    Args:
        recipe, tx, ema: recipe, optimiser and moving average.
        data: start step -> iterator of this process's batches from that step on, name -> array
            [b / processes, ...].
        plan: see ``Plan``.
        folder: the run's folder, created if necessary.
        config: the resolved config, of JSON's types: a folder belongs to one config.
        mesh: from ``sharding.make_mesh``; None puts all devices on the data axis.
        rules: see ``sharding.Rules``.
        split: what is sharded: a name in ``sharding.SPLITS``.
        offload: what is kept in host memory between steps: a name in ``offload.OFFLOADS``.
        frozen: parameters that the loss reads and training does not change.
        start: parameters in place of all or some of those of ``recipe.init``.
        seed: seed of parameters and all random draws.
        learning_rate: step -> rate, for the log.
        hooks: see ``Hook``.

    Returns:
        The state after the last step.

    Raises:
        ValueError: for a plan, mesh, batch or folder that does not fit, in one sentence.
        checkpoint.NotSaved: if checkpoints cannot be written; earlier ones stay intact.
        NonFinite: for a loss or gradient that is not finite, after saving the last good state.
        Stopped: on SIGTERM (exit code 0) or SIGINT (130), after saving the state.
    """
    check(plan)
    mesh = sharding.make_mesh() if mesh is None else mesh
    trace = Trace(folder, plan.trace)
    with workdir.locked(folder):  # before claiming: another run's config is not touched
        batch = example(data, mesh)
        shapes = abstract_state(recipe, tx, ema, batch)
        workdir.claim(folder, config)  # not before: a config of which nothing is made claims none
        places = sharding.of_state(shapes, mesh, rules, split, offload)
        frozen = {} if frozen is None else frozen
        frozen = jax.device_put(frozen, sharding.of_params(frozen, mesh, rules))
        parts = (recipe, tx, ema, plan, places, mesh, seed, learning_rate)
        calls = {k: Program.of(*parts, k) for k in {1, plan.steps_per_call}}
        gauges = Gauges(len(jax.tree.leaves(batch)[0]))
        with Checkpoints(folder, plan.keep, plan.keep_every) as saved, stop_signals() as stop:
            state = saved.restore(with_shardings(shapes, places))
            if state is None:
                start = jax.device_put(start, sharding.of_params(start, mesh, rules))
                state = init_state(recipe, tx, ema, seeds.key(seed), batch, places, start)
            save = lambda state: saved.save(state, config)
            session = _Session(
                calls, frozen, data, mesh, plan, hooks, places, save, stop, gauges, trace, Watch()
            )
            with open_log(folder, int(state.step)) as log:
                state, signal = _run(state, session, log)
            saved.wait()
    if signal:
        _leave(signal, int(state.step), folder)
    return fetched(state, places)


def _run(state: TrainState, s: _Session, log: Log) -> tuple[TrainState, str | None]:
    """Steps until the end of the plan, or until a signal, whose name is the second result."""
    step, plan = int(state.step), s.plan
    meter, signal = Meter(plan.skip_nonfinite), None
    with _progress(plan.steps, step) as bar:
        batches = feed(s.data, s.mesh, step, plan.steps, plan.steps_per_call, meter)
        coming, pending = next(batches, None), None
        try:
            while coming is not None and not signal:
                size, batch = coming
                s.trace.before(step)
                state, metrics = s.calls[size](state, s.frozen, batch)
                coming = next(batches, None)
                _read(pending, meter, log, s, bar)
                pending, step = (step, size, metrics), step + size
                s.trace.after(step, metrics)
                # Of each step: processes that agree on one to stop at may agree on any.
                signal = next(filter(None, map(s.stop, range(step - size + 1, step + 1))), None)
                hooks = [hook for hook in s.hooks if _due(hook.every, step, size, plan)]
                save = bool(signal) or _due(plan.checkpoint_every or plan.steps, step, size, plan)
                if hooks or save:
                    _read(pending, meter, log, s, bar)
                    pending = None
                    if save:
                        s.save(state)
                    for hook in hooks:
                        outputs = hook.call(step, fetched(state, s.places)) or {}
                        log.show(step, outputs)
                        _look(step, outputs, log, s, bar)
                    meter.pause()
        except NonFinite:
            s.save(state)
            raise
        finally:
            s.trace.close(state)
    return state, signal


def _read(
    pending: tuple[int, int, Mapping[str, jax.Array]] | None,
    meter: Meter,
    log: Log,
    s: _Session,
    bar: tqdm,
) -> None:
    """Wait for the metrics of a dispatch, count them, and write the lines that are due."""
    if pending is None:
        return
    start, size, metrics = pending
    each = {name: np.reshape(m, (size,)).tolist() for name, m in jax.device_get(metrics).items()}
    meter.tick(size)
    for i in range(size):
        step = start + i + 1
        if passed := meter.add(step, {name: values[i] for name, values in each.items()}):
            bar.write(passed, file=sys.stderr)
        for warning in s.watch.see(step, {name: values[i] for name, values in each.items()}):
            bar.write(warning, file=sys.stderr)
        if step % s.plan.log_every == 0 or step == s.plan.steps:
            means = meter.means() | s.watch.counts()
            flops = s.calls[size].flops / size
            log.line(step, {**means, **s.gauges.read(means.get("steps_per_second"), flops)})
            bar.set_postfix(loss=f"{means.get('loss', np.nan):.4g}", refresh=False)
    bar.update(size)


def _look(step: int, outputs: Mapping[str, Any], log: Log, s: _Session, bar: tqdm) -> None:
    """Watch a hook's numbers; a warning gets its own line, as the plan may end with the hook."""
    numbers = {name: float(value) for name, value in outputs.items() if np.ndim(value) == 0}
    if warnings := s.watch.see(step, numbers):
        bar.write("\n".join(warnings), file=sys.stderr)
        log.line(step, numbers | s.watch.counts())


def _due(every: int, step: int, size: int, plan: Plan) -> bool:
    """Whether a multiple of ``every`` lies in the last ``size`` steps, or the plan ends."""
    return every > 0 and (step // every > (step - size) // every or step == plan.steps)


def _progress(steps: int, start: int) -> tqdm:
    silent = jax.process_index() != 0
    return tqdm(total=steps, initial=start, unit="step", disable=silent, mininterval=0.5)


def _leave(signal: str, step: int, folder: str | os.PathLike) -> None:
    if jax.process_index() == 0:
        print(
            f"Stopped by {signal} at step {step}, which is saved; "
            f"the same command with --workdir={Path(folder)} goes on from there.",
            file=sys.stderr,
        )
    raise Stopped(EXIT_CODES[signal])
