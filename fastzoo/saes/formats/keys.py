"""What becomes of every key that an SAE's files can have: obeyed, refused if set, or without meaning here.

The rows are from the sources of sae-lens 0.0 to 6.54 and sparsify 1.0 to 1.3, and from Gemma Scope's files. The
readers ask ``refuse_keys``, which refuses what the rows refuse, and every key without a row that is set.
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from typing import Any

from fastzoo.core.errors import InputError
from fastzoo.core.text import one_line

OBEYED, REFUSED, HARMLESS = "obeyed", "refused", "harmless"
UNSET: tuple[Any, ...] = (None, False, 0, 0.0, "", "none", [], {}, [None])
"""Values that leave an option off."""


@dataclass(frozen=True)
class Key:
    names: tuple[str, ...]
    """The first is today's, the others are its older ones or of one kind with it."""
    status: str
    what: str
    """What it says; of a refused key, what to do about it."""
    neutral: tuple[Any, ...] = UNSET
    """Values that a refused key may have."""
    values: tuple[tuple[str, str], ...] = ()
    """Of a refused key: what to do about values of their own."""
    described: bool = False
    """Whether SAELens keeps it in ``metadata`` since version 6; elsewhere in there it has no meaning."""

    def advice(self, value: Any) -> str:
        """What to do about this value of a refused key."""
        return next((what for values, what in self.values if str(value) in values.split()), self.what)


def _keys(status: str, names: str, what: str, **more: Any) -> Key:
    return Key(tuple(names.split()), status, what, **more)


_NORMALISED = "the norms that it divides by are no part of the file; it can be used in sae-lens only"
_OF_EACH = "it changes each token by that token's own figures, which no weights can do; use it in sae-lens"
_SCALED = (
    "in sae-lens, sae.fold_activation_norm_scaling_factor(factor) with the training's factor, which is "
    "sqrt(d_in) / the mean norm of the activations, and sae.save_model(folder) make one that is read"
)
_WHITENED = (
    "in sae-lens, sae.fold_activation_whitening(mean, matrix, inverse) with the training's figures and "
    "sae.save_model(folder) make one that is read"
)
_NOT_RESIDUAL = "only SAEs of the residual stream, to itself, are read"

