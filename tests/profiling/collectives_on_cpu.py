"""As a script: each collective once, and one in a loop of five, compiled for eight CPU devices."""

import jax

jax.config.update("jax_platforms", "cpu")
jax.config.update("jax_num_cpu_devices", 8)

import jax.numpy as jnp  # noqa: E402
from jax.sharding import AxisType, NamedSharding  # noqa: E402
from jax.sharding import PartitionSpec as P  # noqa: E402

LOCAL = 64  # float32 on each device
BOTH = P(("a", "b"))
AROUND = [(0, 1), (1, 2), (2, 3), (3, 0)]


def each(x):
    summed, _ = jax.lax.scan(lambda c, _: (c + jax.lax.psum(c, "a"), None), x, None, length=5)
    return (
        summed,
        jax.lax.all_gather(x, "b", tiled=True),
        jax.lax.psum_scatter(x, "a", tiled=True),
        jax.lax.ppermute(x, "a", AROUND),
        jax.lax.all_to_all(x.reshape(4, -1), "a", 0, 0),
    )


def until(x):
    """A loop whose length depends on the data."""
    return jax.lax.while_loop(lambda c: c[0] < 9, lambda c: c + jax.lax.psum(c, "b"), x)


def program(f, out):
    mesh = jax.make_mesh((4, 2), ("a", "b"), axis_types=(AxisType.Auto,) * 2)
    whole = jax.jit(jax.shard_map(f, mesh=mesh, in_specs=BOTH, out_specs=out, check_vma=False))
    x = jax.ShapeDtypeStruct((8 * LOCAL,), jnp.float32, sharding=NamedSharding(mesh, BOTH))
    return whole.lower(x).compile().as_text()


if __name__ == "__main__":
    print(program(each, (BOTH,) * 5))
    print("=====")
    print(program(until, BOTH))
