"""What will a run need, in memory and time? Estimates from the model's configuration, before its weights are fetched.

With P weights, n processes that share them (FSDP, full shard), L layers of width h, b bytes a number in the forward
pass (2 in bfloat16, else 4), T tokens in a process's batch (prompts are read once for both responses):

    weights, gradients, AdamW's two moments    16 P / n           4 + 4 + 8 bytes a weight, float32
    the layer at work, gathered                2 b P / L          it and the next, where n > 1
    activations                                17 b L h T         34 h T bytes a layer in 16 bits (Korthikanti et al.
                                                                  2022, attention in one kernel); with checkpointing
                                                                  b L h T + 17 b h T: inputs of layers, and one layer
    arithmetic of a step                       6 P T n            2 forward, 4 backward; 8 with checkpointing; 2 where
                                                                  the unembedding alone trains
    of an evaluation                           2 P T'             T' tokens of the recorded pairs

Seconds are arithmetic over n times a speed that is assumed: 1e14 a second on a GPU (a third of an A100's peak), 1e11 on
a processor with a few cores. Frozen weights have no gradients and no moments.
"""

from __future__ import annotations

from dataclasses import dataclass

SPEED = {"cpu": 1e11, "gpu": 1e14}
GIB = 2**30


@dataclass(frozen=True)
class ModelSize:
    """parameters: P, tied ones once;  head: those of the unembedding;  layers: L;  width: h"""

    parameters: int
    head: int
    layers: int
    width: int


@dataclass(frozen=True)
class Workload:
    """One run. batch_tokens: T, of one process;  recorded_tokens: T', of all recorded pairs;  evaluations: their number

    weights: what trains, "all" or "head"
    """

    weights: str
    steps: int
    batch_tokens: float
    recorded_tokens: float
    evaluations: int
    processes: int
    bf16: bool
    checkpointing: bool


@dataclass(frozen=True)
class Cost:
    """Bytes of one process, and seconds of the run."""

    states: float
    gathered: float
    activations: float
    seconds: float

    @property
    def memory(self) -> float:
        return self.states + self.gathered + self.activations


def cost(size: ModelSize, work: Workload, device: str) -> Cost:
    """The estimate for one run on `device` ("cpu" or "gpu")."""
    number = 2 if work.bf16 else 4
    n, per_layer = work.processes, 17 * number * size.width * work.batch_tokens
    if work.weights == "all":
        states = 16 * size.parameters / n
        inputs = number * size.layers * size.width * work.batch_tokens
        activations = inputs + per_layer if work.checkpointing else size.layers * per_layer
        passes = 8 if work.checkpointing else 6
    else:
        # The unembedding has a float64 copy of its own while it trains, so that small steps are not rounded away.
        states = 4 * size.parameters + 32 * size.head
        activations, passes = per_layer, 2
    arithmetic = passes * size.parameters * work.batch_tokens * n * work.steps
    arithmetic += 2 * size.parameters * work.recorded_tokens * (work.evaluations if work.weights == "all" else 1)
    gathered = 2 * number * size.parameters / size.layers if n > 1 else 0.0
    return Cost(states, gathered, activations, arithmetic / (SPEED[device] * n))


def pass_seconds(size: ModelSize, tokens: float, device: str) -> float:
    """The estimate for one forward pass over `tokens` on one process, without gradients."""
    return 2 * size.parameters * tokens / SPEED[device]
