"""Every default, each with its reason.  An experiment is this plus its difference.

Strings such as "cosine(shift=-2)" name an entry of a table in the code with its arguments; an
unknown name lists the known ones.
"""

from ml_collections import ConfigDict


def get_config() -> ConfigDict:
    """The defaults: a class-conditional U-Net on 28x28 digits, sized for a laptop."""
    config = ConfigDict()
    config.seed = 0  # of parameters, data order, noise and samples: one number makes the run

    config.profile = ""  # "20:24" writes a profiler's trace of those steps to profile/

    config.data = ConfigDict()
    config.data.name = "mnist5k"  # see scripts/prepare_data.py; toy2d:NAME needs no preparation
    config.data.split = "train"
    config.data.test_split = "test"  # held out for the judge and for likelihood
    config.data.dir = ""  # "" means $TFDS_DATA_DIR or ~/tensorflow_datasets
    config.data.image_size = (28, 28)  # resized and centre-cropped to this, (height, width)
    config.data.channels = 1  # 1 grey, 3 colour
    config.data.flip = False  # mirror half of the images; wrong for digits and letters
    config.data.crop = "center"  # or "random", "stretch": where a larger image is cut
    config.data.balance = ""  # regex of words by which captions of one thing's variants differ
    config.data.buckets = ()  # (height, width)s, a batch of one; or ("buckets(multiple=64)",)
    config.data.broken_records = 0  # records that cannot be read to replace by the next; then stop
    config.data.timeout = 600.0  # seconds without a batch after which the run stops; 0 for never
    config.data.num_classes = 10  # 0 trains without labels

    config.text = ConfigDict()
    config.text.encoder = ""  # of captions: "minilm(length=24)"; build.conditioning.TEXT_ENCODERS

    config.process = ConfigDict()
    config.process.schedule = "cosine()"  # which levels: core.schedules.SCHEDULES
    config.process.path = "vp"  # how they are scaled: core.process.PATHS
    config.process.shift = 0.0  # added to log-SNR; 2·log(64/size) for images beyond 64 pixels
    config.process.zero_terminal_snr = False  # rescale so that t = 1 is pure noise

    config.model = ConfigDict()
    config.model.name = "unet"  # models.MODELS; the fields below are its arguments
    config.model.autoencoder = ""  # folder of a first stage's run: diffusion in its latents
    config.model.target = "v()"  # what the network predicts: well conditioned at every level
    config.model.scale_input = "unit()"  # EDM's c_in: "edm(sigma_data=0.5)"
    config.model.time_input = "log_snr()"  # independent of the schedule, so samplers may change it
    config.model.unet = unet = ConfigDict()
    unet.channels = 32
    unet.channel_mults = (1, 2)
    unet.num_res_blocks = 1
    unet.attention_levels = ()  # 0 is the full size; the middle attends in any case
    unet.head_dim = 32
    unet.patch = 2  # the network works on 2x2 patches: a quarter of the cost
    unet.dropout = 0.0
    unet.conditioning = "scale_shift"
    unet.downsample = "conv"  # or "residual", ADM's: 1.6 times the time at this size
    unet.upsample = "conv"
    unet.dtype = "float32"  # "bfloat16" on accelerators; parameters and statistics stay float32
    unet.remat = "none"  # what the backward pass computes again, to save memory
    unet.scan_blocks = False  # one compiled block per level, for deep levels
    config.model.mlp = mlp = ConfigDict()  # for points in the plane
    mlp.width = 128
    mlp.depth = 3

    config.loss = ConfigDict()
    config.loss.terms = ("regression()",)  # summands: recipes.diffusion.TERMS
    config.loss.weight = "simple()"  # core.weighting.WEIGHTS
    config.loss.proposal = "stratified()"  # how t is drawn: core.proposals.PROPOSALS
    config.loss.condition_dropout = 0.1  # share of examples trained without condition, for guidance
    config.loss.noise_offset = 0.0  # noise common to all pixels of a channel: darker and lighter
    config.loss.learned_variance = False  # network also predicts a variance; add "variational()"

    config.train = ConfigDict()
    config.train.steps = 1500
    config.train.batch_size = 64  # over all devices
    config.train.accumulate = 1  # micro-batches a step: same result, less memory
    config.train.steps_per_call = 1  # steps per dispatch; more hides the host on fast devices
    config.train.log_every = 20
    config.train.sample_every = 500  # a grid of samples in samples/ and TensorBoard; 0 for never
    config.train.checkpoint_every = 500
    config.train.skip_nonfinite = 0  # steps of a loss that is not finite to pass over; then stop
    config.train.keep = 3  # newest checkpoints to keep
    config.train.snapshot_every = 0  # for ema = "power()": averages kept, for any width afterwards

    config.optimizer = ConfigDict()
    config.optimizer.learning_rate = 2e-3
    config.optimizer.schedule = "cosine()"  # decay after the warm-up: train.optimizer.SCHEDULES
    config.optimizer.warmup = 100  # steps; Adam's second moment needs them
    config.optimizer.b1 = 0.9
    config.optimizer.b2 = 0.99
    config.optimizer.eps = 1e-8
    config.optimizer.weight_decay = 0.0
    config.optimizer.clip = 1.0  # global gradient norm
    config.optimizer.groups = ()  # (parameters, factor of the rate[, one turn in how many])

    config.ema = "warmup(decay=0.995)"  # core.ema

    config.mesh = ConfigDict()  # devices along each axis; -1 takes what is left
    config.mesh.data = -1
    config.mesh.fsdp = 1
    config.mesh.tensor = 1
    config.mesh.sequence = 1  # parts of the tokens that attend: memory of large images
    config.mesh.split = "all"  # or "optimizer": parameters copied, moments and averages split
    config.mesh.offload = "none"  # "ema" or "optimizer": averages (and moments) wait on the host
    config.mesh.rules = ()  # (regex over parameter paths, axis per dimension): first match wins

    config.sampler = ConfigDict()
    config.sampler.solver = "ddim()"  # core.solvers.SOLVERS
    config.sampler.grid = "trailing"  # core.grids.GRIDS
    config.sampler.steps = 50
    config.sampler.guidance = "cfg()"  # how predictions are mixed: core.guidance.GUIDANCES
    config.sampler.guidance_scale = 2.0  # 1 is the plain conditional model; cfg_plus_plus: 0 to 1
    config.sampler.post = ()  # bounds on x0, as ("dynamic_threshold()",): core.guidance.POSTS
    config.sampler.contrast = 1.0  # of pixels about mid-grey; above 1 cuts faint grain off black
    config.sampler.reference = ""  # folder of the worse run that autoguidance() needs
    config.sampler.reference_params = "ema"  # of that run, as params; "ema(step=500)" is earlier
    config.sampler.n = 100  # images that --mode=sample draws
    config.sampler.batch_size = 100
    config.sampler.labels = ()  # () cycles through the classes
    config.sampler.prompts = ()  # of a model that reads text, in turn
    config.sampler.seed = 0
    config.sampler.params = "ema"  # or "params", or "posthoc(sigma_rel=0.08)" of the snapshots

    config.evaluate = ConfigDict()
    config.evaluate.n = 1000  # samples, and at most as many reference images as there are
    config.evaluate.quality = True  # Fréchet distance, KID, precision/recall, density/coverage
    config.evaluate.class_accuracy = True  # by a classifier trained on the data's training split
    config.evaluate.captions = 0  # of each split to draw and find again by a judge; 0 for none
    config.evaluate.likelihood = ""  # "variational_bound(n=64)" for bits/dim of the test split
    config.evaluate.likelihood_n = 200  # held-out images
    config.evaluate.likelihood_batch_size = 100
    config.evaluate.inception_weights = ""  # a local file makes the distance an FID
    return config
