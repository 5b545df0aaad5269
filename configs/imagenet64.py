"""Class-conditional ImageNet at 64 pixels: ADM of Dhariwal & Nichol 2021, 296 M parameters.

Sizes and training are those of their table 12, the diffusion that of their published 64x64 model.
Prepare the images as the set ``image_folder/imagenet``, one folder a class.
"""

from ml_collections import ConfigDict

from configs import base


def get_config() -> ConfigDict:
    config = base.get_config()
    config.data.name = "image_folder/imagenet"
    config.data.image_size = (64, 64)
    config.data.channels = 3
    config.data.flip = True
    config.data.num_classes = 1000
    config.process.schedule = "cosine_table()"
    config.model.update(target="eps()", time_input="discrete()")
    config.model.unet.update(
        channels=192, channel_mults=(1, 2, 3, 4), num_res_blocks=3,
        attention_levels=(1, 2, 3), head_dim=64, patch=1, dropout=0.1,
        downsample="residual", upsample="residual", dtype="bfloat16",
    )  # fmt: skip
    config.loss.update(
        terms=("regression()", "variational()"), learned_variance=True,
        proposal="uniform()", condition_dropout=0.0,
    )  # fmt: skip
    config.train.update(
        steps=540_000, batch_size=2048, log_every=100, sample_every=10_000, checkpoint_every=10_000
    )
    config.optimizer.update(
        learning_rate=3e-4, schedule="constant()", warmup=0, b2=0.999, clip=0.0
    )  # fmt: skip
    config.ema = "constant(decay=0.9999)"
    config.sampler.update(
        solver="ddpm(variance='learned_range')", grid="linspace", steps=250, guidance_scale=1.0,
        n=256, batch_size=256,
    )  # fmt: skip
    config.evaluate.update(n=50_000, class_accuracy=False)
    return config
