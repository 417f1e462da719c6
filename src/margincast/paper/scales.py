"""What is run to reproduce the paper's figures, and how large? (Section 5, Appendix C and D)

The paper: Anthropic Persona, K = 1, 2, 4, 8, 16 personas, 90% of each for training; Llama-2-7B, all weights, AdamW at a
constant 1e-5, batches of 32 on each of 4 GPUs. From the authors' scripts: beta 0.01, 60 steps; for the last layer alone
Adam at 1e-3. Here the unembedding trains on the same batches as all weights do, so that the two compare.
"""

from __future__ import annotations

import random
from collections.abc import Sequence
from dataclasses import dataclass

from margincast.recipe.recipe import Recipe

FIGURES = ("fig1", "fig2", "fig3", "fig4", "fig5")
SUBSET, SUBSET_SEED = 10, 1234
BETA = 0.01


@dataclass(frozen=True)
class Scale:
    """One size of the experiments.

    model: None where it has to be named;  K: numbers of personas;  seeds: of split and batch order
    learning_rate: by what trains, all weights or the unembedding (head)
    per_device_train_batch_size: pairs in a batch of each process;  processes: for estimates, a launcher starts them
    record_train: training pairs per persona whose margins are recorded; held-out pairs are recorded all
    trained: what is trained for real, of the unembedding (head) and all weights
    statements: per persona and figure, for the embeddings of Figures 1 and 3; None: all of them
    rehearsal: in forecasts of training all weights, the share of its pairs (0: from features alone, which is all that
    one process can do for a model that needs several)
    bf16: mixed precision where all weights train, evaluations on the way included; the unembedding alone trains in
    float32, so that its forecast is that run to rounding
    """

    model: str | None
    K: tuple[int, ...]
    seeds: tuple[int, ...]
    max_steps: int
    eval_steps: int
    learning_rate: dict[str, float]
    per_device_train_batch_size: int
    record_train: int
    statements: dict[str, int | None]
    trained: tuple[str, ...] = ("head", "all")
    rehearsal: float = 0.1
    processes: int = 1
    bf16: bool = False
    gradient_checkpointing: bool = False


PAPER_K = (1, 2, 4, 8, 16)
PAPER_RATES = {"all": 1e-5, "head": 1e-3}
THREE_SEEDS = (1234, 1235, 1236)
SCALES = {
    "smoke": Scale(
        model="tiny",
        K=(1, 2, 4),
        seeds=(1234, 1235),
        max_steps=4,
        eval_steps=2,
        learning_rate={"all": 1e-3, "head": 1e-2},
        per_device_train_batch_size=8,
        record_train=10,
        statements={"fig1": 20, "fig3": 20},
    ),
    # About three hours of CPU time. Mixed precision is 2.1 times as fast where the processor knows bfloat16.
    "cpu": Scale(
        model="smollm2",
        K=PAPER_K,
        seeds=THREE_SEEDS,
        max_steps=60,
        eval_steps=20,
        learning_rate=PAPER_RATES,
        per_device_train_batch_size=32,
        record_train=25,
        statements={"fig1": 200, "fig3": 50},
        bf16=True,
    ),
    "paper": Scale(
        model=None,
        K=PAPER_K,
        seeds=THREE_SEEDS,
        max_steps=60,
        eval_steps=10,
        learning_rate=PAPER_RATES,
        per_device_train_batch_size=32,
        record_train=100,
        statements={"fig1": None, "fig3": None},
        # Of the unembedding alone the forecast is the run, to rounding.
        trained=("all",),
        rehearsal=0.0,
        processes=4,
        bf16=True,
        gradient_checkpointing=True,
    ),
}


@dataclass(frozen=True)
class RunSpec:
    """One run of Figures 2, 4 and 5: `weights` is what trains ("all", "head"), `source` training or forecast."""

    K: int
    seed: int
    weights: str
    source: str
    optimizer: str = "adamw"

    @property
    def folder(self) -> str:
        name = {"training": "training", "forecast": "forecast"}[self.source]
        flow = "-flow" if self.optimizer == "flow" else ""
        return f"{name}-{self.weights}{flow}-k{self.K}-seed{self.seed}"


def run_specs(scale: Scale) -> list[RunSpec]:
    """The runs, the quickest first: forecasts, then training of the unembedding, then of all weights."""
    kinds = [("head", "forecast", "flow"), ("head", "forecast", "adamw"), ("all", "forecast", "adamw")]
    kinds += [(weights, "training", "adamw") for weights in scale.trained]
    return [RunSpec(k, seed, *kind) for kind in kinds for seed in scale.seeds for k in sorted(scale.K)]


def recipe_of(spec: RunSpec, scale: Scale, processes: int) -> Recipe:
    """How the run `spec` is trained, or what its forecast forecasts.

    processes: that share each step of training; a forecast is one process's work, with batches of all of them
    """
    together = processes if spec.source == "forecast" else 1
    training = spec.source == "training"
    return Recipe(
        train=spec.weights,
        beta=BETA,
        optimizer=spec.optimizer,
        # The flow's time is learning_rate x steps; the theory's rates are in that time, whatever its length.
        learning_rate=FLOW_RATE if spec.optimizer == "flow" else scale.learning_rate[spec.weights],
        max_steps=scale.max_steps,
        per_device_train_batch_size=scale.per_device_train_batch_size * together,
        seed=spec.seed,
        eval_steps=scale.eval_steps,
        bf16=scale.bf16 and spec.weights == "all",
        record_train=scale.record_train * spec.K if training else None,
        # Without gradients of the backbone there is nothing to save by computing activations twice.
        gradient_checkpointing=training and scale.gradient_checkpointing and spec.weights == "all",
    )


FLOW_RATE = 1e-2


def subset(names: Sequence[str]) -> list[str]:
    """The personas of Figure 1: ten at random, as in the paper, which does not say which; by a fixed seed."""
    ordered = sorted(names)
    return sorted(random.Random(SUBSET_SEED).sample(ordered, min(SUBSET, len(ordered))))
