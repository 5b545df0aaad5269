"""A Stable Diffusion checkpoint as a ``Generator``."""

from __future__ import annotations

import warnings
from collections.abc import Mapping, Sequence
from functools import partial
from pathlib import Path
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np

from diffusion_jax.apps.plan import Generator, Geometry, Request, Rows, Weights
from diffusion_jax.build.checkpoint.additions import with_words
from diffusion_jax.convert import sd_autoencoder
from diffusion_jax.convert.schedulers import (
    boundary_of,
    process_of,
    sampling_of,
    target_of,
)
from diffusion_jax.convert.stable_diffusion import Checkpoint, Part, find_tokenizers
from diffusion_jax.convert.textual_inversion import Word
from diffusion_jax.core import network_io
from diffusion_jax.core.types import Model
from diffusion_jax.data.prompts import Window, tokens, unread
from diffusion_jax.data.tokenizers import Tokenizer, load_tokenizer
from diffusion_jax.data.words import spelled
from diffusion_jax.models.adapter import net_from_module
from diffusion_jax.models.autoencoders.codec import Tiling, codec
from diffusion_jax.models.text.clip import READS
from diffusion_jax.models.text.prompts import Reader, read_prompts
from diffusion_jax.recipes.few_step import students


class Prompts(NamedTuple):
    """Prompts -> what the text encoders read: the ``inputs`` of a checkpoint's ``Generator``.

    Attributes:
        tokenizers: one for each text encoder.
        size: (height, width) in pixels that the model was trained on.
        sized: whether the network is conditioned on sizes ("time_ids").
        words: that were added to the tokenizers, each with its number of tokens.
        chunks: of 75 tokens that are read of a prompt; None for all of it.
    """

    tokenizers: tuple[Tokenizer, ...]
    size: tuple[int, int]
    sized: bool
    words: tuple[tuple[str, int], ...] = ()
    chunks: int | None = None

    def __call__(self, requests: Sequence[Request]) -> tuple[Rows, Rows | None]:
        """Rows of requests of one size, and of their negative prompts if there are some.

        Raises:
            ValueError: for a request without a prompt, or with a label.

        Warns of what is written as in web interfaces, and is not read as there.
        """
        prompts = [request.prompt for request in requests]
        negative = [request.negative_prompt for request in requests]
        if any(request.label is not None for request in requests):
            raise ValueError(
                "config.labels: this checkpoint is conditioned on prompts, not on labels; give "
                "--config.prompt='a red house'"
            )
        if not all(prompts):
            raise ValueError(
                "config.prompt is empty; say what to draw: --config.prompt='a red house'"
            )
        for said in dict.fromkeys(s for text in (*prompts, *negative) for s in unread(text)):
            warnings.warn(said, stacklevel=2)
        size = requests[0].size or None
        if not any(negative):
            return self.rows(prompts, size, self.chunks), None
        return self.pair(prompts, negative, size, self.chunks)

    def rows(
        self,
        prompts: Sequence[str],
        size: Sequence[int] | None = None,
        chunks: int | None = None,
        framing: np.ndarray | None = None,
    ) -> Rows:
        """What ``model.condition`` reads, of b prompts (see ``data.prompts``).

        Args:
            prompts: b texts.
            size: (height, width) of the images.
            chunks: see ``data.prompts.tokens``.
            framing: int [b, 4], of training pictures: the height and width that each had, and the
                top and left of what was cut out of it (SDXL's size and crop conditioning; Podell
                et al. 2023, section 2.2).  None says that each was made at this size, uncut.
        """
        found: Rows = {}
        for i, tokenizer in enumerate(self.tokenizers):
            ids_of = lambda text, tokenizer=tokenizer: tokenizer.raw([text])[0]
            texts = [spelled(prompt, self.words) for prompt in prompts]
            part = tokens(texts, ids_of, _window(tokenizer), chunks)
            found |= {f"ids_{i}": part.ids, f"weights_{i}": part.weights}
        if self.sized:
            height, width = size or self.size
            time_ids = np.tile((height, width, 0, 0, height, width), (len(prompts), 1))
            if framing is not None:
                time_ids[:, :4] = framing
            found["time_ids"] = time_ids.astype(np.float32)
        return found

    def pair(
        self,
        prompts: Sequence[str],
        negative: Sequence[str],
        size: Sequence[int] | None = None,
        chunks: int | None = None,
    ) -> tuple[Rows, Rows]:
        """``rows`` of prompts and of their negative prompts, in as many chunks."""
        both = self.rows([*prompts, *negative], size, chunks)
        n = len(prompts)
        return {k: v[:n] for k, v in both.items()}, {k: v[n:] for k, v in both.items()}


