"""Emoji at 32 pixels from their names: the smallest text-to-image model."""

from ml_collections import ConfigDict

from configs import base

PROMPTS = (
    "red heart", "green apple", "flag: Japan", "woman health worker dark skin tone",
    "grinning face", "cat face", "blue circle", "pizza", "full moon", "automobile",
)  # fmt: skip


def get_config() -> ConfigDict:
    config = base.get_config()
    config.data.name = "noto_emoji"
    config.data.image_size = (32, 32)
    config.data.channels = 3
    config.data.num_classes = 0
    config.text.encoder = "minilm(length=16)"
    config.model.name = "text_unet"
    config.model.text_unet = net = ConfigDict()
    net.channels = 48
    net.channel_mults = (1, 2, 3)
    net.num_res_blocks = 1
    net.patch = 2  # the network works on 2x2 patches: a quarter of the cost
    net.depths = (0, 1, 1)  # transformer layers; attention at full size would be most of a step
    net.mid_depth = 1
    net.heads = (1, 3, 4)
    net.conditioning = "scale_shift"
    net.group_channels = 4
    net.dtype = "float32"
    net.remat = "none"
    config.train.steps = 3200
    config.train.batch_size = 32  # at this cost twice the steps are worth more than the batch
    config.train.checkpoint_every = 800
    config.train.sample_every = 1600
    config.optimizer.learning_rate = 1.5e-3
    config.ema = "warmup(decay=0.999)"
    config.sampler.prompts = PROMPTS
    config.sampler.guidance_scale = 3.0
    config.sampler.n = 50
    config.sampler.batch_size = 50
    config.evaluate.class_accuracy = False
    return config
