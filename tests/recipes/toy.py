"""What the tests of few-step recipes share: exact networks, and points in the plane to learn."""

import functools

import jax
import jax.numpy as jnp
import numpy as np
import optax

from diffusion_jax.core import ema as averages
from diffusion_jax.core import flow_maps, network_io, oracles, process, sampling, schedules, targets
from diffusion_jax.core.process import Process
from diffusion_jax.core.solvers import SOLVERS
from diffusion_jax.core.types import Context, Model
from diffusion_jax.evaluate.distances import sliced_wasserstein
from diffusion_jax.models.adapter import net_from_module
from diffusion_jax.models.autoencoders.codec import IDENTITY
from diffusion_jax.models.mlp import MLP
from diffusion_jax.train import optimizer
from diffusion_jax.train.state import new_state
from diffusion_jax.train.step import make_step


def model_of(net, process, target, time_in=None, scale_in=None, labels=False):
    """A Model of points, conditioned on their label if asked."""
    return Model(
        net=net,
        process=process,
        target=target,
        scale_in=scale_in or (lambda level: jnp.ones_like(level.alpha)),
        time_in=time_in or (lambda level: level.log_snr),
        codec=IDENTITY,
        condition=lambda frozen, batch: {"label": batch["label"]} if labels else {},
        null=lambda frozen, cond: jax.tree.map(lambda leaf: jnp.full_like(leaf, 99), cond),
    )


def oracle_net(process, target, truth, bump=lambda x: jnp.cos(2 * x)):
    """(params, ...) -> the output for ``truth`` (x, level, cond), and params["net"] away from it.

    In float64, the level by its λ, which must be the model's ``time_in``.
    """

    def net(params, x, time, cond, key=None):
        level = process.at_log_snr(time)
        prediction = truth(x, level, cond)
        return targets.express(target, *prediction[:2], level) + params["net"] * bump(x)

    return net


def context(step=0, ema=None, frozen=None, carry=()):
    return Context(jnp.asarray(step, jnp.int32), ema or {}, frozen or {}, carry)


def assert_truth_is_the_minimum(loss, fixed=1e-20, slope=1e-9):
    """loss(theta): 0 with slope 0 at theta = 0, and downhill towards it from either side."""
    value = jax.jit(jax.value_and_grad(loss))
    at_truth, gradient = value(jnp.float64(0.0))
    assert abs(at_truth) < fixed and abs(gradient) < slope, (at_truth, gradient)
    for theta in (-0.1, 0.1):
        away, gradient = value(jnp.float64(theta))
        assert away > 1e-5 and gradient * theta > 1e-4, (theta, away, gradient)


def gaussian():
    """One Gaussian, of correlated axes: its flow between any two levels has a closed form."""
    return oracles.mixture([1.0], [[0.4, -0.2]], [[[0.3, 0.1], [0.1, 0.2]]])


def gaussian_teacher(frozen, cond):
    """The exact Teacher."""
    return lambda x, level: oracles.predict(gaussian(), x, level)


def two_time_truth(process):
    """(x, now, cond) -> the Gaussian's exact jump to the end in cond, given by its λ."""

    def truth(x, now, cond):
        return oracles.average(gaussian(), x, now, process.at_log_snr(cond[flow_maps.END]))

    return truth


def rectified(path="rectified"):
    return Process(schedules.rectified_flow(), process.PATHS[path])


def two_time_model(path="rectified", target="flow", bump=jnp.ones_like, truth=None):
    """The Gaussian's exact two-time network, and theta·bump away from it."""
    here, row = rectified(path), targets.TARGETS[target]()
    return model_of(oracle_net(here, row, truth or two_time_truth(here), bump), here, row)


DATA = ([1, 2, 2, 1], [[0.6, 0.2], [-0.2, 0.6], [-0.6, -0.3], [0.3, -0.6]])


def data():
    """Four blobs of unequal weight, standard deviation about 0.5 in all."""
    return oracles.mixture(*DATA, [0.01] * 4)


