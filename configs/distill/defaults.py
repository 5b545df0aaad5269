"""What students of a trained run share; configs/distill/*.py name a method each.

Data, network, process and loss are the teacher's: a distillation has no field of these.
"""

from ml_collections import ConfigDict

from configs import base


def get_config() -> ConfigDict:
    defaults, config = base.get_config(), ConfigDict()
    config.teacher = ""  # folder of the teacher's run
    config.student = ""  # folder of another student's run to start from; "" starts from the teacher
    config.distill = "easy()"  # build.few_step.distillation.METHODS
    for section in ("seed", "profile", "train", "optimizer", "mesh", "sampler", "evaluate"):
        config[section] = defaults[section]
    config.train.steps = 1000
    config.train.sample_every = 250
    config.train.checkpoint_every = 250
    config.optimizer.learning_rate = 1e-3  # from trained parameters: smaller than theirs was
    config.optimizer.schedule = "cosine()"  # what noise of training is left shows as grain
    config.optimizer.warmup = 50
    config.ema = "warmup(decay=0.99)"
    config.sampler.solver = "jump(gamma=1.0)"  # to clean data, then noised to the next level
    config.sampler.steps = 2
    config.sampler.guidance_scale = 1.0  # of students that are told it; others ignore it
    return config
