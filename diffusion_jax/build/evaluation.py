"""From a config to what judges a run: likelihood, feature network, class judge."""

from __future__ import annotations

import hashlib
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any, NamedTuple

import jax.numpy as jnp
import numpy as np

from diffusion_jax import spec
from diffusion_jax.build import experiment as experiments
from diffusion_jax.build.process import learned_schedule
from diffusion_jax.convert.tensors import read_safetensors
from diffusion_jax.convert.torch_pickle import read_state_dict
from diffusion_jax.core.guidance import condition
from diffusion_jax.core.solvers.ancestral import fixed_small, learned_range
from diffusion_jax.core.targets import denoiser
from diffusion_jax.core.types import Params
from diffusion_jax.evaluate.contrast import CaptionJudge, train_caption_judge
from diffusion_jax.evaluate.features import FeatureNet
from diffusion_jax.evaluate.judge import Judge, cached_judge
from diffusion_jax.evaluate.likelihoods import LIKELIHOODS, Subject, Terms
from diffusion_jax.models.vision import efficientnet, inception
from diffusion_jax.models.vision.classifier import Classifier
from diffusion_jax.models.vision.towers import Towers
from diffusion_jax.spec import Config


class Likelihood(NamedTuple):
    """An estimate of a model's likelihood.

    Attributes:
        title: its name in a report.
        terms: (key, params, request [b, ...], x0 [b, ...]) -> "total" [b] and what it is the sum
            of, each [b] or [n, b], bits per dimension; jit it.
    """

    title: str
    terms: Callable[..., Terms]


def likelihood(config: Config, experiment: experiments.Experiment) -> Likelihood:
    """What ``config.evaluate.likelihood`` says.

    Raises:
        ValueError: for a diffusion of latents, whose density is not one of pixels.
    """
    if config.model.get("autoencoder", ""):
        raise ValueError(
            f"config.evaluate.likelihood = {config.evaluate.likelihood!r} is of pixels, and this "
            f"model diffuses latents of {config.model.autoencoder!r}; set it to ''"
        )
    estimate = spec.build(LIKELIHOODS, config.evaluate.likelihood, "evaluate.likelihood")

    def terms(key, params, request, x0):
        model = experiment.model_of(params)
        subject = Subject(
            condition(denoiser(model, params), model.condition({}, request)),
            model.process,
            learned_range if config.loss.learned_variance else fixed_small,
            learned=learned_schedule(config) is not None,
            discrete=len(experiment.shape) == 3,
        )
        return estimate.terms(key, subject, x0)

    return Likelihood(estimate.title, terms)


def feature_net(config: Config) -> FeatureNet:
    """What images are compared through: Inception if its weights are given, else EfficientNet."""
    path = config.evaluate.inception_weights
    if path:
        params = inception.fold(_read_weights(path))
        apply = lambda images: dict.fromkeys(
            ("frechet", "kernel"), inception.features(params, images)
        )
        return FeatureNet("InceptionV3 pool3 2048-d, 299 px", "FID", apply)
    params = efficientnet.fold(read_state_dict(efficientnet.packaged_weights()))

    def apply(images):
        out = efficientnet.features(params, images)
        return {"frechet": out["pooled"], "kernel": out["head"]}

    return FeatureNet("EfficientNet-Lite0, 64 px", "Fréchet distance", apply)


def _read_weights(path: str) -> Mapping[str, Any]:
    if not Path(path).is_file():
        raise ValueError(
            f"config.evaluate.inception_weights = {path!r} is no file; give a local "
            "pt_inception-2015-12-05 as .pth or .safetensors, or '' for EfficientNet features"
        )
    return read_safetensors(path) if path.endswith(".safetensors") else read_state_dict(path)


def judge(config: Config, load: Callable[[str], Any], folder: Path) -> Judge:
    """The classifier of a data set: trained once and kept in ``folder``.

    Args:
        config: names the splits to train and to hold out.
        load: split -> (images uint8 [n, h, w, c], labels int32 [n]).
        folder: of the cache; the file's name says what was trained on, by content.
    """
    module = Classifier(config.data.num_classes)
    train, test = load(config.data.split), load(config.data.test_split)
    example = jnp.zeros((1, *train[0].shape[1:]))

    def init(key) -> Params:
        variables: Any = module.init(key, example)
        return variables["params"]

    def logits(params, x, key) -> Any:
        rngs = None if key is None else {"dropout": key}
        return module.apply({"params": params}, x, train=key is not None, rngs=rngs)

    seen = hashlib.sha256(b"".join(np.ascontiguousarray(part).tobytes() for part in train))
    path = folder / f"judge-{seen.hexdigest()[:16]}.npz"
    return cached_judge(init, logits, train, test, path)


def caption_judge(images: np.ndarray, texts: np.ndarray, seed: int) -> CaptionJudge:
    """Towers trained on features of views of images [v, n, d] and of their captions [n, e]."""
    module = Towers()

    def init(key) -> Params:
        variables: Any = module.init(key, images[0, :2], texts[:2])
        return variables["params"]

    def embed(params, image, text, key) -> Any:
        rngs = None if key is None else {"dropout": key}
        return module.apply({"params": params}, image, text, train=key is not None, rngs=rngs)

    return train_caption_judge(init, embed, images, texts, seed=seed)


def check_images(config: Config) -> None:
    """Refuse to judge points in the plane as if they were images."""
    if len(experiments.data_shape(config)) != 3:
        raise ValueError(
            f"config.data.name = {config.data.name!r} has no images; evaluate quality and "
            "class accuracy of image sets, and the likelihood or samples/ of points"
        )
