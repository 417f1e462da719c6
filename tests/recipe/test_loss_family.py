"""Every member of the family: derivatives against autodiff, bounds against grids, formulas against TRL's own code."""

from __future__ import annotations

import math
import re
from collections import defaultdict
from types import SimpleNamespace
from typing import Any

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from torch import Tensor

from margincast.errors import InputError
from margincast.recipe.losses import LOSSES, REFUSED, Loss, custom_loss, get_loss

BETA = 0.3
PARAMETERS: dict[str, list[dict[str, float]]] = {
    "cdpo": [{}, {"label_smoothing": 0.1}, {"label_smoothing": 0.4}],
    "robust": [{}, {"label_smoothing": 0.1}, {"label_smoothing": 0.4}],
    "exo_pair": [{"label_smoothing": 1e-3}, {"label_smoothing": 0.2}],
    "discopop": [{}, {"discopop_tau": 0.7}, {"discopop_tau": 1.0}, {"discopop_tau": 3.0}],
    "simpo": [{}, {"simpo_gamma": 1.4, "label_smoothing": 0.1}],
}
MEMBERS = [
    get_loss(name, BETA, without_reference=True, **parameters)
    for name in LOSSES.names
    for parameters in PARAMETERS.get(name, [{}])
]


def label(loss: Loss) -> str:
    return loss.name + "".join(f"-{value:g}" for value in loss.parameters.values())


every_member = pytest.mark.parametrize("loss", MEMBERS, ids=label)


def gap(ours: Tensor, theirs: Tensor) -> float:
    """The largest difference, relative to the larger of 1 and the number itself."""
    return float(((ours - theirs).abs() / theirs.abs().clamp(min=1.0)).max())


def derivative(function: Any, r: Tensor) -> Tensor:
    point = r.clone().requires_grad_()
    total = function(point).sum()
    return torch.autograd.grad(total, point)[0] if total.requires_grad else torch.zeros_like(r)


# Dense, and with the kink of hinge and truncated_quadratic (1) on it.
GRID = torch.cat([torch.linspace(-30, 30, 6001, dtype=torch.float64), torch.tensor([1.0, 0.0, 0.5])])


@every_member
def test_slope_and_curvature_are_the_derivatives(loss: Loss) -> None:
    assert gap(loss.slope(GRID), derivative(loss.value, GRID)) <= 1e-12
    assert gap(loss.curvature(GRID), derivative(loss.slope, GRID)) <= 1e-12


@every_member
def test_the_bound_is_the_largest_curvature_and_convexity_its_sign(loss: Loss) -> None:
    grid = torch.linspace(-40, 40, 400_001, dtype=torch.float64)
    seen = loss.curvature(grid)
    assert float(seen.abs().max()) <= loss.curvature_bound * (1 + 1e-12)
    if math.isfinite(loss.curvature_bound):
        assert float(seen.abs().max()) >= loss.curvature_bound * (1 - 1e-6)
    assert bool((seen >= -1e-12).all()) == loss.convex


@pytest.mark.parametrize("loss", [m for m in MEMBERS if math.isinf(m.curvature_bound)], ids=label)
def test_without_a_bound_slopes_part_faster_than_any_factor(loss: Loss) -> None:
    low = torch.cat([torch.linspace(-200, 1, 20_001), torch.tensor([1 - 5e-7])]).double()
    steepest = ((loss.slope(low + 1e-6) - loss.slope(low)) / 1e-6).abs().max()
    assert float(steepest) >= 1e5


@every_member
@pytest.mark.parametrize("dtype", [torch.float32, torch.float64])
def test_extreme_margins_overflow_only_where_the_loss_itself_does(loss: Loss, dtype: torch.dtype) -> None:
    margins = torch.tensor([-1e4, -200.0, 200.0, 1e4], dtype=dtype)
    growth = float(loss.name == "exponential")
    if loss.name == "discopop":
        growth = max(0.0, 1 - 1 / loss.parameters["discopop_tau"])
    within = -growth * margins < math.log(torch.finfo(dtype).max)
    for function in (loss.value, loss.slope, loss.curvature):
        numbers = function(margins)
        assert not numbers.isnan().any()
        assert torch.equal(numbers.isfinite(), within)


