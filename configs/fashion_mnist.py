"""Clothes, class-conditional: 60,000 images; the same network as for digits, trained longer."""

from ml_collections import ConfigDict

from configs import base


def get_config() -> ConfigDict:
    config = base.get_config()
    config.data.name = "fashion_mnist"
    config.data.flip = True
    config.model.unet.channels = 48
    config.train.steps = 5000
    config.train.checkpoint_every = 1000
    config.train.sample_every = 1000
    return config
