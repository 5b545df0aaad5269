"""The edits that a config names, in any order: ``config.edits``."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from functools import reduce

from diffusion_jax.apps.edits.image_to_image import image_to_image
from diffusion_jax.apps.edits.inpaint import inpaint
from diffusion_jax.apps.edits.tiles import tiles
from diffusion_jax.apps.edits.variation import variation
from diffusion_jax.apps.plan import Edit, Generator
from diffusion_jax.build.checkpoint.control import control
from diffusion_jax.spec import build


def edits_of(specs: Sequence[str]) -> tuple[Edit, ...]:
    """The edits of ``config.edits``.

    Raises:
        ValueError: for a string in place of a list, a name or an argument that is none.
    """
    if isinstance(specs, str):
        raise ValueError(f"config.edits = {specs!r} must be a list of edits: ({specs!r},)")
    return tuple(build(EDITS, spec, "edits") for spec in specs)


def equipped(generator: Generator, edits: Sequence[Edit]) -> Generator:
    """The generator with what the edits add to it."""
    return reduce(lambda generator, edit: edit.equip(generator), edits, generator)


EDITS: dict[str, Callable[..., Edit]] = {
    "image_to_image": image_to_image,
    "inpaint": inpaint,
    "control": control,
    "tiles": tiles,
    "variation": variation,
}
