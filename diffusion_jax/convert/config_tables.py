"""The fields of the config.json files of diffusers and transformers that are read here."""

from __future__ import annotations

from diffusion_jax.convert.config_fields import (
    FLAG,
    NAME,
    NUMBER,
    POSITIVE,
    Equivalent,
    Fields,
    Followed,
    Kind,
    Only,
    one_or_several,
    optional,
    several,
    whole,
)

_WIDTH, _COUNT, _LEVELS = whole(1, 2**16), whole(1, 64), 8
_AVERAGE = Equivalent("of the moving average that the weights are")
_TRAINING = Equivalent("of training alone")
_GENERATION = Equivalent("of models that write text")
_OUTPUTS = Equivalent("of what the library returns")
_NOTE = Equivalent("says where the file comes from")
_NOT_READ = Equivalent("a part that changes no picture that is drawn here, and is not read")

# diffusers' EMAModel writes these into the config of the weights that it saves.
_EMA: Fields = {
    name: _AVERAGE
    for name in (
        "decay", "min_decay", "optimization_step", "update_after_step", "use_ema_warmup",
        "inv_gamma", "power",
    )
}  # fmt: skip

# What a U-Net and a ControlNet share.
_ENCODER: Fields = {
    "in_channels": Followed(4, whole(1, 1024)),
    "flip_sin_to_cos": Followed(True, FLAG),
    "freq_shift": Followed(0, NUMBER),
    "down_block_types": Followed(
        (*("CrossAttnDownBlock2D",) * 3, "DownBlock2D"), several(NAME, _LEVELS)
    ),
    "block_out_channels": Followed((320, 640, 1280, 1280), several(_WIDTH, _LEVELS)),
    "layers_per_block": Followed(2, one_or_several(_COUNT, _LEVELS)),
    "downsample_padding": Followed(1, whole(0, 1)),
    "norm_num_groups": Followed(32, _WIDTH),
    "norm_eps": Followed(1e-5, POSITIVE),
    "cross_attention_dim": Followed(1280, _WIDTH),
    "transformer_layers_per_block": Followed(1, one_or_several(_COUNT, _LEVELS)),
    "attention_head_dim": Followed(8, one_or_several(_WIDTH, _LEVELS)),
    "use_linear_projection": Followed(False, FLAG),
    "addition_time_embed_dim": Followed(None, optional(_WIDTH)),
    "num_class_embeds": Followed(None, optional(_WIDTH)),
    "projection_class_embeddings_input_dim": Followed(None, optional(_WIDTH)),
    "addition_embed_type": Only((None, "text_time")),
    "mid_block_type": Only(("UNetMidBlock2DCrossAttn",)),
    "only_cross_attention": Only((False,)),
    "mid_block_scale_factor": Only((1,)),
    "act_fn": Only(("silu", "swish")),
    "encoder_hid_dim": Only((None,)),
    "encoder_hid_dim_type": Only((None,)),
    "num_attention_heads": Only((None,)),
    "class_embed_type": Only((None,)),
    "resnet_time_scale_shift": Only(("default",)),
    "upcast_attention": Equivalent("attention's softmax is always in float32"),
    "addition_embed_type_num_heads": Equivalent("of kinds of addition_embed_type that are refused"),
    **_EMA,
}

UNET: Fields = {
    "_class_name": Only(("UNet2DConditionModel",)),
    **_ENCODER,
    "out_channels": Followed(4, whole(1, 1024)),
    "up_block_types": Followed(("UpBlock2D", *("CrossAttnUpBlock2D",) * 3), several(NAME, _LEVELS)),
    "sample_size": Followed(None, optional(one_or_several(whole(1, 4096), 2))),
    "dropout": Followed(0.0, Kind("from 0 to 1", lambda x: type(x) in (int, float) and 0 <= x < 1)),
    "time_embedding_dim": Followed(None, optional(_WIDTH)),
    "time_cond_proj_dim": Followed(None, optional(_WIDTH)),
    "center_input_sample": Only((False,)),
    "mid_block_only_cross_attention": Only((None, False)),
    "reverse_transformer_layers_per_block": Only((None,)),
    "dual_cross_attention": Only((False,)),
    "resnet_skip_time_act": Only((False,)),
    "resnet_out_scale_factor": Only((1.0,)),
    "time_embedding_type": Only(("positional",)),
    "time_embedding_act_fn": Only((None,)),
    "timestep_post_act": Only((None,)),
    "conv_in_kernel": Only((3,)),
    "conv_out_kernel": Only((3,)),
    "attention_type": Only(("default",)),
    "class_embeddings_concat": Only((False,)),
    "cross_attention_norm": Only((None,)),
}
"""diffusers' UNet2DConditionModel."""

