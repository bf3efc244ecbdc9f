"""Models of any family of transformers at tiny size, with random weights."""

from __future__ import annotations

import copy
import re
from typing import Any

import torch

VOCABULARY, WIDTH, LAYERS, HEADS, WINDOW, LONGEST = 1024, 64, 4, 4, 24, 512

SHAPES: list[tuple[str, Any]] = [
    (r"(\w+_)?vocab_size(_\w+)?", VOCABULARY),
    (r"hidden_size|d_model|n_embd|dim|model_dim|attention_hidden_size|emb_dim|word_embed_proj_dim", WIDTH),
    (r"embedding_size|embedding_dim|lru_width|num_embeddings_dim|dim_model", WIDTH),
    (r"num_hidden_layers|n_layers?|num_layers|(encoder|decoder)_layers|num_blocks", LAYERS),
    (r"(num_attention|n|num|(encoder|decoder)_attention|attention|swa_num_attention)_heads?", HEADS),
    (r"(\w+_)?head_dim|attention_head_size|dim_head|d_kv|kv_channels|attention_key_dim|(qk|v)_head_dim", 16),
    (r"qk_rope_head_dim|rotary_dim", 8),
    (r"\w*lora_rank|\w*_lora_dim|\w*low_rank_dim", 16),
    (r"(\w+_)?intermediate_size(_mlp)?|(\w+_)?ffn_dim|ffn_hidden_size|dim_ff|d_ff|d_inner", 96),
    (r"num_experts|n_routed_experts|num_local_experts|moe_num_experts", 4),
    (r"num_experts_per_tok(en)?|moe_(k|top_k|topk)|top_k_experts", 2),
    (r"n_group|topk_group|n_shared_experts|first_k_dense_replace|moe_layer_start_index", 1),
    (
        r"max_position_embeddings|n_positions|max_seq_len|seq_length|context_length|max_target_positions",
        LONGEST,
    ),
    (r"sliding_window(_size)?|(attention_)?window_size|local_window_size", WINDOW),
    (r"attention_chunk_size", WINDOW),
    (r"(mamba_|ssm_)?(d_state|state_size)|ssm_state_size", 16),
    (r"mamba_(n|num)_heads|mamba_nheads|n_mamba_heads", 8),
    (r"mamba_(d|head)_(head|dim)|mamba_headdim", 16),
    (r"time_step_rank|mamba_dt_rank", 8),
    (r"linear_num_(key|value)_heads", 2),
    (r"linear_(key|value)_head_dim", 16),
    (r"hidden_size_per_layer_input|laurel_rank", 8),
    (r"\w+_token_(id|index)", VOCABULARY - 1),  # no dialogue has it
]
"""What a key of a configuration is at tiny size, by the first pattern that is its whole name."""

MIXED = {"layer_types": ["sliding_attention", "full_attention"] * 2}
OWN: dict[str, dict[str, Any]] = {
    "bamba": {"attn_layer_indices": [1, 3]},
    "deepseek_v2": {"num_experts_per_tok": 2},
    "dots1": {"n_routed_experts": 4, "num_experts_per_tok": 2, "n_shared_experts": 1},
    "falcon_h1": {"mamba_d_ssm": 128},
    "gemma3n_text": {
        "altup_num_inputs": 2,
        "num_kv_shared_layers": 0,
        "activation_sparsity_pattern": [0.0] * 4,
    }
    | MIXED,
    "lfm2_moe": {"layer_types": ["conv", "full_attention"] * 2},
    "longcat_flash": {"zero_expert_num": 2, "expert_ffn_hidden_size": 96, "ffn_hidden_size": 96},
    "mamba2": {"num_heads": 8},
    "nemotron": {"num_key_value_heads": 2},
    "reformer": {"is_decoder": True},
    "xlnet": {"d_head": 16},
    "zamba": {"attention_hidden_size": 128, "attention_head_dim": 32},
    "zamba2": {"attention_hidden_size": 128, "attention_head_dim": 32},
    "zaya": {"num_experts_per_tok": 1},
}
"""Per family what the patterns do not give: dimensions that must go together, defaults that are no default."""

