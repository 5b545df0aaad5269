"""Write a run's sampler as one file that JAX alone runs, on CPU, CUDA and TPU.

    python scripts/export_sampler.py --workdir=runs/mnist --out=sampler.jaxexport
    python scripts/export_sampler.py --workdir=runs/mnist --out=sampler.jaxexport \
        --params=beside --config.sampler.steps=20

The file is a ``jax.export`` artifact of the function

    (key uint32 [2], labels int32 [b], guidance scale float32 []) -> images uint8 [b, h, w, c]

for any b; the key is what ``jax.random.PRNGKey(seed)`` gives.  Image i is of seed + i, as
--mode=sample draws them, so the next batch's seed is seed + b.  A model without classes takes of
the labels their number only, and a run of points gives float32 [b, 2].  With --params=beside the
parameters lie in OUT.safetensors and are the first argument, a dict of its names.  OUT.json says
all this and how the sampler is set.  ``scripts/run_exported.py`` runs it without this package.
"""

from __future__ import annotations

import argparse
import ast
import json
import sys
from collections.abc import Callable
from contextlib import ExitStack
from importlib import metadata
from pathlib import Path
from typing import Any

sys.path.insert(0, str(Path(__file__).resolve().parents[1]))

import jax
import jax.numpy as jnp
import numpy as np
from jax import export
from jaxtyping import Array
from safetensors.numpy import save_file

from diffusion_jax import ending
from diffusion_jax.apps.draw import make_sampler
from diffusion_jax.apps.plan import Inputs
from diffusion_jax.build.runs import Run, open_run, run_config
from diffusion_jax.data import to_uint8
from diffusion_jax.files import whole
from diffusion_jax.jobs.drawing import ImageSampler, with_reference
from diffusion_jax.jobs.hosts import first_line
from diffusion_jax.jobs.run_samples import sampler_of_run
from diffusion_jax.spec import Config, plain
from diffusion_jax.train.sharding import path_name

PLATFORMS = ("cpu", "cuda", "tpu")
KEYS = "threefry2x32"  # JAX's default, and the one that is the same on every platform
PARAMS = ("inside", "beside")
# The artifact's format ends at 2 GiB, the parameters' copies on the way included.
MOST_BYTES = 2**30
# An artifact is of one device; it runs on any one.
ONE_DEVICE = {"mesh.data": 1, "mesh.fsdp": 1, "mesh.tensor": 1, "mesh.sequence": 1}
# Fields of config.sampler that are arguments of the artifact, or of the job that draws many.
NOT_SETTINGS = ("n", "batch_size", "labels", "seed")

Tensors = dict[str, np.ndarray]
"""Parameters by flat names, such as "net/conv_in/kernel"."""


def export_run(config: Config, workdir: str | Path, out: str | Path, params: str = "inside") -> Run:
    """Write the artifact, its description and, if they are to lie beside it, the parameters.

    Args:
        config: as ``sampler_config`` gives it.
        workdir: the run's folder.
        out: the artifact's path; the other files' names start with it.
        params: one of ``PARAMS``.

    Raises:
        ValueError: for a folder without a run, or a sampler or path that cannot be exported.
    """
    _check_out(Path(out), params)
    run = open_run(config, workdir)
    tensors, join = flattened(run.params)
    if params == "inside":
        _check_size(tensors)
    image_sampler = sampler_of_run(run)
    artifact = exported(run, image_sampler, tensors, join, params)
    about = description(run, image_sampler, artifact, params)
    with ExitStack() as stack:  # left from last to first: whoever sees the artifact sees the rest
        write = lambda suffix: stack.enter_context(whole(f"{out}{suffix}"))
        write("").write_bytes(artifact.serialize())
        write(".json").write_text(json.dumps(about, indent=2) + "\n")
        if params == "beside":
            save_file(tensors, write(".safetensors"))
    return run


def sampler_config(workdir: str | Path, overrides: dict[str, Any]) -> Config:
    """The run's config for one device, with fields of it replaced.

    Raises:
        ValueError: if there is no run, or no such field.
    """
    return run_config(workdir, {**overrides, **ONE_DEVICE})


def exported(
    run: Run, image_sampler: ImageSampler, tensors: Tensors, join: Callable[[Any], Any], params: str
) -> export.Exported:
    """The sampler for all platforms and batch sizes.

    Raises:
        ValueError: for a solver or a guidance that needs to know the batch size.
    """
    config, frozen = run.config, run.experiment.frozen()
    draw = make_sampler(image_sampler.generator, image_sampler.sampler_of)

    def sampler(tensors: Any, key: Array, labels: Array, scale: Array) -> Array:
        weights = with_reference(image_sampler, run.experiment.weights(frozen, join(tensors)))
        noise = noise_of(key, labels.shape[0], run.experiment.shape)
        inputs = Inputs({"label": labels}, None, noise, scale)
        pixels = draw(weights, jax.random.wrap_key_data(key, impl=KEYS), inputs)
        return pixels if pixels.ndim == 2 else to_uint8(pixels)

    (b,) = export.symbolic_shape("b")
    shape = jax.ShapeDtypeStruct
    request = (shape((2,), jnp.uint32), shape((b,), jnp.int32), shape((), jnp.float32))
    try:
        if params == "inside":
            function = jax.jit(lambda *request: sampler(tensors, *request))
            return export.export(function, platforms=PLATFORMS)(*request)
        shapes = {name: shape(value.shape, value.dtype) for name, value in tensors.items()}
        return export.export(jax.jit(sampler), platforms=PLATFORMS)(shapes, *request)
    except (TypeError, NotImplementedError, jax.errors.InconclusiveDimensionOperation) as error:
        raise ValueError(
            f"config.sampler.solver = {config.sampler.solver!r} with guidance "
            f"{config.sampler.guidance!r} needs to know the batch size ({first_line(error)}), so "
            "it cannot be exported; choose another solver or guidance"
        ) from error