@every_member
def test_any_shape_and_dtype_goes_in_and_comes_out(loss: Loss) -> None:
    margins = torch.linspace(-2, 2, 24)
    for function in (loss.value, loss.slope, loss.curvature):
        for shape in ((24,), (4, 6), (2, 3, 4)):
            out = function(margins.view(shape))
            assert out.dtype == margins.dtype
            torch.testing.assert_close(out.flatten(), function(margins), rtol=0, atol=0)
        assert function(torch.tensor(0.3)).shape == ()
        assert function(torch.zeros(0, 3)).shape == (0, 3)


@every_member
def test_a_loss_is_made_again_from_its_name_and_parameters(loss: Loss) -> None:
    again = get_loss(loss.name, without_reference=True, **loss.parameters)
    assert again.parameters == loss.parameters
    assert torch.equal(again.value(GRID), loss.value(GRID))


@given(st.floats(-20, 20), st.floats(0, 0.49))
def test_robust_is_unbiased_and_cdpo_is_the_mean_over_flipped_labels(margin: float, flipped: float) -> None:
    """With labels flipped with probability e, E robust = the clean logistic loss; cdpo(r) = E sigmoid(+-r)."""
    r = torch.tensor(margin, dtype=torch.float64)
    clean = get_loss("sigmoid").value
    robust = get_loss("robust", label_smoothing=flipped).value
    size = 1 / (1 - 2 * flipped)  # what cancels is this much larger than what is left
    noisy = (1 - flipped) * robust(r) + flipped * robust(-r)
    assert float(noisy) == pytest.approx(float(clean(r)), rel=1e-12, abs=1e-12 * size)
    mean = (1 - flipped) * clean(r) + flipped * clean(-r)
    assert float(get_loss("cdpo", label_smoothing=flipped).value(r)) == pytest.approx(float(mean), rel=1e-12)


def test_ipo_pulls_to_half_and_squared_to_one_and_they_agree_up_to_scale() -> None:
    """ipo at beta equals squared at 2 beta, times 1 / (2 beta)^2: both are GPO's squared loss."""
    ipo, squared = get_loss("ipo", BETA), get_loss("squared")
    assert gap(ipo.value(GRID), squared.value(2 * GRID) / (2 * BETA) ** 2) <= 1e-12


def trl_loss(name: str, logps: Tensor, beta: float = BETA, tokens: int = 1, **arguments: float) -> Tensor:
    """TRL's own `DPOTrainer._compute_loss` on given log-probabilities.

    logps: (4, pairs) sums of chosen, rejected, reference chosen, reference rejected, spread over `tokens` tokens; the
    rejected response has one token in any case
    """
    dpo_trainer = pytest.importorskip("trl.trainer.dpo_trainer")
    pairs = logps.shape[1]
    mask = torch.cat([torch.ones(pairs, tokens), torch.ones(pairs, 1).expand(pairs, tokens)]).long()
    mask[pairs:, 1:] = 0
    per_token = torch.cat([logps[0], logps[1]])[:, None] * mask / mask.sum(dim=1, keepdim=True)
    mask = torch.cat([torch.zeros(2 * pairs, 1).long(), mask], dim=1)

    class Model:
        training = True

        def __call__(self, **_: Any) -> Any:
            seen = per_token.detach()
            return SimpleNamespace(log_probs=per_token, entropy=seen, mean_logits=seen, is_top1=seen > 0)

    model = Model()
    trainer = SimpleNamespace(
        model=model,
        accelerator=SimpleNamespace(device="cpu", gather_for_metrics=lambda x: x, gather=lambda x: x),
        aux_loss_enabled=False,
        ld_alpha=None,
        precompute_ref_logps=True,
        f_divergence_type="reverse_kl",
        loss_types=[name],
        loss_weights=[1.0],
        beta=beta,
        label_smoothing=arguments.get("label_smoothing", 0.0),
        args=SimpleNamespace(discopop_tau=arguments.get("discopop_tau", 0.05)),
        use_weighting=False,
        _metrics=defaultdict(lambda: defaultdict(list)),
        _total_train_tokens=0,
        _tp_size=1,
    )
    inputs = {"completion_mask": mask, "input_ids": mask, "attention_mask": mask}
    inputs |= {"ref_chosen_logps": logps[2], "ref_rejected_logps": logps[3]}
    before = torch.get_default_dtype()
    torch.set_default_dtype(torch.float64)  # exo_pair makes a tensor of label_smoothing
    try:
        result: Tensor = dpo_trainer.DPOTrainer._compute_loss(trainer, model, inputs, False)
    finally:
        torch.set_default_dtype(before)
    return result