ROPE = {"rope_theta": 10000.0, "factor": 4.0}
VARIANTS: list[tuple[str, str, dict[str, Any]]] = [
    (
        "phi3",
        "longrope",
        {
            "original_max_position_embeddings": 64,
            "rope_parameters": {
                "rope_type": "longrope",
                "rope_theta": 10000.0,
                "original_max_position_embeddings": 64,
                "short_factor": [1.0] * 8,
                "long_factor": [1.0 + 3 * i for i in range(8)],
            },
        },
    ),
    (
        "llama",
        "longrope",
        {
            "rope_parameters": {
                "rope_type": "longrope",
                "original_max_position_embeddings": 128,
                **ROPE,
                "short_factor": [1.0] * 8,
                "long_factor": [1.0 + 2 * i for i in range(8)],
            }
        },
    ),
    (
        "llama",
        "dynamic",
        {"max_position_embeddings": 64, "rope_parameters": {"rope_type": "dynamic", **ROPE}},
    ),
    (
        "qwen2",
        "yarn",
        {"rope_parameters": {"rope_type": "yarn", "original_max_position_embeddings": 64, **ROPE}},
    ),
    (
        "llama",
        "llama3",
        {
            "rope_parameters": {
                "rope_type": "llama3",
                "original_max_position_embeddings": 64,
                "low_freq_factor": 1.0,
                "high_freq_factor": 4.0,
                **ROPE,
            }
        },
    ),
    ("gemma", "linear", {"rope_parameters": {"rope_type": "linear", **ROPE}}),
    ("llama4_text", "temperature", {"floor_scale": 50, "attn_scale": 0.5, "no_rope_layers": [1, 0, 1, 0]}),
    ("granite", "scaled logits", {"logits_scaling": 8.0, "embedding_multiplier": 12.0}),
    ("falcon", "ALiBi", {"alibi": True}),
]
"""Mechanisms that a family's default configuration does not have: family, name, and the keys."""


def shape_of(key: str, value: Any) -> Any:
    """A key's value at tiny size; as it is where no pattern knows it or it is not set."""
    if key != "head_dim" and (value is None or isinstance(value, bool)):
        return value
    for pattern, tiny in SHAPES:
        if re.fullmatch(pattern, key):
            return tiny if not isinstance(value, list) else value
    return value


def cut(values: list[Any]) -> list[Any]:
    """A list with an entry per layer, for ``LAYERS``: every kind of entry, in the order of appearance."""
    kinds = [v for i, v in enumerate(values) if v not in values[:i]]
    return [kinds[i % len(kinds)] for i in range(LAYERS)]


def tiny_config(family: str, **own: Any) -> Any:
    """The default configuration of a family (its model type) at tiny size."""
    from transformers import CONFIG_MAPPING

    return shrunk(CONFIG_MAPPING[family], **{**OWN.get(family, {}), **own})


def shrunk(kind: Any, **own: Any) -> Any:
    from transformers import CONFIG_MAPPING

    values = kind().to_dict()
    layers = next((values[k] for k in ("num_hidden_layers", "n_layer", "num_layers") if k in values), None)
    small: dict[str, Any] = {}
    for key, value in values.items():
        if key in (
            "model_type",
            "transformers_version",
            "architectures",
            "dtype",
            "layer_types",
            "per_layer_config",
        ):
            continue
        if isinstance(value, list) and len(value) == layers and layers:
            value = [shape_of(key, v) for v in cut(value)]
        elif key not in kind.sub_configs:
            value = shape_of(key, value)
        else:
            continue
        small[key] = value
    if isinstance(values.get("layer_types"), list):
        small["layer_types"] = cut(values["layer_types"])
    if "use_sliding_window" in small:
        small |= {"use_sliding_window": True, "sliding_window": WINDOW, "max_window_layers": LAYERS // 2}
        small["layer_types"] = ["sliding_attention", "full_attention"] * (LAYERS // 2)
    if (several := values.get("num_key_value_heads")) is not None:
        small["num_key_value_heads"] = HEADS if several == values.get("num_attention_heads") else 2
    if "qk_rope_head_dim" in small and "head_dim" in small:
        small["head_dim"] = small["qk_rope_head_dim"]
    for name in kind.sub_configs:
        if isinstance(part := values.get(name), dict) and part.get("model_type") in CONFIG_MAPPING:
            small[name] = shrunk(CONFIG_MAPPING[part["model_type"]])
    small |= {"bos_token_id": 1, "eos_token_id": 2, "pad_token_id": 0}
    return kind(**{**small, **own})


def families() -> list[str]:
    """Model types with a causal language model."""
    from transformers.models.auto.modeling_auto import MODEL_FOR_CAUSAL_LM_MAPPING_NAMES

    return list(MODEL_FOR_CAUSAL_LM_MAPPING_NAMES)


def tiny_model(config: Any, seed: int = 0) -> Any:
    """Random weights large enough that attention is far from uniform: a wrong mask shows."""
    from transformers import AutoModelForCausalLM

    torch.manual_seed(seed)
    model = AutoModelForCausalLM.from_config(copy.deepcopy(config))
    with torch.no_grad():
        for parameter in model.parameters():
            if parameter.ndim > 1 and parameter.is_floating_point():
                parameter.copy_(torch.randn_like(parameter) / parameter.shape[-1] ** 0.5)
    return model.float().eval().requires_grad_(False)
