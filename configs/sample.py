r"""Draw from anything: a run, a release, a student, a Stable Diffusion folder or .safetensors file.

python main.py --mode=sample --workdir=runs/mnist --config.labels="(3, 7)"
python main.py --mode=sample --config.checkpoint=DIR --config.prompt="a (red:1.3) house"

What is left open here, "" or None or (), is the source's own: of a run its config's, of a
checkpoint its author's.
"""

from ml_collections import ConfigDict
from ml_collections.config_dict import placeholder


def get_config() -> ConfigDict:
    config = ConfigDict()
    config.checkpoint = ""  # a path, or a name in the hub's cache; "" is --workdir
    config.tokenizers = ()  # folders with tokenizers, which a single file lacks
    config.lora = ()  # files merged into the weights: ("a.safetensors", "b.safetensors:0.8")
    config.embeddings = ()  # files of new words: ("cat.safetensors", "<dog>=other.safetensors")
    config.prediction_type = ""  # of a single file of 2.x: "v_prediction" or "epsilon"
    config.variant = ""  # of the weights' files, such as "fp16"
    config.workdir = "runs/sample"  # where pictures go, unless --workdir says

    config.prompt = ""
    config.prompts = ()  # several, in turn, in place of one
    config.negative_prompt = ""  # what not to show
    config.labels = ()  # of a model of classes, in turn; () for all
    config.n = 0  # images in all; 0 is one of each prompt
    config.seed = placeholder(int)  # of the first image; each next one adds 1; -1 is any
    config.image_size = ()  # (height, width); () is the size the model was trained on
    config.chunks = 0  # of 75 tokens each that are read of a prompt; 0 for all
    config.clip_skip = 0  # layers before the usual one to read text at; 1 is A1111's 2
    config.edits = ()  # build.edits.EDITS, in any order: ("image_to_image('a.png', 0.6)",)
    config.again = ""  # a picture drawn before, to draw anew as it was
    config.batch_size = 0  # images at once; 0 is the source's own
    config.tile = 0  # decode in tiles of this many pixels, for large images; 0 for the whole
    config.dtype = "float32"  # of a checkpoint's U-Net and text encoders; or "bfloat16"

    config.data = ConfigDict()
    config.data.dir = ""  # of a run's data, as in configs/base.py

    config.mesh = ConfigDict()  # as in configs/base.py
    config.mesh.data = -1
    config.mesh.fsdp = 1
    config.mesh.tensor = 1
    config.mesh.sequence = 1
    config.mesh.rules = ()

    config.sampler = ConfigDict()
    config.sampler.solver = ""  # core.solvers.SOLVERS
    config.sampler.grid = ""  # core.grids.GRIDS
    # "clean", or "first": the table's first level, as diffusers' DDIM; "solver_..." by its own step
    config.sampler.end = ""
    config.sampler.start = ""  # core.sampling.STARTS: "prior", or "noise" as in diffusers' Euler
    config.sampler.steps = placeholder(int)
    config.sampler.guidance = ""  # core.guidance.GUIDANCES
    config.sampler.guidance_scale = placeholder(float)  # of a checkpoint, 1 or less is none
    config.sampler.post = ()  # bounds on x0: core.guidance.POSTS
    config.sampler.contrast = placeholder(float)  # of pixels about mid-grey
    config.sampler.reference = ""  # folder of the worse run that autoguidance() needs
    config.sampler.reference_params = "ema"
    config.sampler.params = "ema"  # of a run: or "params", or "posthoc(sigma_rel=0.08)"
    return config
