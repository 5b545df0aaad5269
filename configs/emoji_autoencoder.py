"""The first stage of latent diffusion on emoji: 64x64 pixels <-> 16x16 latents of 4 channels."""

from ml_collections import ConfigDict

from configs import base


def get_config() -> ConfigDict:
    config = base.get_config()
    config.data.name = "noto_emoji"
    config.data.image_size = (64, 64)
    config.data.channels = 3
    config.data.flip = True
    config.data.num_classes = 0
    config.model.name = "autoencoder_kl"
    config.model.autoencoder_kl = net = ConfigDict()
    net.channels = 16  # 32 is 3 times the cost of a step
    net.channel_mults = (1, 2, 4)
    net.blocks = 1
    net.groups = 4  # 32 would be one channel a group, which norms colours away
    net.latent_channels = 4
    config.first_stage = stage = ConfigDict()  # build.first_stage's tables
    stage.pixel = "l2()"  # l1 leaves red and green brown for the first thousand steps
    stage.perceptual = "efficientnet(weight=0.02)"  # "lpips(weights='vgg.safetensors')"
    stage.bottleneck = "kl(weight=1e-6)"  # "vq()" or "vq_ema()" for autoencoder_vq
    stage.adversary = "hinge(weight=0.5, start=900, channels=16, halvings=2)"  # "" for none
    config.optimizer.learning_rate = 2e-3
    config.optimizer.groups = (("autoencoder", 1.0), ("discriminator", 0.5))
    config.train.steps = 1200
    config.train.batch_size = 16
    config.train.sample_every = 200
    config.train.checkpoint_every = 200
    config.ema = "warmup(decay=0.99)"
    config.sampler.n = 32
    config.evaluate.class_accuracy = False
    return config