def text_to_image(
    checkpoint: Checkpoint,
    tokenizers: Sequence[str | Path] = (),
    dtype: Any = jnp.float32,
    decode_dtype: Any = jnp.float32,
    tiling: Tiling | None = None,
    words: Sequence[Word] = (),
    chunks: int | None = None,
    clip_skip: int = 0,
) -> Generator:
    """A checkpoint as a ``Generator``.

    Args:
        checkpoint: see ``convert.stable_diffusion.read_checkpoint``.
        tokenizers: folders, where the checkpoint has none.
        dtype: of the U-Net's and the text encoders' computation.
        decode_dtype: of the autoencoder's, whose float16 overflows in SDXL.
        tiling: of large images, see ``models.autoencoders.codec``; None for none.
        words: new ones of prompts, with their embeddings (``with_words``).
        chunks: of a prompt, see ``Prompts``.
        clip_skip: how many layers earlier than usual the text encoders are read, of the prompt and
            of what it avoids; 1 is the last but one of SD 1 (A1111's "Clip skip: 2").

    Raises:
        ValueError: for settings that are not known here.
    """
    loaded = tuple(load_tokenizer(f) for f in find_tokenizers(tokenizers, checkpoint))
    checkpoint, loaded = with_words(checkpoint, loaded, words)
    unet, vae, configs = checkpoint.unet, checkpoint.autoencoder, checkpoint.configs
    texts = tuple(part.params for part in checkpoint.text_encoders)
    sized = unet.module.added_features > 0
    factor, cells = vae.module.factor, configs["unet"].get("sample_size") or (128 if sized else 64)
    height, width = (cells, cells) if isinstance(cells, int) else cells
    prompts = Prompts(
        tokenizers=loaded,
        size=(height * factor, width * factor),
        sized=sized,
        words=tuple((word.name, len(word.vectors[0])) for word in words),
        chunks=chunks,
    )
    return Generator(
        model=_model(checkpoint, prompts, dtype, decode_dtype, tiling, clip_skip),
        weights=Weights({"net": unet.params}, {"autoencoder": vae.params, "text": texts}),
        inputs=prompts,
        geometry=Geometry(
            shape=(height, width, vae.module.latent_channels),
            factor=factor,
            multiple=factor * unet.module.patch,
        ),
        net=unet.module.clone(dtype=jnp.dtype(dtype)),
        sampling=sampling_settings(checkpoint.scheduler),
        reads_text=True,
        networks=("text_unet", "clip_text", "autoencoder"),
        origin=checkpoint,
    )


