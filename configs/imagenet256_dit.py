"""DiT-XL/2 on the latents of 256-pixel ImageNet (Peebles & Xie 2023, table 1): for slices of TPUs.

As it stands it describes latents of 32x32x4 without their autoencoder, which is all that compiling
needs.  To train: prepare a set of latents by scripts/encode_latents.py, and give
--config.data.name=latents/NAME --config.model.autoencoder=FOLDER
--config.data.image_size="(256, 256)" --config.data.channels=3.
"""

from ml_collections import ConfigDict

from configs import base


def get_config() -> ConfigDict:
    config = base.get_config()
    config.data.name = "latents/imagenet2012"
    config.data.image_size = (32, 32)
    config.data.channels = 4
    config.data.num_classes = 1000
    config.process.schedule = "linear()"
    config.model.target = "eps()"
    config.model.time_input = "discrete()"
    config.model.name = "dit"
    config.model.dit = net = ConfigDict()
    net.width = 1152
    net.depth = 28
    net.heads = 16
    net.patch = 2
    net.dtype = "bfloat16"
    net.remat = "none"
    config.loss.learned_variance = True
    config.loss.terms = ("regression()", "variational()")
    config.loss.proposal = "uniform()"
    config.train.steps = 400_000
    config.train.batch_size = 256
    config.train.sample_every = 10_000
    config.train.checkpoint_every = 5_000
    config.optimizer.learning_rate = 1e-4
    config.optimizer.schedule = "constant()"
    config.optimizer.warmup = 0
    config.optimizer.b2 = 0.999
    config.ema = "constant(decay=0.9999)"
    config.mesh.fsdp = -1
    config.mesh.data = 1
    config.sampler.solver = "ddpm(variance='learned_range')"
    config.sampler.grid = "linspace"
    config.sampler.steps = 250
    config.sampler.guidance_scale = 1.5
    config.evaluate.class_accuracy = False
    return config
