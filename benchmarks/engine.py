"""Frozen-feature dynamics against the ways one would otherwise compute them, and against the machine's ceilings."""

from __future__ import annotations

import json
import math
import subprocess
import sys
import tempfile
from collections.abc import Iterator
from itertools import pairwise
from pathlib import Path
from statistics import median

import torch
from safetensors.torch import save_file
from torch import Tensor

from benchmarks.harness import Row, close, compare, seconds
from benchmarks.peers import dense_head, kernel_flow, two_products
from margincast.frozen.engine.state import TokenSpace
from margincast.frozen.engine.step import simulate
from margincast.frozen.flow.states import gradient_flow
from margincast.recipe.batches import full_batch
from margincast.recipe.losses import get_loss
from margincast.recipe.optimizers.adamw import AdamW

LOGISTIC = get_loss("sigmoid")
BETA = 0.01


def rows() -> Iterator[Row]:
    yield from one_pass()
    yield from growth()
    yield against_dense_head()
    yield against_logistic_regression()
    yield against_kernel()
    yield from beyond_memory()


def persona_like(pairs: int, hidden: int, dtype: torch.dtype = torch.float32) -> TokenSpace:
    """Two tokens in turn, unit-normal features with a shared component and one concept."""
    generator = torch.Generator().manual_seed(0)
    chosen = torch.arange(pairs) % 2
    features = torch.randn(pairs, hidden, generator=generator, dtype=dtype)
    features[:, 0] += 3.0
    features[:, 1] += 2.0 * chosen.to(dtype) - 1.0
    return TokenSpace(features, chosen, 1 - chosen, BETA, 2)


def sign_of(space: TokenSpace) -> Tensor:
    return (1.0 - 2.0 * space.chosen).to(space.dtype)


def one_pass() -> Iterator[Row]:
    space = persona_like(14_400, 4096)
    batch, sign = next(full_batch(len(space), 1)), sign_of(space)
    state = 0.01 * torch.randn(2, 4096, generator=torch.Generator().manual_seed(1))
    expected = two_products.gradient(space.features, sign, state, BETA)
    name = "gradient, N=14400 d=4096 float32"
    for title, loss in (("", LOGISTIC), (", ipo", get_loss("ipo", BETA))):
        agrees = close(space.gradient(state, loss, batch)[0], expected, 1e-4) if loss is LOGISTIC else None
        if loss is LOGISTIC:
            yield compare(
                name,
                "two products in torch",
                lambda: space.gradient(state, LOGISTIC, batch),
                lambda: two_products.gradient(space.features, sign, state, BETA),
                ">= 1.6",
                agrees=agrees,
                repeats=25,
            )
        yield compare(
            name + title,
            "reading once (sum)",
            lambda loss=loss: space.gradient(state, loss, batch),  # type: ignore[misc]
            space.features.sum,
            ">= 0.8",
            agrees=agrees,
            repeats=25,
        )
    narrow = TokenSpace(space.features.bfloat16(), space.chosen, space.rejected, BETA, 2)
    yield compare(
        "gradient, bfloat16 storage",
        "float32 storage",
        lambda: narrow.gradient(state, LOGISTIC, batch),
        lambda: space.gradient(state, LOGISTIC, batch),
        "",
        agrees=close(narrow.gradient(state, LOGISTIC, batch)[0], expected, 1e-2),
        repeats=25,
    )


def growth() -> Iterator[Row]:
    """Exponents of time in N, d and T, fitted over sizes that do not fit in a cache; the ratio is the exponent."""
    for name, sizes, target in (
        ("N", [(n, 1024, 2) for n in (28_800, 57_600, 115_200, 230_400)], "<= 1.05"),
        ("d", [(14_400, d, 2) for d in (1024, 2048, 4096, 8192)], "<= 1.05"),
        ("T", [(14_400, 1024, t) for t in (2, 4, 8, 16)], ""),
    ):
        points = []
        for pairs, hidden, tokens in sizes:
            base = persona_like(pairs, hidden)
            chosen = torch.arange(pairs) % tokens
            space = TokenSpace(base.features, chosen, (chosen + 1) % tokens, BETA, tokens)
            batch, state = next(full_batch(pairs, 1)), space.zeros()
            times = seconds(lambda: space.gradient(state, LOGISTIC, batch), 25)  # noqa: B023 (called at once)
            points.append((math.log({"N": pairs, "d": hidden, "T": tokens}[name]), math.log(min(times)), min(times)))
        steps = [(b[1] - a[1]) / (b[0] - a[0]) for a, b in pairwise(points)]
        middle = sum(x for x, *_ in points) / len(points)
        slope = sum((x - middle) * y for x, y, _ in points) / sum((x - middle) ** 2 for x, *_ in points)
        yield Row(f"exponent of time in {name}", "-", None, slope, min(steps), max(steps), target, points[-1][2])


