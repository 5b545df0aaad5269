"""As a script with eight devices: a small U-Net trained on meshes of every shape, as JSON.

Each line is a mesh: the loss of two steps, the largest difference of a parameter from the single
device's, and what the compiled step holds and sends.
"""

import functools
import json
import sys

import jax
import jax.numpy as jnp
import numpy as np

from configs import mnist
from diffusion_jax.build import experiment as experiments
from diffusion_jax.build import training
from diffusion_jax.profiling import collectives
from diffusion_jax.train import sharding
from diffusion_jax.train.abstract import abstract_step
from diffusion_jax.train.state import QUICK, init_state

BATCH = 16


def config():
    made = mnist.get_config()
    made.data.image_size = (8, 8)
    made.model.unet.channels = 32
    made.model.unet.channel_mults = (1, 2)
    made.model.unet.attention_levels = (1,)
    made.train.batch_size, made.train.steps = BATCH, 2
    return made


def batches():
    draw = np.random.default_rng(0)
    for _ in range(2):
        image = draw.normal(size=(BATCH, 8, 8, 1)).astype(np.float32)
        yield {"image": image, "label": draw.integers(0, 10, BATCH).astype(np.int32)}


@functools.cache
def _first():
    """The state before the first step, on one device."""
    made = config()
    settings = training.training(made)
    parts = [experiments.experiment(made).recipe, settings["tx"], settings["ema"]]
    state = init_state(*parts, jax.random.key(0), next(batches()))
    # Zeros at initialisation would hide the layers behind them.
    draw = np.random.default_rng(1)
    stir = lambda p: p + 0.02 * draw.normal(size=p.shape).astype(np.float32)
    return jax.device_get(state._replace(params=jax.tree.map(stir, state.params)))


def run(sizes, split):
    """Two steps on a mesh."""
    made = config()
    experiment, settings = experiments.experiment(made), training.training(made)
    n = int(np.prod(list(sizes.values())))
    mesh = sharding.make_mesh(sizes, devices=jax.devices()[:n])
    parts = [experiment.recipe, settings["tx"], settings["ema"]]
    shapes = {name: jax.ShapeDtypeStruct(x.shape, x.dtype) for name, x in next(batches()).items()}
    jitted, arguments = abstract_step(
        *parts, settings["plan"], shapes, mesh, rules=settings["rules"], split=split
    )
    places = jax.tree.map(lambda a: a.sharding, arguments[0])
    put = lambda batch: sharding.global_batch(batch, sharding.of_batch(mesh))
    state = jax.device_put(_first(), places)
    compiled = jitted.lower(*arguments).compile(compiler_options=QUICK)
    losses = []
    for batch in batches():
        state, metrics = compiled(state, {}, put(batch))
        losses.append(float(metrics["loss"]))
    return compiled, losses, jax.device_get(state.params), n


def main():
    rows = [({"data": 1}, "all"), *((json.loads(text), split) for text, split in _asked())]
    first = None
    for sizes, split in rows:
        compiled, losses, params, n = run(sizes, split)
        first = params if first is None else first
        apart = lambda a, b: float(np.max(np.abs(a - b)))
        found = collectives.parse(compiled.as_text(), n)
        memory = compiled.memory_analysis()
        print(
            json.dumps(
                {
                    "mesh": sizes,
                    "split": split,
                    "losses": losses,
                    "apart": max(jax.tree.leaves(jax.tree.map(apart, params, first))),
                    "params": sum(p.nbytes for p in jax.tree.leaves(params)),
                    "largest": max(p.nbytes for p in jax.tree.leaves(params)),
                    "arguments": memory.argument_size_in_bytes,
                    "temporaries": memory.temp_size_in_bytes,
                    "collectives": {
                        kind: [total.count, total.bytes, total.wire]
                        for kind, total in collectives.totals(found).items()
                    },
                    "gathered": max([c.bytes for c in found if c.kind == "all-gather"], default=0),
                }
            ),
            flush=True,
        )


def _asked():
    return [(text, split) for text, split in (arg.split("@") for arg in sys.argv[1:])]


if __name__ == "__main__":
    jax.config.update("jax_default_matmul_precision", "highest")
    assert jnp.ones(()).dtype == jnp.float32
    main()