SAELENS = (
    _keys(OBEYED, "architecture", "standard, jumprelu and topk are read; missing is standard"),
    _keys(OBEYED, "d_in d_sae", "the widths; the tensors must have them"),
    _keys(OBEYED, "k", "active latents of topk"),
    _keys(
        OBEYED,
        "activation_fn_str activation_fn",
        "relu, or topk, which makes standard a topk; others are refused",
    ),
    _keys(OBEYED, "activation_fn_kwargs", "k of topk; see below"),
    _keys(OBEYED, "apply_b_dec_to_input", "whether b_dec is subtracted first; missing is true"),
    _keys(OBEYED, "rescale_acts_by_decoder_norm", "folded into the weights of topk; refused for others"),
    _keys(OBEYED, "metadata", "since version 6, what the model is; see the keys marked with *"),
    _keys(OBEYED, "model_name", "the language model", described=True),
    _keys(
        OBEYED,
        "hook_name hook_point hf_hook_name",
        "where it sits: resid_post of L, or resid_pre of L + 1, is layer L; other places are refused",
        described=True,
    ),
    _keys(
        OBEYED,
        "hook_layer hook_point_layer",
        "the layer, if no hook says it; must agree with the hook",
        described=True,
    ),
    _keys(OBEYED, "model_from_pretrained_kwargs", "how the model is loaded; see below", described=True),
    _keys(OBEYED, "sinks", "fastzoo's own: which activations are attention sinks", described=True),
    _keys(
        OBEYED,
        "sae_lens_training_version",
        "models of versions before 3.20 had centred weights, and before version 6 so has one without this; "
        "see center_writing_weights",
        described=True,
    ),
    _keys(
        REFUSED,
        "normalize_activations",
        _NORMALISED,
        values=(
            ("expected_average_only_in True", _SCALED),
            ("covariance_whitening", _WHITENED),
            ("layer_norm constant_norm_rescale", _OF_EACH),
        ),
    ),
    _keys(REFUSED, "reshape_activations", f"its inputs are attention heads, reshaped; {_NOT_RESIDUAL}"),
    _keys(
        REFUSED,
        "finetuning_scaling_factor",
        "multiply the rows of W_dec by the tensor scaling_factor, take that out and set this to false",
    ),
    _keys(
        REFUSED,
        "hook_head_index hook_point_head_index hook_head_index_out",
        f"it is for one attention head; {_NOT_RESIDUAL}",
        neutral=(None,),
        described=True,
    ),
    _keys(REFUSED, "hook_name_out hf_hook_name_out", f"it is a transcoder; {_NOT_RESIDUAL}", described=True),
    _keys(
        REFUSED,
        "d_out is_transcoder out_hook_point out_hook_point_layer",
        f"it is a transcoder; {_NOT_RESIDUAL}",
    ),
    _keys(
        REFUSED,
        "model_kwargs",
        "the model was run with other options than fastzoo runs it with",
        described=True,
    ),
    _keys(HARMLESS, "dtype device", "weights are read as they lie in the file, and held as asked for"),
    _keys(
        HARMLESS,
        "sae_lens_version model_class_name neuronpedia_id hook_eval hook_point_eval verbose seed run_name",
        "names and versions",
        described=True,
    ),
    _keys(
        HARMLESS,
        "prepend_bos context_size seqpos_slice exclude_special_tokens dataset_path "
        "dataset_trust_remote_code streaming is_dataset_tokenized use_chat_formatting "
        "disable_concat_sequences sequence_separator_token use_cached_activations "
        "cached_activations_path start_pos_offset end_pos_offset",
        "on which text and positions it was trained; fastzoo has its own",
        described=True,
    ),
    _keys(
        HARMLESS,
        "b_dec_init_method decoder_init_norm decoder_orthogonal_init decoder_heuristic_init "
        "decoder_heuristic_init_norm init_encoder_as_decoder_transpose from_pretrained_path "
        "expansion_factor",
        "how training started",
    ),
    _keys(
        HARMLESS,
        "normalize_sae_decoder noise_scale l1_coefficient l1_warm_up_steps lp_norm l0_coefficient "
        "l0_warm_up_steps target_l0 mse_loss_normalization scale_sparsity_penalty_by_decoder_norm "
        "use_ghost_grads ghost_grad jumprelu_init_threshold jumprelu_bandwidth "
        "jumprelu_sparsity_loss_mode jumprelu_tanh_scale jumprelu_ste_to_input "
        "pre_act_loss_coefficient use_sparse_activations aux_loss_coefficient",
        "what training minimised; the file has its result",
    ),
    _keys(
        HARMLESS,
        "lr finetuning_method finetuning_tokens n_restart_cycles n_batches_in_buffer "
        "tokens_per_buffer total_training_tokens store_batch_size store_batch_size_prompts "
        "activations_mixing_fraction act_store_device llm_device prefetch_llm_batches "
        "n_eval_batches n_eval_seqs n_batches_for_norm_estimate feature_sampling_window "
        "feature_sampling_method feature_reinit_scale resample_batches dead_feature_window "
        "dead_feature_threshold dead_feature_estimation_method autocast autocast_lm compile_llm "
        "llm_compilation_mode compile_sae sae_compilation_mode n_checkpoints resume "
        "resume_from_checkpoint save_final_checkpoint output_path logger",
        "how training ran",
    ),
)
SAELENS_NOTES = (
    "_",
    "wandb_",
    "log_",
    "lr_",
    "adam_",
    "eval_",
    "dataset_",
    "train_",
    "training_",
    "checkpoint_",
    "neuronpedia_",
    "sae_lens_",
)
"""Beginnings of names of further keys without meaning here, as forks of SAELens add them."""

