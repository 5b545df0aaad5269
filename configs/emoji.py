"""Colour emoji at 32 pixels, unconditional."""

from ml_collections import ConfigDict

from configs import base


def get_config() -> ConfigDict:
    config = base.get_config()
    config.data.name = "noto_emoji"
    config.data.image_size = (32, 32)
    config.data.channels = 3
    config.data.flip = True
    config.data.num_classes = 0
    config.loss.condition_dropout = 0.0
    config.model.unet.channels = 48
    config.model.unet.channel_mults = (1, 2, 2)
    config.train.steps = 4000
    config.train.checkpoint_every = 1000
    config.train.sample_every = 1000
    config.sampler.guidance_scale = 1.0
    config.evaluate.class_accuracy = False
    return config
