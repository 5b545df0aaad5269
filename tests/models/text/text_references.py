"""transformers' text encoders and CLIP's image tower with random weights, tiny or full size."""

import numpy as np

TINY = {
    "hidden_size": 48,
    "intermediate_size": 80,
    "num_hidden_layers": 3,
    "num_attention_heads": 4,
}
CLIP = {**TINY, "vocab_size": 60, "max_position_embeddings": 20, "projection_dim": 24}
T5 = {
    "vocab_size": 60,
    "d_model": 48,
    "d_kv": 10,
    "d_ff": 72,
    "num_layers": 3,
    "num_heads": 4,
    "relative_attention_num_buckets": 8,
    "relative_attention_max_distance": 16,
}

# name -> (config class, model class, entries of the config)
CASES = {
    "CLIP-L": ("CLIPTextConfig", "CLIPTextModel", {**CLIP, "eos_token_id": 57}),
    "OpenCLIP H": (
        "CLIPTextConfig",
        "CLIPTextModel",
        {**CLIP, "hidden_act": "gelu", "eos_token_id": 2},
    ),
    "OpenCLIP bigG": (
        "CLIPTextConfig",
        "CLIPTextModelWithProjection",
        {**CLIP, "hidden_act": "gelu", "eos_token_id": 2},
    ),
    "CLIP with added tokens": (
        "CLIPTextConfig",
        "CLIPTextModelWithProjection",
        {**CLIP, "eos_token_id": 57, "layer_norm_eps": 1e-3},
    ),
    "T5 v1.1": (
        "T5Config",
        "T5EncoderModel",
        {**T5, "feed_forward_proj": "gated-gelu", "tie_word_embeddings": False},
    ),
    "T5 v1.0": ("T5Config", "T5EncoderModel", {**T5, "layer_norm_epsilon": 1e-3}),
    "BERT": ("BertConfig", "BertModel", {**TINY, "vocab_size": 60, "max_position_embeddings": 20}),
    "CLIP image": (
        "CLIPVisionConfig",
        "CLIPVisionModelWithProjection",
        {**TINY, "image_size": 24, "patch_size": 6, "projection_dim": 24},
    ),
}


def build(transformers, torch, case):
    """The model of a case with random weights, no two parts alike, and its tensors."""
    torch.manual_seed(0)
    config, model, entries = CASES[case]
    theirs = getattr(transformers, model)(getattr(transformers, config)(**entries)).eval()
    with torch.no_grad():
        for name, parameter in theirs.named_parameters():
            scale = 0.3 if parameter.ndim == 1 or "embed" in name else parameter.shape[-1] ** -0.5
            parameter.add_(scale * torch.randn_like(parameter))
    return theirs, {name: x.numpy() for name, x in theirs.state_dict().items()}


def tokens(rng, batch=3, length=13):
    """Ids below 57, each text ended by 57 and padded after it; the mask of what is no padding."""
    ids = rng.integers(3, 57, (batch, length))
    mask = np.zeros((batch, length), np.int32)
    for i, end in enumerate(rng.integers(2, length, batch)):
        ids[i, end:] = 57
        mask[i, : end + 1] = 1
    return ids.astype(np.int32), mask