def drawn_logps(seed: int = 0, pairs: int = 9) -> Tensor:
    generator = torch.Generator().manual_seed(seed)
    return -6 * torch.rand(4, pairs, generator=generator, dtype=torch.float64)


def margins_of(logps: Tensor) -> Tensor:
    return BETA * ((logps[0] - logps[2]) - (logps[1] - logps[3]))


TRLS = [loss for loss in MEMBERS if loss.name in {"sigmoid", "hinge", "ipo", "exo_pair", "robust", "sigmoid_norm"}]
TRLS += [get_loss("discopop", discopop_tau=tau) for tau in (0.05, 0.7)]


@pytest.mark.parametrize("loss", TRLS, ids=label)
def test_values_and_gradients_are_those_of_trl(loss: Loss) -> None:
    logps = drawn_logps().requires_grad_()
    theirs = trl_loss(loss.name, logps, **{k: v for k, v in loss.parameters.items() if k != "beta"})
    ours = loss.value(margins_of(logps)).mean()
    assert ours.item() == pytest.approx(theirs.item(), rel=1e-12)
    (gradient,) = torch.autograd.grad(theirs, logps)
    slope = loss.slope(margins_of(logps.detach())) * BETA / logps.shape[1]
    torch.testing.assert_close(gradient[0], slope, rtol=1e-12, atol=1e-15)
    torch.testing.assert_close(gradient[1], -slope, rtol=1e-12, atol=1e-15)


def test_hinge_at_its_kink_has_the_slope_of_trl() -> None:
    logps = torch.zeros(4, 1, dtype=torch.float64)
    logps[0] = 4.0
    logps.requires_grad_()
    (gradient,) = torch.autograd.grad(trl_loss("hinge", logps, beta=0.25), logps)
    assert float(gradient.abs().max()) == 0.0
    assert float(get_loss("hinge").slope(torch.ones(1))) == 0.0


def test_simpo_is_that_of_trls_cpo_trainer() -> None:
    cpo = pytest.importorskip("trl.experimental.cpo.cpo_trainer")
    for gamma, smoothing in ((0.5, 0.0), (1.2, 0.1)):
        trainer = SimpleNamespace(
            alpha=0.0,
            accelerator=SimpleNamespace(device="cpu"),
            loss_type="simpo",
            simpo_gamma=gamma,
            label_smoothing=smoothing,
            beta=BETA,
        )
        chosen, rejected = drawn_logps()[:2]
        theirs, rewards_chosen, rewards_rejected = cpo.CPOTrainer.cpo_loss(trainer, chosen, rejected)
        loss = get_loss("simpo", without_reference=True, simpo_gamma=gamma, label_smoothing=smoothing)
        margins = rewards_chosen - rewards_rejected
        torch.testing.assert_close(loss.value(margins), theirs, rtol=1e-12, atol=1e-14)


def same_margins(logps: Tensor) -> Tensor:
    """Other log-probabilities with the same margins: each pair's policy, reference and both sides moved."""
    generator = torch.Generator().manual_seed(1)
    level, reference = torch.rand(2, logps.shape[1], generator=generator, dtype=torch.float64)
    return logps + torch.stack([level + reference, level, reference, torch.zeros_like(level)])


def test_every_loss_of_trl_is_taken_or_refused() -> None:
    with pytest.raises(ValueError, match="Should be one of") as unknown:
        trl_loss("no such loss", drawn_logps())
    names = set(re.findall(r"'(\w+)'", str(unknown.value)))
    assert len(names) >= 15
    assert names <= set(LOSSES.names) | set(REFUSED)
    assert set(REFUSED) <= names


@pytest.mark.parametrize("name", REFUSED)
def test_what_is_refused_is_no_function_of_the_margin(name: str) -> None:
    one, other = drawn_logps(), same_margins(drawn_logps())
    torch.testing.assert_close(margins_of(one), margins_of(other))
    assert abs(float(trl_loss(name, one) - trl_loss(name, other))) > 1e-4
    with pytest.raises(InputError, match=f"loss_type '{name}' is not a function of the margin"):
        get_loss(name, BETA)


