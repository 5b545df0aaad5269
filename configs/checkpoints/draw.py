r"""Prompts to pixels by a Stable Diffusion checkpoint: 1.x, 2.x or XL, a folder or a single file.

python main.py --mode=sample --config=configs/checkpoints/draw.py --config.checkpoint=DIR \
        --config.prompt="a (red:1.3) house"
"""

from ml_collections import ConfigDict


def get_config() -> ConfigDict:
    config = ConfigDict()
    config.checkpoint = ""  # a folder with model_index.json, or a .safetensors file
    config.tokenizers = ()  # folders with tokenizers, which a single file lacks
    config.lora = ()  # files merged into the weights: ("a.safetensors", "b.safetensors:0.8")
    config.embeddings = ()  # files of new words: ("cat.safetensors", "<dog>=other.safetensors")
    config.prediction_type = ""  # of a single file of 2.x: "v_prediction" or "epsilon"
    config.variant = ""  # of the weights' files, such as "fp16"
    config.workdir = "runs/stable_diffusion"  # where pictures go, unless --workdir says

    config.prompt = ""
    config.prompts = ()  # several, in place of one
    config.negative_prompt = ""  # what not to show
    config.n = 1  # images of each prompt
    config.seed = 0  # of the first image; each next one adds 1
    config.image_size = ()  # (height, width); () is the size the model was trained on
    config.chunks = 0  # of 75 tokens each that are read of a prompt; 0 for all
    config.image = ""  # a picture to start from: image to image
    config.strength = 0.8  # how far that picture is noised: 1 leaves nothing of it
    config.control = ()  # ControlNets: ("canny", "pose:0.8"), folders or files with their scale
    config.control_image = ()  # the picture that each reads, such as edges or a pose
    config.batch_size = 4
    config.tile = 0  # decode in tiles of this many pixels, for large images; 0 for the whole
    config.dtype = "float32"  # of the U-Net and the text encoders; "bfloat16" on accelerators

    config.mesh = ConfigDict()  # as in configs/base.py
    config.mesh.data = -1
    config.mesh.fsdp = 1
    config.mesh.tensor = 1
    config.mesh.sequence = 1
    config.mesh.rules = ()

    config.sampler = ConfigDict()
    config.sampler.solver = ""  # core.solvers.SOLVERS; "" is that of the checkpoint's author
    config.sampler.grid = ""  # core.grids.GRIDS; "" likewise
    config.sampler.end = ""  # "clean", or "first": the table's first level, as diffusers' DDIM
    config.sampler.start = ""  # core.sampling.STARTS: "prior", or "noise" as in diffusers' Euler
    config.sampler.steps = 30
    config.sampler.guidance = "cfg()"
    config.sampler.guidance_scale = 7.5  # 1 or less is the prompt alone, at half the cost
    config.sampler.post = ()
    config.sampler.reference = ""
    return config