def noise_of(key: Array, b: Any, shape: tuple[int, ...]) -> Array:
    """N(0, 1) [b, *shape]: of ``PRNGKey(seed)`` what ``apps.plan`` draws of seed, seed + 1, ..."""
    steps = jnp.arange(b, dtype=jnp.uint32)
    keys = key + jnp.stack([jnp.zeros_like(steps), steps], 1)
    one = lambda key: jax.random.normal(jax.random.wrap_key_data(key, impl=KEYS), shape)
    return jax.vmap(one)(keys)


def flattened(params: Any) -> tuple[Tensors, Callable[[Any], Any]]:
    """The parameters by flat names, and the way back."""
    leaves, tree = jax.tree_util.tree_flatten_with_path(jax.device_get(params))
    tensors = {path_name(path): np.ascontiguousarray(leaf) for path, leaf in leaves}
    return tensors, lambda by_name: tree.unflatten(by_name[path_name(path)] for path, _ in leaves)


def description(
    run: Run, image_sampler: ImageSampler, artifact: export.Exported, params: str
) -> dict[str, Any]:
    """What a person or a program needs to know to call the artifact."""
    config = plain(run.config)
    model, weights = run.experiment.model_of(run.params), with_reference(image_sampler)
    request = ("key", "labels", "guidance_scale")
    array = lambda aval: {
        "shape": [d if isinstance(d, int) else str(d) for d in aval.shape],
        "dtype": str(aval.dtype),
    }
    arguments = [
        {"name": name, **array(aval)}
        for name, aval in zip(request, artifact.in_avals[-3:], strict=True)
    ]
    first = [{"name": "params", "file": "safetensors beside"}] if params == "beside" else []
    return {
        "arguments": [*first, *arguments],
        "result": array(artifact.out_avals[0]),
        "key": f"key data of {KEYS}, as jax.random.PRNGKey(seed); image i is of seed + i",
        "num_classes": config["data"]["num_classes"],
        "guidance_scale": config["sampler"]["guidance_scale"],
        # Where the scale was 1 the sampler is the plain model, at half the cost.
        "obeys_guidance_scale": image_sampler.sampler_of(model, weights).guided,
        "params": params,
        "step": run.step,
        "target_shape": list(run.experiment.shape),
        "sampler": {k: v for k, v in config["sampler"].items() if k not in NOT_SETTINGS},
        "process": config["process"],
        "model": {"name": config["model"]["name"], "target": config["model"]["target"]},
        "platforms": list(artifact.platforms),
        "calling_convention": artifact.calling_convention_version,
        "versions": {name: metadata.version(name) for name in ("jax", "jaxlib", "flax", "numpy")},
    }


def parse_overrides(words: list[str]) -> dict[str, Any]:
    """["--config.sampler.steps=20"] -> {"sampler.steps": 20}.

    Raises:
        ValueError: for a word that is not of this form.
    """
    found = {}
    for word in words:
        name, equals, text = word.partition("=")
        if not name.startswith("--config.") or not equals:
            raise ValueError(f"argument {word!r} is not understood; see --help")
        try:
            value = ast.literal_eval(text)
        except (ValueError, SyntaxError):
            value = text  # a string without quotes, as "ddim()"
        found[name.removeprefix("--config.")] = value
    return found


def use_one_cpu() -> None:
    """Before JAX starts: lowering needs no accelerator, and the artifact is of one device."""
    jax.config.update("jax_platforms", "cpu")
    jax.config.update("jax_num_cpu_devices", 1)


def _check_out(out: Path, params: str) -> None:
    if params not in PARAMS:
        raise ValueError(f"--params={params} is unknown; choose {' or '.join(PARAMS)}")
    if out.is_dir():
        raise ValueError(f"--out={out} is a folder; name a file in it")
    if not out.parent.is_dir():
        raise ValueError(f"--out={out} lies in a folder that does not exist; make {out.parent}")


def _check_size(tensors: Tensors) -> None:
    size = sum(tensor.nbytes for tensor in tensors.values())
    if size > MOST_BYTES:
        raise ValueError(
            f"--params=inside is for at most {MOST_BYTES / 2**30:g} GiB of parameters, and these "
            f"are {size / 2**30:.3g}; take --params=beside"
        )


def main() -> None:
    """Export what the command line names; a mistake ends it with one sentence and exit code 2."""
    describe = argparse.RawDescriptionHelpFormatter
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=describe, allow_abbrev=False
    )
    parser.add_argument("--workdir", default="runs/mnist", help="folder of the run")
    parser.add_argument("--out", default="sampler.jaxexport", help="the artifact")
    parser.add_argument("--params", default="inside", help="where they go: inside or beside")
    arguments, rest = parser.parse_known_args()
    use_one_cpu()
    with ending.sentences():
        config = sampler_config(arguments.workdir, parse_overrides(rest))
        run = export_run(config, arguments.workdir, arguments.out, arguments.params)
    print(f"{arguments.out} is the sampler of step {run.step}; {arguments.out}.json describes it")


if __name__ == "__main__":
    main()
