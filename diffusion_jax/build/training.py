"""From a config to what a training takes beside its recipe: optimiser, plan, devices and data."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Any

import numpy as np
from jax.sharding import Mesh

from diffusion_jax.build.buckets import bucket_sizes
from diffusion_jax.build.conditioning import conditioning
from diffusion_jax.core import seeds
from diffusion_jax.core.ema import EMAS
from diffusion_jax.data import DataMissing, load_images
from diffusion_jax.data.faults import Faults
from diffusion_jax.data.pipeline import DataSpec, batches, make_dataset
from diffusion_jax.models.partition import PARTITIONS
from diffusion_jax.recipes.few_step import consistency
from diffusion_jax.spec import Config, build
from diffusion_jax.train import optimizer
from diffusion_jax.train.plan import Plan
from diffusion_jax.train.sharding import AXES, Rules, data_part, make_mesh, where_it_fits


def training(config: Config) -> dict[str, Any]:
    """What ``train.loop.train`` takes beside the recipe, the data and the folder."""
    section, steps = config.optimizer, config.train.steps
    if steps < 1:  # before the decay, whose own complaint would name another field
        raise ValueError(f"config.train.steps = {steps} must be at least 1")
    decay = build(optimizer.SCHEDULES, section.schedule, "optimizer.schedule", steps=steps)
    rate = optimizer.learning_rate(section.learning_rate, decay, section.warmup)
    settings = {name: section[name] for name in ("b1", "b2", "eps", "weight_decay", "clip")}
    # Of a group that moves in the last of so many steps, which counts its own turns.
    scaled = lambda factor, every: optimizer.adamw(
        lambda turn: factor * rate(every * (turn + 1) - 1), **settings
    )
    groups = section.get("groups", ())
    every = ("accumulate", "steps_per_call", "log_every", "checkpoint_every", "keep",
             "skip_nonfinite")  # fmt: skip
    return {
        "tx": optimizer.grouped(scaled, groups) if groups else optimizer.adamw(rate, **settings),
        "ema": build({**EMAS, **consistency.EMAS}, config.ema, "ema", total=steps),
        "plan": Plan(steps, **{name: config.train[name] for name in every}, trace=config.profile),
        "mesh": mesh(config),
        "rules": rules(config),
        "split": config.mesh.split,
        "offload": config.mesh.offload,
        "seed": _seed(config.seed),
        "learning_rate": rate,
    }


def _seed(seed: int) -> int:
    if not 0 <= seed < seeds.COUNT:
        raise ValueError(
            f"config.seed = {seed} must be at least 0 and below 2**64; any seed, -1, is of samples "
            "alone, as a run goes on from its config"
        )
    return seed


def mesh(config: Config) -> Mesh:
    """The devices, as ``config.mesh`` lays them out."""
    return make_mesh({axis: config.mesh[axis] for axis in AXES})


def rules(config: Config, networks: Sequence[str] | None = None) -> Rules:
    """Which parameter lies where: ``config.mesh.rules``, then the networks' own.

    Args:
        config: its mesh section, and its ``model.name`` where no networks are given.
        networks: names in ``PARTITIONS``.
    """
    for rule in config.mesh.rules:
        if not isinstance(rule, (list, tuple)) or list(map(type, rule)) not in _RULE:
            raise ValueError(
                f"config.mesh.rules has {rule!r}, which is not (pattern, axes), such as "
                "('attention/kernel', (None, 'tensor'))"
            )
    given = tuple((pattern, tuple(axes)) for pattern, axes in config.mesh.rules)
    names = (config.model.name,) if networks is None else networks
    own = [row for name in names for row in PARTITIONS.get(name, ())]
    return (*given, *((pattern, where_it_fits(axes)) for pattern, axes in own))


_RULE = ([str, tuple], [str, list])


def data_spec(config: Config, split: str) -> DataSpec:
    """The training pipeline of a split, for this process."""
    index, count = data_part(mesh(config))
    return DataSpec(
        name=config.data.name,
        split=split,
        batch_size=config.train.batch_size,
        image_size=tuple(config.data.image_size),
        channels=config.data.channels,
        flip=config.data.flip,
        crop=config.data.crop,
        balance=config.data.get("balance", ""),
        seed=config.seed,
        data_dir=config.data.dir or None,
        process_index=index,
        process_count=count,
    )


def training_data(config: Config) -> Callable[[int], Any]:
    """start_step -> iterator of this process's batches from that step on."""
    section = config.data
    if section.timeout < 0:
        raise ValueError(f"config.data.timeout = {section.timeout} must be seconds, or 0 for ever")
    faults = Faults(section.broken_records)
    conditions = conditioning(config)
    spec = data_spec(config, section.split)
    sizes = bucket_sizes(config, tuple(section.image_size))
    spec = spec._replace(captions=conditions.captions, buckets=sizes)
    dataset = make_dataset(spec, faults).map(conditions.attach)
    return lambda start: batches(dataset, start, timeout=section.timeout, faults=faults)


def examples(config: Config, n: int) -> np.ndarray | None:
    """The first n examples of the training split as a batch has them; None if not prepared."""
    if config.data.name.startswith("toy2d:"):
        return load_images(config.data.name, "train", n)[0]
    spec = data_spec(config, config.data.split)
    try:
        one = spec._replace(batch_size=n, shuffle=False, process_index=0, process_count=1)
        batch: Any = make_dataset(one)[0]
    except DataMissing:
        return None
    return batch["image"]
