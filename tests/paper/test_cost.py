"""Estimates against what a real model and a real optimizer hold."""

from __future__ import annotations

import dataclasses

import torch

from margincast.paper.cost import ModelSize, Workload, cost
from tests.tiny import tiny_model


def size_of(model: torch.nn.Module) -> ModelSize:
    head = model.get_output_embeddings().weight.numel()
    return ModelSize(sum(p.numel() for p in model.parameters()), head, model.config.num_hidden_layers, 24)


WORK = Workload("all", 60, 1000.0, 5000.0, 7, 1, bf16=False, checkpointing=False)


def test_states_are_what_a_step_of_adamw_holds() -> None:
    model = tiny_model().train()
    optimizer = torch.optim.AdamW(model.parameters())
    model(torch.arange(12)[None]).logits.sum().backward()
    optimizer.step()
    weights = list(model.parameters())
    moments = [t for state in optimizer.state.values() for t in state.values() if t.numel() > 1]
    held = sum(t.nbytes for t in (*weights, *(w.grad for w in weights), *moments))
    small = sum(2 * 4 for w in weights if w.numel() == 1)
    assert cost(size_of(model), WORK, "cpu").states == held + small


def test_arithmetic_is_six_times_weights_times_tokens() -> None:
    size = ModelSize(10**6, 10**5, 2, 64)
    found = cost(size, dataclasses.replace(WORK, evaluations=0), "cpu")
    assert found.seconds == 6 * 10**6 * 1000 * 60 / 1e11
    head = cost(size, dataclasses.replace(WORK, weights="head", recorded_tokens=0.0), "cpu")
    assert head.seconds == found.seconds / 3


def test_processes_share_states_and_checkpointing_saves_activations() -> None:
    size = ModelSize(7 * 10**9, 10**8, 32, 4096)
    alone = cost(size, WORK, "gpu")
    four = cost(size, dataclasses.replace(WORK, processes=4, bf16=True), "gpu")
    saved = cost(size, dataclasses.replace(WORK, processes=4, bf16=True, checkpointing=True), "gpu")
    assert four.states == alone.states / 4
    assert four.activations == alone.activations / 2
    assert saved.activations < four.activations / 10
    assert saved.seconds > four.seconds
