"""The names that transformers' checkpoints have for the parameters of our text encoders."""

from __future__ import annotations

from collections.abc import Mapping

from diffusion_jax.convert.names import Row


def _layer_rows(theirs: str, parts: Mapping[str, tuple[str, str]]) -> tuple[Row, ...]:
    return tuple(
        Row(rf"layer_(\d+)/{part}", f"{theirs}.{name}", kind)
        for part, (name, kind) in parts.items()
    )


_CLIP_PARTS = {
    "norm_0": ("layer_norm1", "norm"),
    "attention/query": ("self_attn.q_proj", "dense"),
    "attention/key": ("self_attn.k_proj", "dense"),
    "attention/value": ("self_attn.v_proj", "dense"),
    "attention/out": ("self_attn.out_proj", "dense"),
    "norm_1": ("layer_norm2", "norm"),
    "mlp/in": ("mlp.fc1", "dense"),
    "mlp/out": ("mlp.fc2", "dense"),
}
CLIP_TEXT_ROWS = (
    Row("token", "text_model.embeddings.token_embedding", "table"),
    Row("position", "text_model.embeddings.position_embedding", "table"),
    Row("norm", "text_model.final_layer_norm", "norm"),
    Row("projection", "text_projection", "dense"),
    *_layer_rows("text_model.encoder.layers.{0}", _CLIP_PARTS),
)
CLIP_IMAGE_ROWS = (
    Row("", "vision_model.embeddings", "class_token"),
    Row("patch_conv", "vision_model.embeddings.patch_embedding", "conv"),
    Row("position", "vision_model.embeddings.position_embedding", "table"),
    # The missing "e" is theirs.
    Row("norm_in", "vision_model.pre_layrnorm", "norm"),
    Row("norm", "vision_model.post_layernorm", "norm"),
    Row("projection", "visual_projection", "dense"),
    *_layer_rows("vision_model.encoder.layers.{0}", _CLIP_PARTS),
)
_T5_PARTS = {
    "norm_0": ("layer.0.layer_norm", "norm"),
    "attention/query": ("layer.0.SelfAttention.q", "dense"),
    "attention/key": ("layer.0.SelfAttention.k", "dense"),
    "attention/value": ("layer.0.SelfAttention.v", "dense"),
    "attention/out": ("layer.0.SelfAttention.o", "dense"),
    "norm_1": ("layer.1.layer_norm", "norm"),
    "mlp/in": ("layer.1.DenseReluDense.wi", "dense"),
    "mlp/gate": ("layer.1.DenseReluDense.wi_0", "dense"),
    "mlp/up": ("layer.1.DenseReluDense.wi_1", "dense"),
    "mlp/out": ("layer.1.DenseReluDense.wo", "dense"),
}
T5_ROWS = (
    Row("token", "shared", "table"),
    Row("relative", "encoder.block.0.layer.0.SelfAttention.relative_attention_bias", "table"),
    Row("norm", "encoder.final_layer_norm", "norm"),
    *_layer_rows("encoder.block.{0}", _T5_PARTS),
)
_BERT_PARTS = {
    "attention/query": ("attention.self.query", "dense"),
    "attention/key": ("attention.self.key", "dense"),
    "attention/value": ("attention.self.value", "dense"),
    "attention/out": ("attention.output.dense", "dense"),
    "norm_0": ("attention.output.LayerNorm", "norm"),
    "mlp/in": ("intermediate.dense", "dense"),
    "mlp/out": ("output.dense", "dense"),
    "norm_1": ("output.LayerNorm", "norm"),
}
BERT_ROWS = (
    Row("token", "embeddings.word_embeddings", "table"),
    Row("position", "embeddings.position_embeddings", "table"),
    Row("segment", "embeddings.token_type_embeddings", "table"),
    Row("norm", "embeddings.LayerNorm", "norm"),
    Row("pooler", "pooler.dense", "dense"),
    *_layer_rows("encoder.layer.{0}", _BERT_PARTS),
)
