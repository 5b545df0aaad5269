"""What all students share; each of configs/distill/*.py names a method.

Data, network, process and loss are the teacher's: a distillation has no fields for these.
"""

from ml_collections import ConfigDict

from configs import base


def get_config() -> ConfigDict:
    defaults, config = base.get_config(), ConfigDict()
    config.teacher = ""  # folder of the teacher's run
    config.student = ""  # folder of another student's run to start from; "" starts from the teacher
    config.distill = "easy()"  # one of build.few_step.methods.METHODS
    for section in ("seed", "profile", "train", "optimizer", "mesh", "sampler", "evaluate"):
        config[section] = defaults[section]
    config.train.steps = 1000
    config.train.sample_every = 250
    config.train.checkpoint_every = 250
    config.optimizer.learning_rate = (
        1e-3  # smaller than the teacher's: parameters are trained already
    )
    config.optimizer.schedule = "cosine()"  # training noise that is left shows as grain
    config.optimizer.warmup = 50
    config.ema = "warmup(decay=0.99)"
    config.sampler.solver = "jump(gamma=1.0)"  # to clean data, then noised to the next level
    config.sampler.steps = 2
    config.sampler.guidance_scale = 1.0  # for students that are conditioned on it; others ignore it
    return config
