r"""A LoRA of whatever draws, from a few pictures; of a checkpoint also DreamBooth's.

python main.py --config=configs/checkpoints/lora.py --config.checkpoint=DIR \
        --config.data.name=image_folder/pets --config.prompt="a photo of sks cat" --workdir=W
python main.py --mode=sample --workdir=W --config.prompt="sks cat on the moon"
python main.py --mode=sample --config.checkpoint=DIR --config.lora="('W/lora.safetensors',)" \
        --config.prompt="sks cat on the moon"
"""

from ml_collections import ConfigDict

from configs import base, sample


def get_config() -> ConfigDict:
    config, defaults = sample.get_config(), base.get_config()
    for field in ("edits", "again"):
        del config[field]
    config.seed = 0
    for section in ("profile", "data", "loss", "train", "optimizer", "ema", "mesh"):
        config[section] = defaults[section]
    config.workdir = "runs/lora"
    config.prompt = ""  # of every picture; "" reads the captions of the data
    config.prompts = ()  # of the samples on the way; () is the prompt, captions need some
    config.model = ConfigDict({"name": "text_unet"})  # whose rules split the weights

    # What is trained: build.checkpoint.tuning.TUNINGS, such as "lora(rank=4, alpha=8)".
    config.tuning = "lora(rank=8)"

    config.prior = ConfigDict()  # DreamBooth's prior preservation
    config.prior.data = ""  # pictures of the same kind, such as "image_folder/cats"
    config.prior.prompt = ""  # of them: "a photo of a cat"
    config.prior.weight = 1.0

    config.data.name = ""  # such as "image_folder/pets"
    config.data.channels = 3
    config.data.num_classes = 0
    config.loss.proposal = "uniform()"  # of the levels of the checkpoint's table
    config.loss.condition_dropout = 0.0
    config.loss.noise_offset = 0.0  # 0.05 to 0.1 for very dark and very bright pictures
    config.train.steps = 500
    config.train.batch_size = 1
    config.train.log_every = 10
    config.train.sample_every = 100
    config.train.checkpoint_every = 100
    config.optimizer.learning_rate = 1e-4
    config.optimizer.schedule = "constant()"
    config.optimizer.warmup = 0
    config.optimizer.b2 = 0.999
    config.optimizer.weight_decay = 0.01
    config.ema = "warmup(decay=0.99)"
    return config
