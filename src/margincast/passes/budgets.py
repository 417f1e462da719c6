"""How much may a pass hold at once, and how much work may be lost? One record, given along; measured on two cores."""

from __future__ import annotations

from dataclasses import dataclass

CPU_PACK_TOKENS = 2048  # distinct tokens of a pack, the fastest on SmolLM2


@dataclass(frozen=True)
class Budgets:
    """pack_tokens: distinct tokens of a pack, if fewer than the plan of the model's device has (`passes.plan`)

    logit_keep: logits that a batch may keep for its backward pass, 512 MiB in float32. A batch with more of them makes
    them twice, `logit_block` at a time (64 MiB): 1.2 times the time of keeping them (1,500 positions x 49,152 tokens,
    one core), and memory no longer grows with the batch.
    softmax_keep: entries of softmax rows that a gradient of the unembedding keeps for its second product, 256 MiB in
    float32, of a pair longer than a block; beyond it they are made twice
    save_seconds: of an extraction, after which finished features are put on disk
    """

    pack_tokens: int | None = None
    logit_keep: int = 1 << 27
    logit_block: int = 1 << 24
    softmax_keep: int = 1 << 26
    save_seconds: float = 20.0


BUDGETS = Budgets()
