"""Points in the plane: seconds.  --config=configs/toy2d.py:checkerboard picks another set."""

from ml_collections import ConfigDict

from configs import base


def get_config(name: str = "moons") -> ConfigDict:
    config = base.get_config()
    config.data.name = f"toy2d:{name}"
    config.data.num_classes = 0
    config.model.name = "mlp"
    config.loss.condition_dropout = 0.0
    config.train.steps = 2000
    config.train.batch_size = 256
    config.train.steps_per_call = 10
    config.train.log_every = 100
    config.train.sample_every = 1000
    config.train.checkpoint_every = 1000
    config.sampler.guidance_scale = 1.0
    config.sampler.n = 2000
    config.sampler.batch_size = 2000
    config.evaluate.quality = False
    config.evaluate.class_accuracy = False
    return config
