"""What multistep solvers remember: orders, quadrature, polynomials, and the φ functions."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from numpy.testing import assert_allclose

from diffusion_jax.core.process import Process, vp
from diffusion_jax.core.schedules import cosine
from diffusion_jax.core.solvers import SOLVERS
from diffusion_jax.core.solvers.er_sde import SCALES, _factors
from diffusion_jax.core.solvers.history import allowed_order, empty, integrate, lagrange, push
from diffusion_jax.core.solvers.multistep import CONSTANT
from diffusion_jax.core.solvers.steps import phis
from diffusion_jax.core.targets import from_x0


def _at(log_snr):
    return Process(cosine(), vp).at_log_snr(jnp.asarray(log_snr))


def test_the_order_grows_with_what_was_seen_and_falls_towards_the_end():
    history, x = empty(jnp.zeros((1, 1)), 3), jnp.ones((1, 1))
    orders, lowered = [], []
    for i in range(7):  # seven levels: six steps, and the last one to x0
        history = push(history, x, _at(float(i)))
        orders.append(int(allowed_order(history, 3, _at(i + 1.0))))
        lowered.append(int(allowed_order(history, 3, _at(i + 1.0), 7)))
    assert orders == [1, 2, 3, 3, 3, 3, 3]
    assert lowered == [1, 2, 3, 3, 3, 2, 1]


def test_values_from_before_a_turn_do_not_count():
    history, x = empty(jnp.zeros((1, 1)), 3), jnp.ones((1, 1))
    for log_snr in (0.0, 1.0, 2.0):
        history = push(history, x, _at(log_snr))
    assert int(allowed_order(history, 3, _at(3.0))) == 3
    assert int(allowed_order(history, 3, _at(1.0))) == 1  # turns round here
    history = push(history, x, _at(1.0))
    assert int(allowed_order(history, 3, _at(0.5))) == 2
    assert int(allowed_order(history, 3, _at(1.5))) == 1


def test_lagrange_polynomials_are_one_at_their_node_and_reproduce_parabolas(x64):
    nodes, at = jnp.array([2.0, 0.5, -1.0]), jnp.linspace(-2.0, 3.0, 7)
    assert_allclose(lagrange(nodes, jnp.asarray(3), nodes), np.eye(3), atol=1e-12)
    f = lambda u: 1 + 2 * u - 3 * u**2
    assert_allclose(f(nodes) @ lagrange(nodes, jnp.asarray(3), at), f(at), atol=1e-10)
    line = lagrange(nodes, jnp.asarray(2), at)
    assert_allclose(line[2], 0)
    assert_allclose((5 * nodes - 1) @ line, 5 * at - 1, atol=1e-10)


def test_quadrature_is_exact_for_exponentials(x64):
    got = integrate(lambda u: u**3 * jnp.exp(u), jnp.asarray(-1.0), jnp.asarray(2.5))
    primitive = lambda u: np.exp(u) * (u**3 - 3 * u**2 + 6 * u - 6)
    assert_allclose(got, primitive(2.5) - primitive(-1.0), rtol=1e-12)


def test_constant_step_factors_are_those_of_adams_and_bashforth():
    """Σ_j c_j (-j)^k = 1/(k + 1): they integrate monomials over the next step exactly."""
    for order, row in enumerate(CONSTANT, 1):
        back = -np.arange(4.0)
        for k in range(order):
            assert_allclose(np.sum(row * back**k), 1 / (k + 1), atol=1e-12)


@pytest.mark.parametrize("z", [-6.0, -0.6, -0.4, -1e-3, 0.0, 1e-3, 0.4, 0.6, 6.0])
def test_phis_are_their_integrals(x64, z):
    """φ_k(z) = ∫_0^1 e^{(1 - u) z} u^{k-1}/(k-1)! du, on both sides of the switch to series."""
    for k, phi in enumerate(phis(jnp.asarray(z)), 1):
        exact = integrate(
            lambda u, k=k: jnp.exp((1 - u) * z) * u ** (k - 1) / [1, 1, 2][k - 1],
            jnp.asarray(0.0), jnp.asarray(1.0),
        )  # fmt: skip
        assert_allclose(phi, exact, rtol=1e-10)


def test_er_sde_factors_integrate_parabolas_in_sigma(x64):
    """Three values of a parabola in s give slope and curvature as the paper takes them."""
    excess = SCALES["er_sde_5"]
    seen = [_at(x) for x in (0.4, 0.1, -0.3)]
    levels = jax.tree.map(lambda *leaves: jnp.stack(leaves), *seen)
    nxt = _at(0.9)
    start, end = -levels.log_snr[0] / 2, -nxt.log_snr / 2
    s, here, there = np.exp(-np.asarray(levels.log_snr) / 2), np.exp(start), np.exp(end)
    phi = lambda u: u * np.exp(np.asarray(excess(jnp.log(u))))
    kernel = lambda f: integrate(
        lambda u: f(u) / phi(u) * phi(there), jnp.asarray(there), jnp.asarray(here), 40
    )
    slope = (there - here) + kernel(np.ones_like)
    curve = (there - here) ** 2 / 2 + kernel(lambda u: u - here)
    values = 0.7 - 1.3 * s + 0.9 * s**2
    d01, d12 = -np.diff(values) / -np.diff(s)
    exact = nxt.alpha * (slope * d01 + curve * 2 * (d01 - d12) / (s[0] - s[2]))
    factors = _factors(excess, levels, start, end, nxt, jnp.asarray(3))
    assert_allclose(np.sum(np.asarray(factors) * (values - values[0])), exact, rtol=1e-8)


MEMORIES = [
    ("dpmpp_2m", {}), ("dpmpp_3m", {}), ("dpm_multistep", {"order": 3}), ("unipc", {"order": 2}),
    ("unipc", {"order": 3}), ("deis", {"order": 3, "variable": "log_rho"}), ("lms", {}),
    ("exponential_adams", {}), ("ipndm", {}), ("sa_solver", {"order": 3, "tau": 0.0}),
    ("er_sde", {"order": 2, "scale": "ode"}), ("er_sde", {"order": 3, "scale": "ode"}),
]  # fmt: skip


def test_multistep_methods_start_at_orders_one_and_two(x64):
    """Room for values that were not seen yet changes nothing: zeros in it are no values."""
    process, x = Process(cosine(), vp), jnp.array([[0.7, -0.4]])
    a, b, c = (process.at_log_snr(lam) for lam in (-2.0, 0.3, 1.1))
    wave = lambda x, level: from_x0(jnp.tanh(x) + 3.0, x, level)

    def two_steps(name, given):
        given = {"process": process, **given} if name == "deis" else given
        solver = SOLVERS[name](**given)
        first, state = solver.step(jax.random.key(0), wave, x, a, b, solver.init(x))
        return first, solver.step(jax.random.key(1), wave, first, b, c, state)[0]

    ends = {f"{name} {given}": two_steps(name, given) for name, given in MEMORIES}
    start = SOLVERS["ddim"]().step(jax.random.key(0), wave, x, a, b, ())[0]
    for name, (first, _) in ends.items():
        assert_allclose(first, start, rtol=1e-9, err_msg=name)
    keys = list(ends)
    assert_allclose(ends[keys[3]][1], ends[keys[4]][1], rtol=1e-9)  # UniPC 2 and 3
    assert_allclose(ends[keys[10]][1], ends[keys[11]][1], rtol=1e-9)  # ER-SDE 2 and 3
    # UniPC by hand: Euler, corrected by half of B(h) = e^h - 1, then the second order.
    value = lambda x, level: wave(x, level).x0
    step = lambda x, x0, now, nxt: nxt.alpha * x0 + nxt.sigma / now.sigma * (x - now.alpha * x0)
    half = lambda now, nxt: nxt.alpha * -np.expm1((now.log_snr - nxt.log_snr) / 2) / 2
    d0, d1 = value(x, a), value(start, b)
    corrected = start + half(a, b) * (d1 - d0)
    gaps = [(to.log_snr - at.log_snr) / 2 for at, to in ((a, b), (b, c))]
    wanted = step(corrected, d1, b, c) + half(b, c) * (d1 - d0) * gaps[1] / gaps[0]
    assert_allclose(ends[keys[3]][1], wanted, rtol=1e-9)


@pytest.mark.parametrize(
    ("name", "given"),
    [
        ("dpmpp_2m", {}), ("dpmpp_3m", {}), ("dpm_multistep", {}), ("lms", {}),
        ("exponential_adams", {}), ("er_sde", {"scale": "ode"}), ("unipc", {}),
        ("dpmpp_2m_sde", {"eta": 0.0}), ("dpmpp_3m_sde", {"eta": 0.0}),
        ("sa_solver", {"tau": 0.0, "corrector_order": 0}),
    ],
)  # fmt: skip
def test_the_last_steps_of_a_grid_are_of_lower_order_if_asked(x64, name, given):
    """Of two levels the second step, from the last to the clean one, would be the first order's."""
    process, x = Process(cosine(), vp), jnp.array([[0.7, -0.4]])
    levels = [process.at_log_snr(lam) for lam in (-2.0, 0.3, 1.1)]
    wave = lambda x, level: from_x0(jnp.tanh(x) + 3.0, x, level)

    def second(lower):
        solver = SOLVERS[name](**given, lower_order_final=lower)
        key = jax.random.key(0)
        first, state = solver.step(key, wave, x, *levels[:2], solver.init(x))
        return first, *solver.step(key, wave, first, *levels[1:], state)

    first, moved, state = second(2)
    start = state.x if name == "unipc" else first  # corrected, which is no matter of the order
    x0 = wave(first, levels[1]).x0
    ratio = levels[2].sigma / levels[1].sigma
    wanted = levels[2].alpha * x0 + ratio * (start - levels[1].alpha * x0)
    assert_allclose(moved, wanted, rtol=1e-9)
    assert np.abs(second(None)[1] - wanted).max() > 1e-3
    assert_allclose(second(9)[1], second(None)[1], rtol=1e-12)
