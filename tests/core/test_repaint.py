"""RePaint, held to the exact law of its samples: Gaussian data, half of each row known."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from numpy.testing import assert_allclose

from diffusion_jax.core import exact_moments, grids, guidance, oracles, sampling, schedules
from diffusion_jax.core.process import PATHS, Process
from diffusion_jax.core.solvers.ddim import ddim
from diffusion_jax.core.solvers.dpm import dpmpp_2m
from diffusion_jax.core.solvers.noising import renoise
from diffusion_jax.core.solvers.repaint import repaint, repaint_on_grid
from diffusion_jax.core.types import Solver

# A stationary row of 16 numbers, correlation 0.95 between neighbours, whose left half is known.
D = 16
COVARIANCE = 0.95 ** np.abs(np.subtract.outer(np.arange(D), np.arange(D)))
Y = np.linspace(1.5, -1, 8)
KNOWN, REST = slice(0, 8), slice(8, D)
GAIN = COVARIANCE[REST, KNOWN] @ np.linalg.inv(COVARIANCE[KNOWN, KNOWN])
MEAN, SPREAD = GAIN @ Y, COVARIANCE[REST, REST] - GAIN @ COVARIANCE[KNOWN, REST]


def _process(schedule=None, path="vp"):
    return Process(schedule or schedules.cosine(), PATHS[path])


def _levels(n=100):
    """Equal steps of log-SNR from -10 to 8."""
    return jax.jit(lambda: _process().at_log_snr(jnp.linspace(-10.0, 8.0, n)))()


def _prior(x, level, end=None):
    del end
    return oracles.predict(oracles.mixture([1.0], [np.zeros(D)], [COVARIANCE]), x, level)


def _projected():
    repainted = jnp.arange(D) >= 8
    x0 = jnp.concatenate([jnp.asarray(Y), jnp.full(8, 99.0)])
    return guidance.projected(_prior, guidance.known(repainted, x0))


def _matched(x, level):
    y = jnp.broadcast_to(jnp.asarray(Y), (len(x), 8))
    return guidance.moment_matching(_prior, lambda x0: x0[:, :8], y, 0.0, 12)(x, level)


def _law(solver, denoise, levels):
    """(KL to the exact conditional in nats, the mean of the first unknown number)."""
    start = exact_moments.sigma_points(jnp.zeros(D), jnp.eye(D))
    run = jax.jit(lambda x: sampling.sample(jax.random.key(0), solver, denoise, x, levels))
    mean, covariance = exact_moments.moments(run(start))
    law = mean[REST], covariance[REST, REST]
    return exact_moments.gaussian_kl(*law, MEAN, SPREAD), float(mean[8])


def _ancestral():
    return ddim(1.0, exact_moments.orthogonal_noise)


def _again(*args):
    return repaint_on_grid(_ancestral(), *args, noise=exact_moments.orthogonal_noise)


def test_the_ladder_from_the_exact_conditional_to_projection_alone(x64):
    """What is known is there in all of them; what is drawn beside it is as far off as this."""
    levels = _levels()
    assert_allclose(MEAN[0], -0.95)
    ladder = {
        "exact conditional score": (_law(ddim(), _matched, levels), 0.0053, -0.946),
        "projected": (_law(ddim(), _projected(), levels), 3.011, -0.293),
        "projected, ancestral": (_law(_ancestral(), _projected(), levels), 1.774, -0.439),
        "10 of each step": (_law(_again(10), _projected(), levels), 0.187, -0.823),
        "28, where it counts": (_law(_again(28, 0.0, 6.0), _projected(), levels), 0.061, -0.882),
        "10 of 5 steps": (_law(_again(10, 2.0, 6.0, 5), _projected(), levels), 0.044, -0.892),
    }
    for name, ((divergence, border), wanted, at) in ladder.items():
        assert_allclose(divergence, wanted, rtol=0.02, err_msg=name)
        assert_allclose(border, at, atol=1e-3, err_msg=name)


@pytest.mark.parametrize(
    ("schedule", "path", "grid"),
    [
        (schedules.cosine, "vp", grids.trailing),
        (schedules.rectified_flow, "rectified", grids.trailing),
        (schedules.cosine, "ve", grids.karras),
    ],
)
def test_repeats_do_as_much_on_any_grid(x64, schedule, path, grid):
    """550 network calls: 50 levels and the default 500 repeats, by two solvers."""
    process = _process(schedule(), path)
    levels = jax.jit(lambda: grid(process, 50))()
    start = jnp.where(path == "ve", levels.sigma[0], 1.0)
    for solver in (ddim(), dpmpp_2m()):
        plain = lambda x, s=solver: sampling.sample(
            jax.random.key(0),
            repaint(s, process, noise=exact_moments.orthogonal_noise),
            _projected(),
            x,
            levels,
        )
        x = exact_moments.sigma_points(jnp.zeros(D), start**2 * jnp.eye(D))
        mean, covariance = exact_moments.moments(jax.jit(plain)(x))
        law = mean[REST], covariance[REST, REST]
        assert 0.05 < exact_moments.gaussian_kl(*law, MEAN, SPREAD) < 0.1


def test_more_repeats_are_nearer_in_one_program(x64):
    levels, process = _levels(50), _process()
    x = exact_moments.sigma_points(jnp.zeros(D), jnp.eye(D))

    @jax.jit
    def run(repeats):
        solver = repaint(ddim(), process, repeats, noise=exact_moments.orthogonal_noise)
        return exact_moments.moments(
            sampling.sample(jax.random.key(0), solver, _projected(), x, levels)
        )

    laws = [run(repeats) for repeats in (0, 100, 200, 500)]
    apart = [exact_moments.gaussian_kl(m[REST], c[REST, REST], MEAN, SPREAD) for m, c in laws]
    assert_allclose(apart, [3.05, 0.446, 0.209, 0.079], rtol=0.05)
    assert run._cache_size() == 1


def _counting():
    """x counts the steps since the start, the state those since its own."""
    return Solver(
        lambda x: jnp.zeros((), jnp.int32),
        lambda key, denoise, x, now, nxt, state: (x + 1, state + 1),
    )


def _count(solver, log_snr):
    """Steps taken and what is remembered; alpha = 1 and no noise, so that going up leaves x."""
    levels = _process(path="ve").at_log_snr(jnp.asarray(log_snr))
    walk = lambda x: sampling.walk(jax.random.key(0), solver, _prior, x, levels)
    x, state = jax.jit(walk)(jnp.zeros((1, 1)))
    return int(x[0, 0]), state


def _silent(key, x, now, nxt):
    return jnp.zeros_like(x)


def test_the_price_is_what_is_said_and_memory_ends_where_x_goes_up():
    process = _process(path="ve")
    fine = np.linspace(-9.0, 9.0, 37)
    for grid, first in ((fine, 36), (fine[::4], 9), (np.array([-9.0, 9.0]), 1), (fine[20:], 16)):
        steps, state = _count(repaint(_counting(), process, 70, -1.0, 4.5, noise=_silent), grid)
        assert steps == first + (70 if grid[0] < 0 else round(70 * 3.5 / 5.5))
    assert int(state) == 9 + 1  # levels from 5.0 to 9.0, after the one whose last repeat began anew
    levels_within = np.sum((fine >= -1) & (fine <= 4.5))
    for back in (1, 3):
        solver = repaint_on_grid(_counting(), 4, -1.0, 4.5, back, _silent)
        steps, state = _count(solver, fine)
        assert steps == 36 + levels_within * 3 * back
        assert int(state.inner) == 9 + back
    # As many levels as it goes back must have been seen, and a step upwards is not repeated.
    steps, _ = _count(repaint_on_grid(_counting(), 2, back=3, noise=_silent), [0.0, 1, 2, 3, 1, 5])
    assert steps == 5 + 3 * 2
    with pytest.raises(ValueError, match="back=0"):
        repaint_on_grid(_counting(), back=0)


def test_without_repeats_it_is_the_solver_bit_for_bit():
    """Bit for bit where XLA fuses both programs alike, as that of JAX 0.10 does."""
    most = 0.0 if jax.__version_info__ < (0, 11) else 1e-6
    same = lambda a, b: np.abs(a - b).max() <= most
    levels, key = _levels(9), jax.random.key(5)
    x = jax.random.normal(jax.random.key(1), (3, 2, 4, 2))
    process = _process()

    def denoise(x, level):
        flat = _prior(x.reshape(3, D), level)
        return jax.tree.map(lambda leaf: leaf.reshape(x.shape), flat)

    draw = lambda solver: jax.jit(lambda x: sampling.sample(key, solver, denoise, x, levels))(x)
    for inner in (ddim(0.6), dpmpp_2m()):
        plain = draw(inner)
        assert same(draw(repaint(inner, process, 0)), plain)
        assert same(draw(repaint_on_grid(inner, 1, back=2)), plain)
        assert np.abs(draw(repaint(inner, process, 3)) - plain).max() > 0.01


def test_levels_of_their_own_are_refused_in_a_sentence():
    levels = _process().at_log_snr(jnp.linspace(-4.0, 4.0, 6).reshape(3, 1, 2))
    x = jnp.zeros((1, 2, 8))
    for name, solver in (("repaint", repaint(ddim(), _process())), ("on_grid", _again(2))):
        with pytest.raises(ValueError, match=f"{name} needs one level for the whole batch"):
            sampling.walk(jax.random.key(0), solver, _prior, x, levels)


def test_sigma_points_follow_affine_maps_and_noise_exactly(x64):
    """N(m, S) -> N(r·m, r²·S + v·I) by going up, exactly; and the divergence is the textbook's."""
    mean, root = (
        np.array([0.3, -1.0, 2.0]),
        np.array([[1.0, 0, 0], [0.5, 0.7, 0], [-0.2, 0.1, 0.4]]),
    )
    points = exact_moments.sigma_points(jnp.asarray(mean), jnp.asarray(root @ root.T))
    now, nxt = (_process(path="subvp").at_log_snr(lam) for lam in (1.0, -0.5))
    ratio = nxt.alpha / now.alpha
    variance = nxt.sigma**2 - (ratio * now.sigma) ** 2
    up = renoise(jax.random.key(0), points, now, nxt, exact_moments.orthogonal_noise)
    got_mean, got = exact_moments.moments(up)
    assert_allclose(got_mean, ratio * mean, rtol=1e-12)
    assert_allclose(got, ratio**2 * root @ root.T + variance * np.eye(3), rtol=1e-12)
    kl = exact_moments.gaussian_kl([1.0], [[4.0]], [-0.5], [[9.0]])
    assert_allclose(kl, np.log(3 / 2) + (4 + 1.5**2) / 18 - 0.5)
    with pytest.raises(ValueError, match="2d \\+ 1 = 7 points of sigma_points, got 5"):
        exact_moments.orthogonal_noise(jax.random.key(0), jnp.zeros((5, 3)), now, nxt)
