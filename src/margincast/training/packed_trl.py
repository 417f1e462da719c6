"""When can TRL's DPOTrainer take packed passes, and how does it get them? The part of `PackedDPOTrainer` that is ours.

Loss, metrics, callbacks and checkpoints stay TRL's own code. It is given a compact batch, and a model that answers with
packed passes (`training.packed`), for the policy and the reference alike. What is not known to come out the same is
left to TRL's padded pass.
"""

from __future__ import annotations

import warnings
from collections.abc import Iterator, Mapping
from dataclasses import MISSING, fields
from inspect import signature
from typing import Any

import torch
from torch import Tensor
from transformers import TrainingArguments

from margincast.errors import InputError
from margincast.passes.response_pass import packing_problem
from margincast.training.packed import CannotPack, CompactBatch, compact, packed_forward
from margincast.training.recorder import REFERENCE_TOLERANCE
from margincast.training.references import COLUMNS

# `margincast.trl` puts TRL's trainer behind the class below, so that this module is read without TRL.
Trainer: Any = object

# Settings that DPOConfig adds to transformers' and that packed passes honour, whatever their value. Any other of them,
# of a release to come too, must have its default.
HONOURED = {
    "model_init_kwargs", "trust_remote_code", "disable_dropout", "dataset_num_proc", "max_length", "pad_token",
    "pad_to_multiple_of", "precompute_ref_log_probs", "precompute_ref_batch_size", "loss_type", "loss_weights",
    "ld_alpha", "f_divergence_type", "f_alpha_divergence_coef", "label_smoothing", "beta", "use_weighting",
    "discopop_tau", "sync_ref_model", "ref_model_mixup_alpha", "ref_model_sync_steps", "router_aux_loss_coef",
}  # fmt: skip
CHECKED = 4  # rows whose given reference log-probabilities are computed again
# Settings of transformers that change the pass itself, and the value at which they do not.
PLAIN = {"use_liger_kernel": False, "torch_compile": False, "neftune_noise_alpha": None}
LOSSES = {
    "sigmoid", "hinge", "ipo", "exo_pair", "nca_pair", "robust", "bco_pair", "sppo_hard", "aot", "aot_unpaired",
    "apo_zero", "apo_down", "discopop", "sft", "sigmoid_norm",
}  # fmt: skip