MODEL_ARGUMENTS = (
    _keys(OBEYED, "revision", "the version of the model, unless another is asked for"),
    _keys(
        OBEYED,
        "center_writing_weights",
        "whether TransformerLens took the mean out of the residual stream that it was trained on, "
        "which it does where a LayerNorm reads it: such a model is refused; use it with TransformerLens",
    ),
    _keys(
        REFUSED,
        "checkpoint_index checkpoint_value checkpoint_label",
        "it was trained on a checkpoint of its model that only TransformerLens finds",
        neutral=(None,),
    ),
    _keys(
        REFUSED,
        "load_in_8bit load_in_4bit quantization_config",
        "it was trained on the activations of a quantised model",
    ),
    _keys(HARMLESS, "dtype torch_dtype", "fastzoo has model.dtype"),
    _keys(
        HARMLESS,
        "fold_ln center_unembed refactor_factored_attn_matrices fold_value_biases",
        "these leave the residual stream as it is",
    ),
    _keys(
        HARMLESS,
        "device device_map n_devices move_to_device max_memory offload_folder low_cpu_mem_usage "
        "attn_implementation use_cache first_n_layers n_ctx default_prepend_bos "
        "default_padding_side",
        "where and how the model runs",
    ),
    _keys(
        HARMLESS,
        "local_files_only force_download cache_dir token use_auth_token trust_remote_code use_safetensors",
        "how the model is found; fastzoo runs no remote code",
    ),
)

ACTIVATION_ARGUMENTS = (
    _keys(OBEYED, "k", "active latents of topk; has no meaning for relu"),
    _keys(REFUSED, "signed", "latents of both signs are not read"),
    _keys(REFUSED, "postact_fn", "only ReLU is read after topk", neutral=(*UNSET, "relu", "ReLU")),
)

SPARSIFY = (
    _keys(OBEYED, "d_in", "the width of the residual stream"),
    _keys(
        OBEYED,
        "num_latents expansion_factor",
        "the latents; 0, which is the default, is d_in times expansion_factor, by default 32",
    ),
    _keys(OBEYED, "k", "active latents; 32 if missing"),
    _keys(OBEYED, "activation", "topk; others are refused"),
    _keys(REFUSED, "signed", "latents of both signs are not read"),
    _keys(REFUSED, "skip_connection transcode", f"it is a transcoder, not an SAE; {_NOT_RESIDUAL}"),
    _keys(HARMLESS, "normalize_decoder multi_topk", "how it was trained; the file has the result"),
)

GEMMA_SCOPE = (
    _keys(OBEYED, "W_enc w_enc", "(d_in, d_sae)"),
    _keys(OBEYED, "b_enc threshold", "(d_sae,)"),
    _keys(OBEYED, "W_dec w_dec", "(d_sae, d_in)"),
    _keys(OBEYED, "b_dec", "(d_in,)"),
)


def refuse_keys(
    config: Mapping[str, Any],
    rows: Iterable[Key],
    at: str,
    notes: tuple[str, ...] = (),
    unknown: tuple[str, ...] = ("",),
) -> None:
    """Refuse keys that are set and that ``rows`` refuse or do not have.

    Args:
        at: the file, and where in it, for the message.
        notes: beginnings of names that have no meaning.
        unknown: beginnings of names without a row that are refused; others have no meaning.

    Raises InputError.
    """
    known = {name: row for row in rows for name in row.names}
    for name, value in config.items():
        row = known.get(name)
        if row is None and (name.startswith(notes) or not name.startswith(unknown)):
            continue
        if (row and row.status != REFUSED) or _among(value, row.neutral if row else UNSET):
            continue
        shown = f"{at} {one_line(name, 60)} is {one_line(value, 60)}"
        if row is None:
            doubt = "which is not known here and may change what the SAE computes"
            raise InputError(f"{shown}, {doubt}; take it out if it does not")
        raise InputError(f"{shown}, which is not read: {row.advice(value)}")


def _among(value: Any, values: Iterable[Any]) -> bool:
    """Whether a JSON value is one of ``values``: true is not 1, though Python calls them equal."""
    return any(type(value) is type(other) and value == other for other in values)