CONTROLNET: Fields = {
    "_class_name": Only(("ControlNetModel",)),
    **_ENCODER,
    "conditioning_channels": Followed(3, whole(1, 64)),
    "conditioning_embedding_out_channels": Followed((16, 32, 96, 256), several(_WIDTH, _LEVELS)),
    "controlnet_conditioning_channel_order": Only(("rgb",)),
    "global_pool_conditions": Only((False,)),
}
"""diffusers' ControlNetModel."""

_AUTOENCODER: Fields = {
    "in_channels": Followed(3, whole(1, 64)),
    "out_channels": Followed(3, whole(1, 64)),
    "down_block_types": Followed(("DownEncoderBlock2D",), several(NAME, _LEVELS)),
    "up_block_types": Followed(("UpDecoderBlock2D",), several(NAME, _LEVELS)),
    "block_out_channels": Followed((64,), several(_WIDTH, _LEVELS)),
    "layers_per_block": Followed(1, _COUNT),
    "norm_num_groups": Followed(32, _WIDTH),
    "scaling_factor": Followed(0.18215, POSITIVE),
    "mid_block_add_attention": Followed(True, FLAG),
    "act_fn": Only(("silu", "swish")),
    "sample_size": Equivalent("the size in pixels follows from the U-Net's and the levels"),
    "force_upcast": Equivalent("the autoencoder computes in float32"),
    **_EMA,
}

VAE: Fields = {
    "_class_name": Only(("AutoencoderKL",)),
    **_AUTOENCODER,
    "latent_channels": Followed(4, whole(1, 1024)),
    "shift_factor": Followed(None, optional(NUMBER)),
    "latents_mean": Followed(None, optional(several(NUMBER, 1024))),
    "latents_std": Followed(None, optional(several(POSITIVE, 1024))),
    "use_quant_conv": Followed(True, FLAG),
    "use_post_quant_conv": Followed(True, FLAG),
}
"""diffusers' AutoencoderKL."""

VQ: Fields = {
    "_class_name": Only(("VQModel",)),
    **_AUTOENCODER,
    "latent_channels": Followed(3, whole(1, 1024)),
    "num_vq_embeddings": Followed(256, whole(1, 2**20)),
    "vq_embed_dim": Followed(None, optional(_WIDTH)),
    "norm_type": Only(("group",)),
    "lookup_from_codebook": Only((False,)),
}
"""diffusers' VQModel."""

