"""One uninterrupted run, which the others are held against."""

from typing import Any, NamedTuple

import jax
import pytest
import tiny

from diffusion_jax.train.loop import Hook


class Reference(NamedTuple):
    workdir: Any
    state: Any
    hooked: list


@pytest.fixture(scope="package", autouse=True)
def compiled_once(tmp_path_factory):
    """Runs of the same shapes share their programs, also with the processes that tests start."""
    own = {
        "jax_compilation_cache_dir": str(tmp_path_factory.mktemp("compiled")),
        "jax_persistent_cache_min_compile_time_secs": 0.0,
    }
    before = {name: getattr(jax.config, name) for name in own}
    for name, value in own.items():
        jax.config.update(name, value)
    yield
    for name, value in before.items():
        jax.config.update(name, value)


@pytest.fixture(scope="session")
def reference(tmp_path_factory):
    """40 steps at once, a checkpoint every 10, all kept."""
    workdir = tmp_path_factory.mktemp("reference")
    hooked = []

    def look(step, state):
        hooked.append((step, int(state.step)))
        return {"grid": tiny.np.zeros((4, 6, 3), tiny.np.uint8), "score": 0.5}

    state = tiny.run(workdir, 40, keep=9, hooks=[Hook(15, look)])
    return Reference(workdir, state, hooked)


@pytest.fixture(autouse=True, scope="module")
def compiled_fast():
    """Not here: runs are compared bit by bit with those of other processes."""