@pytest.mark.parametrize("loss", TRLS, ids=label)
def test_what_is_taken_is_a_function_of_the_margin_at_the_lengths_it_says(loss: Loss) -> None:
    one, other = drawn_logps(), same_margins(drawn_logps())
    given = {k: v for k, v in loss.parameters.items() if k != "beta"}
    change = float(trl_loss(loss.name, one, **given) - trl_loss(loss.name, other, **given))
    assert change == pytest.approx(0.0, abs=1e-12)
    longer = float(trl_loss(loss.name, one, tokens=3, **given) - trl_loss(loss.name, other, tokens=3, **given))
    assert (abs(longer) > 1e-3) == loss.averaged


def test_a_loss_of_ones_own_equals_the_built_in_one() -> None:
    for member in MEMBERS:
        own = custom_loss("own", member.value)
        assert gap(own.slope(GRID), member.slope(GRID)) <= 1e-12
        if member.name != "exponential":  # its curvature by autodiff is exp again
            assert gap(own.curvature(GRID), member.curvature(GRID)) <= 1e-12
    with torch.no_grad():
        assert own.slope(GRID).requires_grad is False


def test_slopes_of_a_loss_of_ones_own_can_be_differentiated_again() -> None:
    own = custom_loss("own", lambda r: r**4)
    r = torch.tensor([2.0], dtype=torch.float64, requires_grad=True)
    (third,) = torch.autograd.grad(own.curvature(r).sum(), r)
    assert float(third) == pytest.approx(48.0)


@pytest.mark.parametrize(
    "function, message",
    [
        (lambda r: r.sum(), "one loss per margin"),
        (lambda r: r.mean() * r, "depends on the other margins"),
        (lambda r: r.detach() ** 2, "cannot be differentiated"),
        (lambda r: r.detach().numpy() ** 2, "in PyTorch"),
    ],
)
def test_what_is_no_scalar_function_is_refused(function: Any, message: str) -> None:
    with pytest.raises(InputError, match=message):
        custom_loss("own", function)


@pytest.mark.parametrize(
    "name, beta, parameters, message",
    [
        ("dpo", BETA, {}, "loss_type 'dpo' is not known; did you mean cdpo. use one of: cdpo, discopop"),
        ("ipo", None, {}, "needs a positive beta"),
        ("ipo", 0.0, {}, "needs a positive beta"),
        ("sigmoid", BETA, {"label_smoothing": 0.1}, "takes no label_smoothing.*cdpo"),
        ("hinge", BETA, {"discopop_tau": 0.1}, "'hinge' takes no discopop_tau"),
        ("robust", BETA, {"label_smoothing": 0.5}, r"must lie in \[0, 0.5\)"),
        ("cdpo", BETA, {"label_smoothing": -0.1}, r"must lie in \[0, 0.5\)"),
        ("cdpo", BETA, {"label_smoothing": math.nan}, "must be a number"),
        ("exo_pair", BETA, {}, "needs a label_smoothing above 0"),
        ("discopop", BETA, {"discopop_tau": 0.0}, "discopop_tau must be a positive number"),
        ("simpo", BETA, {}, "leaves the reference out"),
    ],
)
def test_requests_that_name_no_loss_are_refused_in_one_line(
    name: str, beta: float | None, parameters: dict[str, float], message: str
) -> None:
    with pytest.raises(InputError, match=message) as refusal:
        get_loss(name, beta, **parameters)
    assert "\n" not in str(refusal.value)


def test_a_made_loss_is_kept_and_checked_against_beta() -> None:
    loss = get_loss("ipo", BETA)
    assert get_loss(loss, BETA) is loss
    with pytest.raises(InputError, match=r"made for beta 0\.3, not 0\.1"):
        get_loss(loss, 0.1)
    with pytest.raises(InputError, match="already made"):
        get_loss(get_loss("sigmoid"), label_smoothing=0.1)
    with pytest.raises(InputError, match="already the name of a loss"):
        custom_loss("hinge", lambda r: r**2)
