"""CIFAR-10 for accelerators: --config=configs/cifar10.py:ddpm (default) or :edm.

ddpm is Ho et al. 2020, appendix B (35.7 M parameters, 800,000 steps); edm is the unconditional
DDPM++ setup of Karras et al. 2022, tables 7 and 8, without its augmentation.
"""

from ml_collections import ConfigDict

from configs import base


def get_config(setup: str = "ddpm") -> ConfigDict:
    if setup not in SETUPS:
        raise ValueError(f"configs/cifar10.py:{setup} is unknown; known are {', '.join(SETUPS)}")
    config = base.get_config()
    config.data.name = "tfds:cifar10"
    config.data.image_size = (32, 32)
    config.data.channels = 3
    config.data.flip = True
    config.data.num_classes = 0
    config.loss.condition_dropout = 0.0
    config.train.log_every = 100
    config.train.sample_every = 10_000
    config.train.checkpoint_every = 10_000
    config.sampler.guidance_scale = 1.0
    config.evaluate.n = 50_000
    config.evaluate.class_accuracy = False
    unet = config.model.unet
    unet.patch = 1
    unet.channels = 128
    unet.attention_levels = (1,)
    unet.head_dim = 256
    unet.dtype = "bfloat16"
    SETUPS[setup](config)
    return config


def _ddpm(config: ConfigDict) -> None:
    config.process.schedule = "linear()"
    config.model.target = "eps()"
    config.model.time_input = "discrete()"
    config.model.unet.update(
        channel_mults=(1, 2, 2, 2), num_res_blocks=2, dropout=0.1,
        conditioning="additive",
    )  # fmt: skip
    config.loss.proposal = "uniform()"
    config.train.update(steps=800_000, batch_size=128)
    config.optimizer.update(learning_rate=2e-4, schedule="constant()", warmup=5000, b2=0.999)
    config.ema = "constant(decay=0.9999)"
    config.sampler.update(solver="ddpm(variance='fixed_large')", steps=1000)


def _edm(config: ConfigDict) -> None:
    config.process.update(schedule="edm()", path="ve")
    config.model.update(target="edm()", scale_input="edm()", time_input="edm()")
    config.model.unet.update(
        channel_mults=(2, 2, 2), num_res_blocks=4, dropout=0.13,
        downsample="residual", upsample="residual",
    )  # fmt: skip
    config.loss.update(weight="edm()", proposal="log_normal()")
    config.train.update(steps=390_625, batch_size=512)  # 200 million images
    config.optimizer.update(
        learning_rate=1e-3, schedule="constant()", warmup=19_531, b2=0.999, clip=1e9
    )
    config.ema = "halflife(steps=977)"  # 500,000 images
    config.sampler.update(solver="ddim()", steps=64)


SETUPS = {"ddpm": _ddpm, "edm": _edm}