def against_dense_head() -> Row:
    space, vocabulary, rate, few = persona_like(2000, 576), 49_152, 1e-3, 3
    head = 0.02 * torch.randn(vocabulary, 576, generator=torch.Generator().manual_seed(2))

    def ours(steps: int) -> Tensor:
        *_, state = simulate(space, AdamW(rate), full_batch(2000, steps), unembedding=space.zeros())
        return space.margins(state)

    def theirs(steps: int) -> Tensor:
        return dense_head.train(space.features, space.chosen, space.rejected, head, BETA, rate, steps)

    return compare(
        "100 Adam steps, N=2000 d=576",
        f"dense head V={vocabulary} ({few} steps, scaled)",
        lambda: ours(100),
        lambda: theirs(few),
        ">= 1000",
        agrees=close(ours(few), theirs(few), 1e-3),
        repeats=3,
        scale=100 / few,
    )


def against_logistic_regression() -> Row:
    space, rate, steps = persona_like(14_400, 576), 1e-3, 20
    sign = sign_of(space)

    def ours() -> Tensor:
        *_, state = simulate(space, AdamW(rate), full_batch(len(space), steps), unembedding=space.zeros())
        return space.margins(state)

    def theirs() -> Tensor:
        return two_products.logistic_regression(space.features, sign, BETA, rate, steps)

    return compare(
        f"{steps} Adam steps, N=14400 d=576",
        "torch logistic regression",
        ours,
        theirs,
        "",
        agrees=close(ours(), theirs(), 1e-4),
    )


def against_kernel() -> Row:
    """The flow at relative tolerance 1e-4 to the time when the loss is well below its start."""
    space, time, rtol = persona_like(24_000, 576, torch.float64), 3e4, 1e-4
    features, sign = space.features.numpy(), sign_of(space).numpy()

    def ours() -> Tensor:
        return space.margins(gradient_flow(space, [time], rtol=rtol, rank=16).states[0])

    expected = torch.from_numpy(kernel_flow.scipy_flow(features, sign, BETA, time, rtol))
    return compare(
        "gradient flow, N=24000 d=576",
        "solve_ivp on the N x N kernel",
        ours,
        lambda: kernel_flow.scipy_flow(features, sign, BETA, time, rtol),
        ">= 20",
        agrees=close(ours(), expected, 1e-3),
        repeats=1,
    )


def beyond_memory() -> Iterator[Row]:
    """60 steps at N=120000, d=4096 from a mapped file, in its own process; the ratio is peak memory to features."""
    pairs, hidden = 120_000, 4096
    for dtype in (torch.float32, torch.bfloat16):
        with tempfile.TemporaryDirectory() as folder:
            path = Path(folder) / "features.safetensors"
            save_file({"hidden": torch.randn(pairs, hidden).to(dtype)}, path)
            command = [sys.executable, "-m", "benchmarks.large", str(path), "60"]
            results = [json.loads(subprocess.run(command, capture_output=True, check=True).stdout) for _ in range(3)]
        ratios = sorted(result["peak"] / result["features"] for result in results)
        yield Row(
            f"60 Adam steps, N={pairs} d={hidden} {dtype}".replace("torch.", ""),
            "peak memory / features",
            None,
            median(ratios),
            ratios[0],
            ratios[-1],
            "<= 1.2",
            median(result["seconds"] for result in results),
            peak_memory_ours=max(result["peak"] for result in results),
        )