class PackedPasses(Trainer):  # type: ignore[misc]
    """`margincast.trl.PackedDPOTrainer` is this on top of `trl.DPOTrainer`: packed forward passes, in which what the
    sequences of a batch begin with in common is computed once.

    Takes what `DPOTrainer` takes and does what it does: loss, metrics, callbacks, evaluation and checkpoints are TRL's
    own code, and loss, rewards and gradients are the same up to the order of sums. Policy and reference are packed,
    also an adapter's reference and a precomputed one.

    Settings, models and batches that cannot be packed are left to TRL's own padded pass, with one warning that names
    the reason (docs/trl.md has the list).
    """

    # The constructor of TRL's trainer already computes the reference where that is precomputed.
    _packing_checked = False
    _packing_refused: str | None = None
    _packing_said: frozenset[str] = frozenset()

    def compute_loss(
        self, model: Any, inputs: Any, return_outputs: bool = False, num_items_in_batch: Any = None
    ) -> Any:
        """TRL's loss of a batch, and its metrics, from packed passes where these can be had."""
        try:
            if return_outputs:
                raise CannotPack("outputs of the model that are asked for (compute_metrics, predict)")
            batch = self._compacted(inputs)
            with self._packed(batch):
                return super().compute_loss(model, batch.inputs, return_outputs, num_items_in_batch)
        except CannotPack as reason:
            self._say(str(reason))
        return super().compute_loss(model, inputs, return_outputs, num_items_in_batch)

    def compute_ref_log_probs(self, *arguments: Any) -> Any:
        """The reference's log-probabilities of a batch, the last of `arguments`; TRL 1.12 put the model before it."""
        *model, inputs = arguments
        try:
            batch = self._compacted(inputs)
            with self._packed(batch):
                return super().compute_ref_log_probs(*model, batch.inputs)
        except CannotPack as reason:
            self._say(str(reason))
        return super().compute_ref_log_probs(*arguments)

    def _precompute_ref_logps(self, dataset: Any, name: str, batch_size: int) -> Any:
        """`dataset` as it is where it has the reference's log-probabilities already, as margincast writes them; TRL
        would fail at a second pair of these columns.

        Raises `InputError` where those of its first rows are not the reference's.
        """
        if not set(COLUMNS) <= set(getattr(dataset, "column_names", None) or ()) or self.is_deepspeed_enabled:
            return super()._precompute_ref_logps(dataset, name, batch_size)
        inputs = self._prepare_inputs(self.data_collator([dataset[row] for row in range(min(CHECKED, len(dataset)))]))
        reference = self.ref_model or self.model
        given_model = len(signature(super().compute_ref_log_probs).parameters) > 1  # since TRL 1.12
        found = self.compute_ref_log_probs(*([reference] if given_model else []), inputs)
        allowed = REFERENCE_TOLERANCE[torch.bfloat16 if self.args.bf16 else reference.dtype]
        for column, logps in zip(COLUMNS, found, strict=True):
            gap = float((inputs[column].to(logps) - logps).abs().max())
            if not gap <= allowed:
                raise InputError(
                    f"{column} of the {name} data are not this reference's: the first rows give others, {gap:.3g} "
                    "away; they are of another model or max_length. Remove the columns, or write them anew"
                )
        return dataset

    def _compacted(self, inputs: Mapping[str, Tensor]) -> CompactBatch:
        if not self._packing_checked:
            self._packing_refused = next(self._settings_against_packing(), None)
        if self._packing_refused:
            raise CannotPack(self._packing_refused)
        batch = compact(inputs)
        if not self._packing_checked:
            self._packing_refused = next(self._models_against_packing(batch), None)
            self._packing_checked = True
            if self._packing_refused:
                raise CannotPack(self._packing_refused)
        return batch

    def _packed(self, batch: CompactBatch) -> Any:
        return packed_forward(self._language_models(), batch, self.accelerator.autocast)

    def _language_models(self) -> list[Any]:
        """Policy and reference, where it is a model of its own, out of their wrappers."""
        wrapped = [self.accelerator.unwrap_model(model) for model in (self.model, self.ref_model) if model is not None]
        return [model.get_base_model() if hasattr(model, "get_base_model") else model for model in wrapped]

    def _settings_against_packing(self) -> Iterator[str]:
        args = self.args
        of_transformers = {field.name for field in fields(TrainingArguments)}
        for field in fields(args):
            value = getattr(args, field.name)
            plain = field.default if field.default_factory is MISSING else field.default_factory()
            unknown = field.name not in of_transformers | HONOURED and value != plain
            if unknown or PLAIN.get(field.name, value) != value:
                yield f"{field.name}={value!r}"
        losses = [args.loss_type] if isinstance(args.loss_type, str) else args.loss_type
        yield from (f"loss_type={name!r}" for name in losses if name not in LOSSES)
        if getattr(self, "aux_loss_enabled", False):
            yield f"router_aux_loss_coef={self.router_aux_loss_coef!r}"
        if self.is_deepspeed_enabled:
            yield "DeepSpeed"
        if self.is_fsdp_enabled:
            yield "FSDP"
        if getattr(self.accelerator, "parallelism_config", None) is not None:
            yield "parallelism_config"
        if args.n_gpu > 1:
            yield "several GPUs in one process (torch.nn.DataParallel)"

    def _models_against_packing(self, batch: CompactBatch) -> Iterator[str]:
        policy = self.accelerator.unwrap_model(self.model)
        if hasattr(policy, "active_peft_config") and policy.active_peft_config.is_prompt_learning:
            yield f"{policy.active_peft_config.peft_type.value} (an adapter with tokens of its own)"
        for model in self._language_models():
            if model.config.is_encoder_decoder:
                yield f"{type(model).__name__}, an encoder and a decoder"
            drops = _dropout(model)
            if drops:
                yield f"dropout ({drops}), which packed passes would draw once for tokens that are computed once"
            problem = packing_problem(model, batch.pairs)
            if problem:
                yield f"{type(model).__name__}: {problem}"

    def _say(self, reason: str) -> None:
        if reason not in self._packing_said:
            self._packing_said |= {reason}
            warnings.warn(f"PackedDPOTrainer leaves to TRL's own, padded pass: {reason}", stacklevel=3)


def _dropout(model: Any) -> str:
    """The first module of `model` that drops something when it trains, "" if there is none."""
    for name, module in model.named_modules():
        share = module.p if isinstance(module, torch.nn.Dropout) else 0.0
        attention = getattr(module, "attention_dropout", 0.0)
        if share or (isinstance(attention, float) and attention):
            return f"{share or attention} in {name}"
    return ""
