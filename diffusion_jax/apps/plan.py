"""The values between a request and pixels, and the plan of one sampler evaluation.

    source -> Generator;  Generator, Requests -> Inputs;  Inputs -> Drawing;  edits change a
    Drawing;  ``apps.draw`` turns it into pixels.

A ``Generator`` is a model that can draw, whatever it was read from: a run, a release, a student, a
checkpoint.  An ``Edit`` is a pair of functions; each fills slots of a ``Drawing`` that others leave
alone, so edits stack in any order.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from functools import partial
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
from jaxtyping import Array

from diffusion_jax.core import seeds
from diffusion_jax.core.flow_maps import to_clean
from diffusion_jax.core.guidance import GUIDANCES, Guidance, Weight
from diffusion_jax.core.process import Process
from diffusion_jax.core.sampling import STARTS
from diffusion_jax.core.targets import denoiser
from diffusion_jax.core.types import Cond, Jump, Model, NoiseLevel, Params, Solver

CFG = GUIDANCES["cfg"]()

Rows = dict[str, np.ndarray]
"""Arrays that ``Model.condition`` reads, name -> [n, ...]."""


class Request(NamedTuple):
    """A request for one image; nothing of a model.

    Attributes:
        prompt: the text, "" for none.
        negative_prompt: what to avoid, "" for the empty condition.
        label: the class, for a model conditioned on classes; None for none.
        seed: of its noise, 0 to 2**64 - 1.
        size: (height, width) in pixels; () for the size that the model was trained on.
    """

    prompt: str = ""
    negative_prompt: str = ""
    label: int | None = None
    seed: int = 0
    size: tuple[int, ...] = ()


class Weights(NamedTuple):
    """Every array of a model: ``params`` such as {"net"}, ``frozen`` such as {"autoencoder"}."""

    params: Params
    frozen: Params


class Geometry(NamedTuple):
    """From pixels to latents.

    Attributes:
        shape: of one latent at the size trained on, (h, w, c); (d,) of points.
        factor: pixels to a latent cell, each way.
        multiple: what an image's height and width must be multiples of, in pixels.
        channels: of an image.
    """

    shape: tuple[int, ...]
    factor: int = 1
    multiple: int = 1
    channels: int = 3

    @property
    def size(self) -> tuple[int, ...]:
        """(height, width) in pixels that the model was trained on; () of points."""
        return tuple(self.factor * n for n in self.shape[:-1])

    def latent_shape(self, size: Sequence[int]) -> tuple[int, ...]:
        """The latent's shape for an image of (height, width); of points, theirs."""
        return (*(n // self.factor for n in size), self.shape[-1])


class Sampler(NamedTuple):
    """How to draw: the values that ``core.sampling.sample`` takes.

    Attributes:
        solver, levels, end, stepped: see there.
        guidance: how conditions are combined, see ``core.guidance.named``.
        guided: whether the guidance scale is used; else the conditional model alone, at half the
            cost.
        deviation: of x at the first level, one of ``core.sampling.STARTS``.
        contrast: factor on pixels about mid-grey.
    """

    solver: Solver
    levels: NoiseLevel
    guidance: Guidance = CFG
    guided: bool = True
    end: NoiseLevel | None = None
    stepped: bool = False
    deviation: Callable[[NoiseLevel], Array] = STARTS["prior"]
    contrast: float = 1.0


class Generator(NamedTuple):
    """A model that can draw, whatever it was read from.

    Attributes:
        model: what the weights mean.
        weights: its arrays; None before training.
        inputs: requests -> (rows of what they ask for, rows of their negative prompts or None).
        geometry: pixels <-> latents.
        net: the network's module, for the names of its layers.
        sampling: settings of its author's sampler, such as {"solver": "ddim()", "steps": 30}.
        process_of: params -> Process, where the noise schedule is learned; else None.
        classes: how many labels there are; 0 without.
        reads_text: whether it is conditioned on prompts.
        networks: names in ``models.partition.PARTITIONS`` of what its weights belong to.
        name: of the sheet of its samples, such as "sample_0001500".
        examples: n -> the first n of its training data, pixels in [-1, 1] or points; None where
            these are not at hand.  None for a model that is not of one's own making.
        origin: the files that it was read from, by which adapters are read; None without.
    """

    model: Model
    weights: Any  # Weights | None
    inputs: Callable[[Sequence[Request]], tuple[Rows, Rows | None]]
    geometry: Geometry
    net: Any
    sampling: dict[str, Any]
    process_of: Callable[[Params], Process] | None = None
    classes: int = 0
    reads_text: bool = False
    networks: tuple[str, ...] = ()
    name: str = "all"
    examples: Callable[[int], np.ndarray | None] | None = None
    origin: Any = None

    def model_of(self, params: Params) -> Model:
        """The model with the process that belongs to trained parameters."""
        if self.process_of is None:
            return self.model
        return self.model._replace(process=self.process_of(params))


class Inputs(NamedTuple):
    """Everything that varies between evaluations of a compiled sampler.

    Attributes:
        rows: what ``Model.condition`` reads, leaves [b, ...].
        negative: the same of the negative prompts; None for the empty condition.
        noise: N(0, 1), [b, h, w, c] in the space of x.
        scale: guidance scale, []; it is ignored where the sampler is not guided.
        arrays: of each edit, in order, leaves [b, ...].
    """

    rows: dict[str, Any]
    negative: dict[str, Any] | None
    noise: Any
    scale: Any
    arrays: tuple[Any, ...] = ()


JumpOf = Callable[[Cond, Cond | None], Jump]
"""(condition, negative or None) -> the guided model as a ``Jump``."""


class Drawing(NamedTuple):
    """One evaluation of the sampler, built inside of the traced function.

    Attributes:
        cond, negative: conditions; None for the empty one in place of a negative.
        noise: N(0, 1) of x's shape.
        picture: x0 that the noise is added to at the first level; None to start from pure noise.
        process: that the levels are of.
        sampler: solver, levels, end.
        network: how the guided model is evaluated, such as in windows: JumpOf -> JumpOf.
        around: what goes around it then: Jump -> Jump.
        resample: what goes around the solver: Solver -> Solver.
        geometry: pixels <-> latents.
        encode: pixels [b, H, W, c] in [-1, 1] -> x0.
        decode: x0 -> pixels.
        paste: what is put back in pixel space: pixels -> pixels.
    """

    cond: Cond
    negative: Cond | None
    noise: Array
    picture: Array | None
    process: Process
    sampler: Sampler
    network: Callable[[JumpOf], JumpOf]
    around: Callable[[Jump], Jump]
    resample: Callable[[Solver], Solver]
    geometry: Geometry
    encode: Callable[[Array], Array]
    decode: Callable[[Array], Array]
    paste: Callable[[Array], Array]


class Edit(NamedTuple):
    """What changes a drawing.

    Attributes:
        arrays: (generator, request) -> arrays of one image, read and checked on the host; a new
            picture, mask or scale compiles nothing.
        apply: (drawing, those arrays [b, ...]) -> drawing; pure.
        equip: generator -> generator, for what an edit adds to the model, such as a ControlNet.
        sources: the pictures that it reads, by path.
    """

    arrays: Callable[[Generator, Request], Any]
    apply: Callable[[Drawing, Any], Drawing]
    equip: Callable[[Generator], Generator] = lambda generator: generator
    sources: tuple[str, ...] = ()


def plan(
    generator: Generator, weights: Weights, sampler: Sampler, inputs: Inputs, key: Array
) -> Drawing:
    """The drawing of plain inputs, before any edit; the key is the codec's."""
    model, (encoder_key, decoder_key) = generator.model_of(weights.params), jax.random.split(key)
    condition = lambda rows: model.condition(weights.frozen, rows)
    same = lambda x: x
    return Drawing(
        cond=condition(inputs.rows),
        negative=None if inputs.negative is None else condition(inputs.negative),
        noise=inputs.noise,
        picture=None,
        process=model.process,
        sampler=sampler,
        network=same,
        around=same,
        resample=same,
        geometry=generator.geometry,
        encode=lambda pixels: model.codec.encode(weights.frozen, pixels, encoder_key),
        decode=lambda x: model.codec.decode(weights.frozen, x, decoder_key),
        paste=same,
    )


def guided(
    model: Model,
    params: Params,
    frozen: Params,
    cond: Cond,
    guidance_scale: Weight | None,
    guidance: Guidance = CFG,
    negative: Cond | None = None,
) -> Jump:
    """The model under guidance; without it (a scale of None) no empty condition is evaluated.

    A distilled model has its guidance built in, or is conditioned on the scale.
    """
    if model.student is not None:
        return model.student(model, params, cond, guidance_scale)
    contrast = guidance_scale is not None and bool(jax.tree.leaves(cond))
    null = model.null(frozen, cond) if contrast and negative is None else negative
    return to_clean(guidance(denoiser(model, params), cond, null, guidance_scale))


def noise_of(requests: Sequence[Request], shape: tuple[int, ...]) -> Array:
    """N(0, 1) [b, *shape], each image's by its own seed alone."""
    words = seeds.words([request.seed for request in requests])
    return _noise(jnp.asarray(words), shape)


@partial(jax.jit, static_argnums=1)
def _noise(words: Array, shape: tuple[int, ...]) -> Array:
    return jax.vmap(lambda pair: jax.random.normal(seeds.key(pair), shape))(words)
