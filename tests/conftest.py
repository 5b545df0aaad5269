"""Shared by every test: shapes and dtypes of the maths are checked while tests run."""

from jaxtyping import install_import_hook

# Before anything imports the maths: its jaxtyping annotations become run-time checks.
install_import_hook("diffusion_jax.core", "beartype.beartype")

import jax  # noqa: E402
import pytest  # noqa: E402


@pytest.fixture
def x64():
    """float64 within the test: build schedules and mixtures inside of it."""
    with jax.enable_x64(True):
        yield


@pytest.fixture(autouse=True, scope="module")
def compiled_fast(request):
    """Most of a test's time is the compiler's: it tries less, but where ``optimized`` is marked."""
    name = "jax_disable_most_optimizations"
    before = jax.config.values[name]
    jax.config.update(name, before or request.node.get_closest_marker("optimized") is None)
    yield
    jax.config.update(name, before)
