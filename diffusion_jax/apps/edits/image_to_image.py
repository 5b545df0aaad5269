"""Image to image: start from a picture with noise added (SDEdit, Meng et al. 2022)."""

from __future__ import annotations

from diffusion_jax.apps.plan import Drawing, Edit, Generator, Request
from diffusion_jax.core.grids import truncate
from diffusion_jax.pictures import read_picture


def image_to_image(picture: str, strength: float = 0.8) -> Edit:
    """Draw from a picture that is noised in part.

    Args:
        picture: path of the file; resized to the size that is drawn.
        strength: share of the steps that are taken, in (0, 1]: 1 leaves hardly anything of the
            picture.  A strength that changes the number of steps compiles anew.

    Raises:
        ValueError: for a strength outside of (0, 1].
    """
    if not 0 < strength <= 1:
        raise ValueError(
            f"config.edits: image_to_image(strength={strength}) is not in (0, 1]; 0.3 changes "
            "details, 0.8 nearly everything"
        )

    def arrays(generator: Generator, request: Request):
        size = request.size or generator.geometry.size
        return read_picture(picture, size, generator.geometry.channels, "edits")

    def apply(drawing: Drawing, pixels) -> Drawing:
        sampler = drawing.sampler
        shorter = sampler._replace(levels=truncate(sampler.levels, strength))
        return drawing._replace(picture=drawing.encode(pixels), sampler=shorter)

    return Edit(arrays, apply, sources=(picture,))
