"""The configuration of CLIP's text encoders."""

from __future__ import annotations

from typing import Literal

from pydantic import (
    Field,
    model_validator,
)

from undust.networks.config.base import (
    Length,
    LengthOr0,
    NetworkConfig,
    Token,
)


class TextEncoderConfig(NetworkConfig):
    """The fields of transformers' CLIPTextConfig, with its defaults.

    architectures: whether the end token's state is projected to CLIP's shared space.
    """

    # Keys that versions of transformers write into every configuration and no text encoder uses:
    # of loading and calling a model, of decoders and of text generation.
    housekeeping = frozenset(
        """transformers_version dtype torch_dtype return_dict output_hidden_states output_attentions
        chunk_size_feed_forward is_encoder_decoder id2label label2id problem_type
        use_cache use_bfloat16 torchscript tf_legacy_loss gradient_checkpointing tokenizer_class
        finetuning_task task_specific_params tie_word_embeddings tie_encoder_decoder
        is_decoder add_cross_attention cross_attention_hidden_size decoder_start_token_id
        sep_token_id prefix max_length min_length do_sample early_stopping num_beams
        num_beam_groups diversity_penalty temperature top_k top_p typical_p repetition_penalty
        length_penalty no_repeat_ngram_size encoder_no_repeat_ngram_size bad_words_ids
        num_return_sequences output_scores return_dict_in_generate forced_bos_token_id
        forced_eos_token_id remove_invalid_values exponential_decay_length_penalty suppress_tokens
        begin_suppress_tokens""".split()  # noqa: SIM905
    )

    architectures: tuple[Literal["CLIPTextModel", "CLIPTextModelWithProjection"], ...] | None = (
        Field(
            ("CLIPTextModel",),
            description="with or without a projection to CLIP's space; not set in a configuration",
        )
    )
    model_type: Literal["clip_text_model"] = Field(
        "clip_text_model", description="kind of text encoder; no other is supported"
    )
    vocab_size: Length = Field(
        49408, description="entries of the vocabulary; in a recipe set by captions.vocabulary"
    )
    hidden_size: Length = Field(512, description="channels of a token")
    intermediate_size: Length = Field(
        2048, description="hidden channels of a layer's feed-forward part"
    )
    num_hidden_layers: Length = Field(12, description="transformer layers")
    num_attention_heads: Length = Field(8, description="attention heads; has to divide hidden_size")
    max_position_embeddings: Length = Field(
        77, description="maximum number of tokens of a prompt; in a recipe set by captions.length"
    )
    hidden_act: Literal["quick_gelu", "gelu"] = Field(
        "quick_gelu", description="activation of the feed-forward parts"
    )
    layer_norm_eps: float = Field(1e-5, description="ε of the layer normalisation")
    initializer_range: float = Field(
        0.02, description="standard deviation of new embeddings of tokens and positions"
    )
    initializer_factor: float = Field(
        1.0, description="factor of the standard deviations of all new weights"
    )
    attention_dropout: float = Field(
        0.0, ge=0, le=0, description="share of attention weights dropped in training; not supported"
    )
    dropout: float = Field(
        0.0, ge=0, le=0, description="share of activations dropped in training; not supported"
    )
    projection_dim: LengthOr0 | None = Field(
        512, description="channels of CLIP's shared space; only used with a projection"
    )
    pruned_heads: dict[str, object] = Field(
        {}, max_length=0, exclude=True, description="attention heads left out; not supported"
    )
    pad_token_id: Token | None = Field(
        1, description="padding token; in a recipe set by the tokenizer"
    )
    bos_token_id: Token | None = Field(
        49406, description="token at the start of a prompt; in a recipe set by the tokenizer"
    )
    eos_token_id: Token | tuple[Token, ...] | None = Field(
        49407, description="token at the end of a prompt; in a recipe set by the tokenizer"
    )

    @model_validator(mode="after")
    def _check(self) -> TextEncoderConfig:
        if self.hidden_size % self.num_attention_heads:
            raise ValueError("num_attention_heads must divide hidden_size")
        if self.projects:
            if self.projection_dim is None or self.projection_dim < 1:
                raise ValueError("CLIPTextModelWithProjection needs a projection_dim above 0")
            if not isinstance(self.eos_token_id, int):
                raise ValueError("CLIPTextModelWithProjection needs one eos_token_id")
        return self

    @property
    def projects(self) -> bool:
        """Whether there is a `text_projection` of the pooled state."""
        return "CLIPTextModelWithProjection" in (self.architectures or ())
