"""Inpainting and outpainting by any model: what is known is held, the rest is drawn to fit it."""

from __future__ import annotations

import numpy as np

from diffusion_jax.apps import masks
from diffusion_jax.apps.plan import Drawing, Edit, Generator, Request
from diffusion_jax.core.guidance import known, projected
from diffusion_jax.core.solvers.repaint import repaint
from diffusion_jax.pictures import read_picture


def inpaint(picture: str, mask: str, feather: float = 8.0, repeats: int = 100) -> Edit:
    """Repaint a part of a picture; outside of the mask every pixel stays, to the bit.

    Each prediction of x0 has what is known put in its place (``guidance.projected``).  That alone
    leaves a seam: on the way down the two parts never meet.  So steps at moderate noise are taken
    again, with fresh noise in between (RePaint, Lugmayr et al. 2022; ``core.solvers.repaint``).

    Args:
        picture: path of the file; resized to the size that is drawn.
        mask: path of a picture that is white where to repaint; a latent cell that it touches is
            repainted whole.
        feather: pixels inside of the mask over which the drawn part fades in.
        repeats: of steps at log-SNR 1 to 6, each at a step's network evaluations: more come nearer
            to what the model believes of the hole, 0 is the seam.  A new number compiles nothing.

    Raises:
        ValueError: for a negative feather or number of repeats, or too many of them.
    """
    if not feather >= 0 or not 0 <= repeats < 2**31:
        raise ValueError(
            f"config.edits: inpaint(feather={feather}, repeats={repeats}) must be 0 or more, and "
            "repeats below 2**31"
        )

    def arrays(generator: Generator, request: Request):
        geometry = generator.geometry
        size = request.size or geometry.size
        if not size:
            raise ValueError("config.edits: inpaint needs a model of images; this one draws points")
        white = masks.binary(read_picture(mask, size, 1, "edits"))
        return {
            "picture": read_picture(picture, size, geometry.channels, "edits"),
            "cells": masks.cells(white, geometry.factor),
            "share": masks.feathered(white, feather),
            "repeats": np.int32(repeats),
        }

    def apply(drawing: Drawing, arrays) -> Drawing:
        latent = drawing.encode(arrays["picture"])
        project = known(arrays["cells"], latent)
        return drawing._replace(
            around=lambda jump: projected(drawing.around(jump), project),
            resample=lambda solver: repaint(
                drawing.resample(solver), drawing.process, arrays["repeats"][0]
            ),
            paste=lambda pixels: masks.paste(
                drawing.paste(pixels), arrays["picture"], arrays["share"]
            ),
        )

    return Edit(arrays, apply, sources=(picture, mask))
