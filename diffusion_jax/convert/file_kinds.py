"""What a file of weights is, told by the names and shapes of its tensors, in a few words.

For the sentence that refuses it where something else is wanted.
"""

from __future__ import annotations

import re
from collections.abc import Iterator, Mapping

Shapes = Mapping[str, tuple[int, ...]]


def described(shapes: Shapes, metadata: Mapping[str, str] | None = None) -> str:
    """Such as "a LoHa of Flux" or "a ControlNet"; "" if it is of no kind that is known.

    Args:
        shapes: tensor name -> shape.
        metadata: texts of the header, in which trainers name the base model.
    """
    names = "\n".join(shapes)
    adapter = next((kind for pattern, kind in _ADAPTERS if re.search(pattern, names)), "")
    if adapter:
        base = _model_of(names, shapes) or _told(metadata or {})
        return f"{adapter} of {base}" if base else adapter
    whole = next((kind for pattern, kind in _WHOLES if re.search(pattern, names)), "")
    if whole:
        return whole
    small = all(len(shape) <= 2 for shape in shapes.values())
    if shapes and len(shapes) <= 2 and small:
        return "an embedding of a word (textual inversion), for config.embeddings"
    return ""


def _model_of(names: str, shapes: Shapes) -> str:
    """The model that an adapter is of."""
    model = next((model for pattern, model in _MODELS if re.search(pattern, names)), "")
    return model or _BY_WIDTH.get(next(_text_widths(shapes), 0), "")


def _text_widths(shapes: Shapes) -> Iterator[int]:
    """Features of the text that cross-attention's keys and values read."""
    for name, shape in shapes.items():
        reads = re.search(r"attn2[._](processor[._])?to_[kv]", name)
        if (
            reads
            and len(shape) > 1
            and re.search(r"lora_A|lora_down|\.down\.weight|hada_w\d_b|\.diff$", name)
        ):
            yield shape[1]


def _told(metadata: Mapping[str, str]) -> str:
    """What a trainer says of the base model, in its words."""
    fields = ("modelspec.architecture", "ss_base_model_version")
    said = next((metadata[field] for field in fields if metadata.get(field)), "")
    return repr(said[:60]) if said else ""


_ADAPTERS = (
    (r"(?m)^lora_controlnet$", "a Control-LoRA, a ControlNet as differences"),
    (r"\.a1\.weight(\n|$)", "a GLoRA, a kind that is not read,"),
    (r"\.(oft_blocks|oft_diag|oft_R|boft_\w+)", "an OFT, a kind that is not read,"),
    (r"vera_lambda", "a VeRA, a kind that is not read,"),
    (r"\.hada_w1", "a LoHa"),
    (r"\.lokr_w", "a LoKr"),
    (r"\.on_input|\.ia3_l", "an (IA)^3"),
    (r"\.dora_scale|lora_magnitude_vector", "a DoRA"),
    (r"ip_adapter\.|image_proj\.", "an IP-Adapter"),
    (r"lora[_.](A|B|down|up|mid)|_lora\.(down|up)|lora_linear_layer", "a LoRA"),
    (r"\.(w_norm|diff)(\n|$)", "a full difference"),
    (r"/kernel\.(down|up)(\n|$)", "a LoRA of a run of one's own"),
)
# The more special ones first.
_MODELS = (
    (r"double_stream_modulation|single_stream_modulation", "Flux 2"),
    (r"individual_token_refiner", "HunyuanVideo"),
    (r"double_blocks|single_blocks|single_transformer_blocks", "Flux"),
    (r"joint_blocks|ff_context", "Stable Diffusion 3"),
    (r"img_mlp|txt_mlp|img_mod|txt_mod", "Qwen-Image"),
    (r"blocks[._]\d+[._](self_attn|cross_attn)[._](q|k|v|o)\b|blocks[._]\d+[._]ffn", "Wan"),
    (r"layers[._]\d+[._](attention[._](to_|qkv|out)|adaLN_modulation|feed_forward)", "Z-Image"),
    (r"add_q_proj", "a transformer of two streams"),
    (r"lora_te2_|text_encoder_2\.|transformer_blocks[._]9", "Stable Diffusion XL"),
)
_BY_WIDTH = {768: "Stable Diffusion 1", 1024: "Stable Diffusion 2", 2048: "Stable Diffusion XL"}
_WHOLES = (
    (r"control_model\.|input_hint_block|controlnet_(cond_embedding|down_blocks)",
     "a ControlNet, for config.edits"),
    (r"(?m)^(adapter\.)?body\.\d+\.(resnets\.\d+\.)?(block1|in_conv)", "a T2I-Adapter"),
    (r"motion_modules", "a motion module of AnimateDiff"),
    (r"model\.diffusion_model\.(double|single)_blocks", "a checkpoint of Flux"),
    (r"model\.diffusion_model\.joint_blocks", "a checkpoint of Stable Diffusion 3"),
    (r"model\.diffusion_model\.input_blocks",
     "a whole checkpoint of Stable Diffusion, for config.checkpoint"),
    (r"(?m)^(double|single)_blocks\.\d+\.", "the transformer of Flux"),
    (r"(?m)^joint_blocks\.\d+\.", "the transformer of Stable Diffusion 3"),
    (r"(?m)^(down_blocks\.0\.resnets|input_blocks)\b", "the weights of a U-Net alone"),
    (r"(?m)^(first_stage_model\.)?(encoder|decoder)\.(conv_in|mid|mid_block|down|up)\b",
     "the weights of an autoencoder (VAE) alone"),
    (r"text_model\.encoder\.layers|transformer\.resblocks",
     "the weights of a text encoder alone"),
    (r"(?m)^(emb_params|clip_l|clip_g)$",
     "an embedding of a word (textual inversion), for config.embeddings"),
    (r"conv_first\.weight|(?m:^model\.0\.weight$)", "an upscaler"),
)  # fmt: skip