def _model(
    checkpoint: Checkpoint,
    prompts: Prompts,
    dtype: Any,
    decode_dtype: Any,
    tiling: Tiling | None,
    clip_skip: int,
) -> Model:
    unet, vae, sized = checkpoint.unet, checkpoint.autoencoder, prompts.sized
    layers = min(part.module.layers for part in checkpoint.text_encoders)
    if not 0 <= clip_skip < layers:
        raise ValueError(
            f"config.clip_skip = {clip_skip}: of {layers} layers 0 to {layers - 1} can be skipped"
        )
    read = partial(READS["penultimate" if sized else "last"], skip=clip_skip)
    readers = tuple(_reader(part, dtype, read) for part in checkpoint.text_encoders)
    bare = net_from_module(unet.module.clone(dtype=jnp.dtype(dtype)))
    process = process_of(checkpoint.scheduler)
    vae_config = {**sd_autoencoder.DEFAULTS, **checkpoint.configs["vae"]}
    coder = vae.module.clone(dtype=jnp.dtype(decode_dtype))
    model = Model(
        net=lambda params, *args, **kwargs: bare(params["net"], *args, **kwargs),
        process=process,
        target=target_of(checkpoint.scheduler),
        scale_in=network_io.SCALE_INPUTS["unit"](),
        time_in=network_io.discrete(process.schedule.steps or 1000),
        codec=codec(coder, *sd_autoencoder.scale_of(vae_config), tiling=tiling),
        condition=partial(_condition, readers, sized),
        null=partial(_null, readers, _empty(prompts.tokenizers), sized and _zeros(checkpoint)),
    )
    if unet.module.guidance_features:
        reads = students.bounded(boundary_of(checkpoint.scheduler))
        model = model._replace(student=students.with_scale(reads))
    return model


def sampling_settings(scheduler: Mapping[str, Any]) -> dict[str, Any]:
    """The author's sampler in the fields of ``config.sampler``."""
    own = sampling_of(scheduler)
    return {
        "solver": own.solver,
        "grid": own.grid,
        "end": own.end,
        "start": own.start,
        "post": own.post,
        "elsewhere": {
            own.solver: own.elsewhere or own.solver,
            own.end: own.end.removeprefix("solver_").replace("last", "first"),
        },
        "steps": 30,
        "guidance": "cfg()",
        "guidance_scale": 7.5,
        "least_scale": 1.0,  # at or below it there is no guidance, as in diffusers
    }


def _reader(part: Part, dtype: Any, read: Any) -> Reader:
    module = part.module.clone(dtype=jnp.dtype(dtype))
    return Reader(lambda params, ids: module.apply({"params": params}, ids), read)


def _condition(readers, sized, frozen, batch):
    context, pooled = read_prompts(readers, frozen["text"], batch)
    if not sized:
        return {"context": context}
    return {"context": context, "pooled": pooled, "time_ids": batch["time_ids"]}


def _null(readers, empty, zeros, frozen, cond):
    """The empty prompt, or, as SDXL was trained, zeros in place of any text."""
    if zeros:
        return {**jax.tree.map(jnp.zeros_like, cond), "time_ids": cond["time_ids"]}
    context, pooled = read_prompts(readers, frozen["text"], empty)
    b, n, _ = cond["context"].shape
    chunks = n // context.shape[1]
    null = {"context": jnp.tile(context, (b, chunks, 1))}
    if "pooled" in cond:
        null |= {"pooled": jnp.tile(pooled, (b, 1)), "time_ids": cond["time_ids"]}
    return null


def _empty(tokenizers: tuple[Tokenizer, ...]) -> Rows:
    found: Rows = {}
    for i, tokenizer in enumerate(tokenizers):
        part = tokens([""], lambda text: [], _window(tokenizer), 1)
        found |= {f"ids_{i}": part.ids, f"weights_{i}": part.weights}
    return found


def _zeros(checkpoint: Checkpoint) -> bool:
    return bool(checkpoint.index.get("force_zeros_for_empty_prompt", True))


def _window(tokenizer: Tokenizer) -> Window:
    if not (len(tokenizer.prefix) == len(tokenizer.suffix) == 1 and tokenizer.length):
        raise ValueError(
            f"the tokenizer frames a text by {tokenizer.prefix} and {tokenizer.suffix} in "
            f"{tokenizer.length} tokens, where one token before, one after and a length are needed"
        )
    return Window(tokenizer.length, tokenizer.prefix[0], tokenizer.suffix[0], tokenizer.pad)