CLIP_TEXT: Fields = {
    "model_type": Only(("clip_text_model",)),
    "architectures": Followed(None, optional(several(NAME))),
    "vocab_size": Followed(49408, whole(1, 2**22)),
    "hidden_size": Followed(512, _WIDTH),
    "intermediate_size": Followed(2048, _WIDTH),
    "projection_dim": Followed(512, optional(whole(0, 2**16))),
    "num_hidden_layers": Followed(12, whole(1, 128)),
    "num_attention_heads": Followed(8, _WIDTH),
    "max_position_embeddings": Followed(77, _WIDTH),
    "hidden_act": Followed("quick_gelu", NAME),
    "layer_norm_eps": Followed(1e-5, POSITIVE),
    "eos_token_id": Followed(49407, optional(whole(0, 2**22))),
    "bos_token_id": Equivalent("the tokenizer frames texts"),
    "pad_token_id": Equivalent("the tokenizer pads texts"),
    **dict.fromkeys(("is_decoder", "add_cross_attention", "is_encoder_decoder"), Only((False,))),
    "pruned_heads": Only(({},)),
    "chunk_size_feed_forward": Equivalent("the same numbers, computed in parts"),
    **dict.fromkeys(
        ("attention_dropout", "dropout", "initializer_range", "initializer_factor",
         "gradient_checkpointing", "tie_word_embeddings", "problem_type", "finetuning_task",
         "cross_attention_hidden_size", "tie_encoder_decoder"), _TRAINING,
    ),
    **dict.fromkeys(
        ("torch_dtype", "dtype", "transformers_version", "tokenizer_class", "prefix",
         "task_specific_params", "use_bfloat16", "tf_legacy_loss", "torchscript",
         "attn_implementation"), _NOTE,
    ),
    **dict.fromkeys(
        ("output_hidden_states", "output_attentions", "output_scores", "return_dict",
         "return_dict_in_generate", "use_cache", "id2label", "label2id"), _OUTPUTS,
    ),
    **dict.fromkeys(
        ("bad_words_ids", "begin_suppress_tokens", "decoder_start_token_id",
         "diversity_penalty", "do_sample", "early_stopping", "encoder_no_repeat_ngram_size",
         "exponential_decay_length_penalty", "forced_bos_token_id", "forced_eos_token_id",
         "length_penalty", "max_length", "min_length", "no_repeat_ngram_size",
         "num_beam_groups", "num_beams", "num_return_sequences", "remove_invalid_values",
         "repetition_penalty", "sep_token_id", "suppress_tokens", "temperature", "top_k",
         "top_p", "typical_p"), _GENERATION,
    ),
}  # fmt: skip
"""transformers' CLIPTextModel, with the fields that its older releases wrote."""


def _part(*classes: str) -> Followed:
    """A part of a pipeline: [library, class], or absent."""
    fits = lambda x: isinstance(x, (list, tuple)) and len(x) == 2 and x[1] in classes
    return Followed(None, Kind(f"[library, {' or '.join(map(repr, classes))}]", fits))


_ANY_PART = Kind("[library, class]", lambda x: isinstance(x, (list, tuple)) and len(x) == 2
                 and all(type(name) is str for name in x))  # fmt: skip
_TOKENIZER = _part("CLIPTokenizer", "CLIPTokenizerFast")
_PIPELINE: Fields = {
    "vae": _part("AutoencoderKL"),
    "text_encoder": _part("CLIPTextModel"),
    "tokenizer": _TOKENIZER,
    "unet": _part("UNet2DConditionModel"),
    "scheduler": Followed(None, _ANY_PART),
    "safety_checker": Equivalent("pictures are not judged here; nothing reads it"),
    "requires_safety_checker": Equivalent("pictures are not judged here"),
    "feature_extractor": _NOT_READ,
    "image_encoder": Equivalent("for pictures as prompts (IP-Adapter), which are not read"),
}
SD: Fields = _PIPELINE
"""model_index.json of diffusers' StableDiffusionPipeline and LatentConsistencyModelPipeline."""

SDXL: Fields = {
    **_PIPELINE,
    "text_encoder_2": _part("CLIPTextModelWithProjection"),
    "tokenizer_2": _TOKENIZER,
    "force_zeros_for_empty_prompt": Followed(True, FLAG),
    "add_watermarker": Equivalent("no watermark is drawn here, invisible as it would be"),
    "requires_aesthetics_score": Only((False,)),
}
"""model_index.json of diffusers' StableDiffusionXLPipeline."""

TABLES: dict[str, Fields] = {
    "unet/config.json": UNET,
    "vae/config.json": VAE,
    "vae/config.json of a VQModel": VQ,
    "config.json of a ControlNet": CONTROLNET,
    "text_encoder/config.json": CLIP_TEXT,
    "model_index.json": SD,
    "model_index.json of SDXL": SDXL,
}
"""By file, as docs/checkpoints.md lists them."""