def edm_model(net, process):
    """EDM's preconditioning of points."""
    return model_of(
        net, process, targets.edm(0.5), network_io.edm_noise(), network_io.edm_scale(0.5)
    )


def v_model(net, process):
    return model_of(net, process, targets.v(), network_io.log_snr(10.0), network_io.unit())


def flow_model(net):
    """Flow matching of points, conditioned on t and, for jumps, on the end."""
    return model_of(net, rectified(), targets.flow(), network_io.continuous(10.0))


def mlp_module(scalars=()):
    return MLP(width=48, depth=2, scalars=scalars)


def mlp(scalars=()):
    module = mlp_module(scalars)
    init = lambda key, x, cond: module.init(key, x, jnp.zeros(x.shape[:1]), cond)["params"]
    inner = net_from_module(module)
    net = lambda params, x, time, cond, *, key=None: inner(params["net"], x, time, cond, key=key)
    return net, init


def _tx(rate, groups):
    falling = lambda factor, every: optax.adam(
        optax.linear_schedule(factor * rate, 0.1 * factor * rate, 1500 // every)
    )
    return optimizer.grouped(falling, groups) if groups else falling(1.0, 1)


@functools.partial(jax.jit, static_argnums=(0, 1, 2, 3, 7))
def _run(recipe, ema, rate, batch, steps, state, frozen, groups=()):
    # ``steps`` is traced: one program for any number of them.
    step = make_step(recipe, _tx(rate, groups), ema, seed=1)

    def body(i, carry):
        state, _ = carry
        x = oracles.sample(jax.random.fold_in(jax.random.key(5), state.step), data(), batch)
        state, metrics = step(state, frozen, {"image": x})
        return state, metrics["loss"]

    return jax.lax.fori_loop(0, steps, body, (state, jnp.float32(0)))


def start(recipe, ema, rate=2e-3, groups=()):
    batch = {"image": jnp.zeros((2, 2))}
    return new_state(recipe, _tx(rate, groups), ema, jax.random.key(0), batch)


_EMA = averages.warmup(0.98)


def train(recipe, steps, frozen=None, ema=_EMA, start_from=None, rate=2e-3, batch=128, groups=()):
    """Averaged parameters after so many steps; start_from gives the initial {"net": ...}."""
    state = start(recipe, ema, rate, groups)
    if start_from is not None:
        params = {**state.params, **start_from}
        state = state._replace(params=params, ema=ema.init(params))
    state, _ = _run(recipe, ema, rate, batch, steps, state, frozen or {}, groups)
    assert bool(state.finite)
    return ema.params(state.ema)


def distance(points, n=4096):
    """Sliced Wasserstein-1 distance of points [n, 2] to fresh data."""
    truth = np.asarray(oracles.sample(jax.random.key(77), data(), n))
    return sliced_wasserstein(np.asarray(points), truth)


def distances_in(model, params, *jumps, gamma=0.0):
    """``distance`` of a student of two times for each list of times, which are of one length.

    A last time of 0 is a jump less: there the student is the identity, if its target says so.
    """
    student = flow_maps.condition(flow_maps.jumper(model, params), {})
    solver = SOLVERS["jump"](model.process, gamma)

    @jax.jit
    def run(times):
        return jax.lax.map(lambda t: draw(student, solver, model.process.at(t)), times)

    return [distance(points) for points in run(jnp.array(jumps))]


def distance_of_the_mean():
    """``distance`` of one step of DDIM from pure noise, which ends at the mean for all x."""
    return distance(jnp.broadcast_to(oracles.moments(data())[0], (4096, 2)))


def draw(denoise, solver, levels, n=4096):
    """n points of a Denoise, or a Jump."""

    @jax.jit
    def run(key):
        x_key, solver_key = jax.random.split(key)
        x = sampling.prior(x_key, (n, 2), levels)
        return sampling.sample(solver_key, solver, denoise, x, levels)

    return run(jax.random.key(9))


def process_of(schedule, path):
    return Process(schedule, path)
