import jax
import jax.numpy as jnp
import numpy as np
import pytest
from numpy.testing import assert_allclose
from scipy.integrate import quad

from diffusion_jax.core import power_ema
from diffusion_jax.core.ema import power
from diffusion_jax.core.power_ema import Profile, combine, exponent, inner_products, width

STEPS = 400


def trajectory(n=STEPS):
    """θ at steps 1..n [n, 3]: falling, turning, and noisy as a run is."""
    t = np.arange(1, n + 1)[:, None] / n
    noise = np.random.default_rng(0).normal(size=(n, 3))
    return np.exp(-3 * t) + np.sin(4 * t + np.arange(3)) + 0.1 * noise


def tracked(widths, theta, at):
    """The averages of ``power`` after the steps ``at``: [len(at), widths, 3], float64."""
    ema = power(widths)

    @jax.jit
    def run(theta):
        def body(state, inputs):
            state = ema.update(state, {"w": inputs[1]}, inputs[0])
            return state, jnp.stack([state[repr(w)]["w"] for w in widths])

        start = ema.init({"w": jnp.full(3, 1e6)})  # forgotten at once
        return jax.lax.scan(body, start, (jnp.arange(len(theta)), theta))[1]

    return np.asarray(run(jnp.asarray(theta, jnp.float32)), np.float64)[np.asarray(at) - 1]


def closed_form(sigma_rel, theta):
    """The integral of the profile (γ + 1)·τ^γ/n^(γ + 1) over θ, constant between steps."""
    n, gamma = len(theta), exponent(sigma_rel)
    edges = (np.arange(n + 1) / n) ** (gamma + 1)
    return np.diff(edges) @ theta


@pytest.mark.parametrize(("sigma_rel", "gamma"), [(0.05, 16.97), (0.1, 6.94), (0.2887, None)])
def test_the_exponents_are_those_of_the_paper(sigma_rel, gamma):
    if gamma is None:  # γ = 0 is the uniform density on (0, t), whose deviation is t/sqrt(12)
        assert exponent(power_ema.WIDEST) == pytest.approx(0, abs=1e-9)
        return
    assert exponent(sigma_rel) == pytest.approx(gamma, abs=0.005)


@pytest.mark.parametrize("sigma_rel", [0.005, 0.03, 0.1, 0.2, 0.28])
def test_the_width_is_the_deviation_of_the_profile(sigma_rel):
    gamma = exponent(sigma_rel)
    density = lambda u: (gamma + 1) * u**gamma
    mean = quad(lambda u: u * density(u), 0, 1)[0]
    spread = quad(lambda u: (u - mean) ** 2 * density(u), 0, 1)[0] ** 0.5
    assert_allclose([spread, width(gamma)], sigma_rel, rtol=1e-6)


def test_inner_products_are_the_integrals():
    profiles = [Profile(3, 0.05), Profile(5, 0.1), Profile(5, 0.25), Profile(9, 0.08)]

    def density(profile, u):
        gamma = exponent(profile.sigma_rel)
        return (gamma + 1) * u**gamma / profile.step ** (gamma + 1)

    wanted = [
        [quad(lambda u: density(p, u) * density(q, u), 0, min(p.step, q.step))[0] for q in profiles]  # noqa: B023
        for p in profiles
    ]
    assert_allclose(inner_products(profiles, profiles), wanted, rtol=1e-7)
    assert_allclose(inner_products(profiles[:1], profiles[1:]), [wanted[0][1:]], rtol=1e-7)


def test_the_average_is_the_weighted_sum_of_its_profile():
    theta, widths = trajectory(), (0.05, 0.1, 0.25)
    got = tracked(widths, theta, [STEPS // 4, STEPS])
    for n, row in zip((STEPS // 4, STEPS), got, strict=True):
        for sigma_rel, average in zip(widths, row, strict=True):
            assert_allclose(average, closed_form(sigma_rel, theta[:n]), rtol=2e-5, atol=2e-5)


@pytest.mark.parametrize(
    ("sigma_rel", "end"),
    [(0.1, STEPS), (0.05, STEPS), (0.07, STEPS), (0.13, STEPS), (0.08, 3 * STEPS // 4)],
)
def test_a_width_made_of_others_is_the_width_tracked(sigma_rel, end):
    theta, at = trajectory(), np.arange(10, STEPS + 1, 10)
    stored_widths = (0.06, 0.15) if sigma_rel in (0.05, 0.1) else (0.05, 0.1)
    stored = [Profile(int(t), w) for t in at for w in stored_widths]
    averages = tracked(stored_widths, theta, at).reshape(-1, 3)
    weights, error = combine(stored, Profile(end, sigma_rel))
    assert weights.sum() == pytest.approx(1, abs=1e-12)
    assert error < 5e-3
    wanted = tracked((sigma_rel,), theta, [end])[0, 0]
    assert np.linalg.norm(weights @ averages - wanted) < 3e-3 * np.linalg.norm(wanted)
    # It is not merely near to any average of such a trajectory.
    other = tracked((sigma_rel * 1.3,), theta, [end])[0, 0]
    assert np.linalg.norm(weights @ averages - other) > 1e-2 * np.linalg.norm(wanted)


def test_a_stored_average_is_itself():
    stored = [Profile(t, w) for t in (100, 200, 300) for w in (0.05, 0.1)]
    weights, error = combine(stored, Profile(200, 0.1))
    assert_allclose(weights, [0, 0, 0, 1, 0, 0], atol=1e-9)
    assert error < 1e-6


def test_the_error_is_the_distance_of_the_profiles():
    stored, wanted = [Profile(50, 0.05), Profile(100, 0.1)], Profile(100, 0.2)
    weights, error = combine(stored, wanted)

    def density(profile, u):
        gamma = exponent(profile.sigma_rel)
        inside = np.maximum(1 - (u > profile.step), 0)
        return inside * (gamma + 1) * u**gamma / profile.step ** (gamma + 1)

    u = (np.arange(200_000) + 0.5) / 2000
    made = sum(w * density(p, u) for w, p in zip(weights, stored, strict=True))
    target = density(wanted, u)
    distance = np.linalg.norm(made - target) / np.linalg.norm(target)
    assert error == pytest.approx(distance, rel=1e-4)
    # No other combination of sum 1 is nearer.
    for shift in (0.01, -0.01):
        moved = (weights[0] + shift) * density(stored[0], u) + (weights[1] - shift) * density(
            stored[1], u
        )
        assert np.linalg.norm(moved - target) > np.linalg.norm(made - target)


def test_a_crowd_of_snapshots_is_solved_without_huge_weights():
    """Their inner products are singular to rounding; float32 averages bear no large weights."""
    stored = [Profile(t, w) for t in range(1000, 1200) for w in (0.05, 0.1)]
    weights, error = combine(stored, Profile(1199, 0.07))
    assert weights.sum() == pytest.approx(1, abs=1e-9)
    assert np.abs(weights).sum() < 100 and error < 0.05


def test_a_step_before_the_first_snapshot_is_refused():
    with pytest.raises(ValueError, match=r"no snapshot is of step 5 or before; .* \[10, 20\]"):
        combine([Profile(20, 0.1), Profile(10, 0.1)], Profile(5, 0.1))


@pytest.mark.parametrize("sigma_rel", [0.0, -0.1, 0.29, float("nan")])
def test_impossible_widths_are_refused(sigma_rel):
    with pytest.raises(ValueError, match="sigma_rel = "):
        exponent(sigma_rel)
