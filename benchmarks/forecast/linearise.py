"""What would a run do if its model were its first-order expansion at the initial weights? Trained as the run was.

    MARGINCAST_PERSONA_DIR=... python -m benchmarks.forecast.linearise NAME ...

With log-ratios l_j(w0 + d) = l_j(w0) + J_j d, the run's batches, loss, clipping and AdamW act on the displacement d
(Malladi et al. 2023 with the optimizer replayed). J^T is a backward pass at w0, in the run's precision; J d a central
difference along d, two forward passes in float32: for the slopes of every batch, and for held-out pairs at the end. It
costs more than the run. Kept in `bank/NAME.linear.safetensors`: held-out margins over beta at the end, in nats.
"""

from __future__ import annotations

import argparse
import time
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path

import torch
from torch import Tensor

from benchmarks.forecast.bank import BANK, inputs_of, read, settings_of
from benchmarks.forecast.plan import Run, named
from benchmarks.packing import model
from margincast.errors import InputError
from margincast.models import LoadedModel
from margincast.passes.response_pass import response_pass
from margincast.passes.tokenize import Encoded
from margincast.recipe.batches import batch_order
from margincast.runs.store import write_tensors

# Along d, at whose end margins are up to tens of nats. float32 has log-ratios to about 1e-5, and so J d to 5e-4 nats;
# what the third order adds is below a hundredth (SmolLM2, d of 20 nats a pair). `main` prints what half of it gives.
NEAR = 0.01


class Expansion:
    """The expansion of `network` at its weights. displacement: one tensor per weight that is trained."""

    def __init__(self, network: torch.nn.Module) -> None:
        self.network = network.eval()
        self.weights: list[Tensor] = list(network.parameters())
        self.start = [weight.detach().clone() for weight in self.weights]
        self.displacement = [torch.zeros_like(weight, requires_grad=True) for weight in self.weights]

    @contextmanager
    def moved(self, length: float) -> Iterator[None]:
        """Weights w0 + length d, until the end of the block."""
        with torch.no_grad():
            torch._foreach_add_(self.weights, self.displacement, alpha=length)
        yield
        with torch.no_grad():
            torch._foreach_copy_(self.weights, self.start)

    def along(self, rows: Sequence[Encoded], near: float = NEAR) -> Tensor:
        """J d of the log-ratios of `rows`, (pairs,) float64."""
        ends = []
        for length in (near, -near):
            with self.moved(length):
                ends.append(read(self.network, rows))
        return (ends[0] - ends[1]) / (2.0 * near)

    def pull(self, rows: Sequence[Encoded], weights: Tensor, bf16: bool) -> None:
        """Set the displacement's gradient to J^T weights. bf16: in mixed precision"""
        for weight in self.weights:
            weight.grad = None
        with torch.autocast("cpu", torch.bfloat16, enabled=bf16):
            result = response_pass(self.network, rows)
        torch.autograd.backward(((result.chosen - result.rejected) * weights.float()).sum())
        for place, weight in zip(self.displacement, self.weights, strict=True):
            place.grad = weight.grad


def linearise(run: Run, loaded: LoadedModel) -> tuple[Tensor, Tensor]:
    """Held-out margins over beta at the end of `run` made with the expansion, (pairs,), with `NEAR` and half of it.

    `loaded` is left as it was. Raises `InputError` for a run of an adapter, whose expansion is of other weights.
    """
    if run.train != "all":
        raise InputError(f"{run.name} trains an adapter; the expansion is of runs that train all weights")
    encoding, features = inputs_of(run, loaded)
    train, heldout = (encoding.select(part.pairs).rows for part in (features.train, features.heldout))
    settings, expansion = settings_of(run), Expansion(loaded.model)
    optimizer = torch.optim.AdamW(
        expansion.displacement,
        lr=settings.learning_rate,
        betas=(settings.adam_beta1, settings.adam_beta2),
        eps=settings.adam_epsilon,
        weight_decay=0.0,
        fused=True,
    )
    for step, batch in enumerate(batch_order(len(train), run.batch, run.steps, run.seed)):
        rows = [train[index] for index in batch.rows.tolist()]
        nats = expansion.along(rows) if step else torch.zeros(len(rows), dtype=torch.float64)
        expansion.pull(rows, batch.weights * run.beta * settings.loss.slope(run.beta * nats), run.bf16)
        torch.nn.utils.clip_grad_norm_(expansion.displacement, settings.max_grad_norm)
        optimizer.step()
    return expansion.along(heldout), expansion.along(heldout, NEAR / 2)


def linear_of(run: Run) -> Path:
    return BANK / f"{run.name}.linear.safetensors"


def main() -> None:
    parser = argparse.ArgumentParser(prog="python -m benchmarks.forecast.linearise", description=__doc__)
    parser.add_argument("names", nargs="+", help="runs of the plan")
    wanted = parser.parse_args().names
    runs = [run for run in named(wanted) if not linear_of(run).is_file()]
    for run in runs:
        begun = time.process_time()
        margins, nearer = linearise(run, model())
        seconds = time.process_time() - begun
        write_tensors(linear_of(run), {"heldout": margins.half()}, {"cpu_seconds": f"{seconds:.0f}"})
        print(
            f"{run.name}: {seconds:.0f} CPU-seconds, mean {float(margins.mean()):.3g} nats, "
            f"differences from half the distance {float((margins - nearer).abs().max()):.2g}",
            flush=True,
        )


if __name__ == "__main__":
    main()
