"""Other ways to score training pairs, on the same features: cleanlab, loss, gradient products, influence libraries.

Each takes features and returns a suspicion per training pair, (pairs,), larger is more suspicious. Where a way needs a
trained head it is W - W0 after 60 steps of AdamW at 1e-3 on batches of 32, as `forecast` computes it; an influence
library gets it as `nn.Linear(hidden, 1)` on y g with the logistic loss of the margin: the same function of the pair.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import torch
from torch import Tensor, nn

from margincast.frozen.engine.spaces import token_spaces
from margincast.frozen.engine.step import simulate
from margincast.recipe.batches import batch_order
from margincast.recipe.losses import get_loss
from margincast.recipe.optimizers.adamw import AdamW
from margincast.recipe.recipe import Recipe
from margincast.records import Features

STEPS, BATCH, RATE, BETA, EVERY = 60, 32, 1e-3, 0.01, 10


def cleanlab_default(features: Features) -> Tensor:
    """`CleanLearning()` of cleanlab: its default logistic regression, 5-fold; which of two responses is preferred."""
    from cleanlab.classification import CleanLearning

    chosen = torch.tensor([ids[0] for ids in features.train.chosen_ids])
    labels = (chosen == features.tokens[-1]).long()
    found = CleanLearning(seed=0).find_label_issues(features.train.hidden.double().numpy(), labels.numpy())
    return 1 - torch.tensor(found["label_quality"].to_numpy())


def cleanlab_scaled(features: Features) -> Tensor:
    """The same after scaling every feature to unit variance, which the default does not."""
    from cleanlab.classification import CleanLearning
    from sklearn.linear_model import LogisticRegression
    from sklearn.pipeline import make_pipeline
    from sklearn.preprocessing import StandardScaler

    chosen = torch.tensor([ids[0] for ids in features.train.chosen_ids])
    labels = (chosen == features.tokens[-1]).long()
    classifier = make_pipeline(StandardScaler(), LogisticRegression())
    found = CleanLearning(classifier, seed=0).find_label_issues(features.train.hidden.numpy(), labels.numpy())
    return 1 - torch.tensor(found["label_quality"].to_numpy())


def cleanlab_concepts(features: Features) -> Tensor:
    """`CleanLearning()` with the concept as the label: is a pair filed under the right one?"""
    from cleanlab.classification import CleanLearning

    names = features.train.pairs.concepts
    labels = torch.tensor([names.index(pair.concept) for pair in features.train.pairs])
    found = CleanLearning(seed=0).find_label_issues(features.train.hidden.double().numpy(), labels.numpy())
    return 1 - torch.tensor(found["label_quality"].to_numpy())


def loss(features: Features) -> Tensor:
    """Loss of each pair at the end of training."""
    train, states = _states(features)
    return -train.margins(states[-1])


def tracin_self(features: Features) -> Tensor:
    """TracIn's self-influence: squared gradient norms, summed over checkpoints."""
    train, states = _states(features)
    slopes = torch.stack([get_loss("sigmoid").slope(train.margins(state)) for state in states])
    return (slopes**2).sum(dim=0) * 2 * (BETA * train.features.norm(dim=1)) ** 2


def tracin_dot(features: Features) -> Tensor:
    """Gradient products with the mean held-out gradient, summed over checkpoints; negative ones are suspicious."""
    train, states = _states(features)
    _, heldout = token_spaces(features, Recipe(beta=BETA))
    total = torch.zeros(len(train), dtype=torch.float64)
    for state in states:
        mine, theirs = (get_loss("sigmoid").slope(space.margins(state)) for space in (train, heldout))
        total -= mine * train.margins(heldout.pull(theirs))
    return total


def traker(features: Features) -> Tensor:
    """traker: projected gradients, kernel inverse; influence on the held-out margins."""
    import tempfile

    from trak import TRAKer
    from trak.modelout_functions import AbstractModelOutput

    class Margin(AbstractModelOutput):  # type: ignore[misc]
        def __init__(self) -> None:
            pass

        @staticmethod
        def get_output(model: Any, weights: Any, buffers: Any, x: Tensor, y: Tensor) -> Tensor:
            return torch.func.functional_call(model, (weights, buffers), (x[None],)).squeeze()

        def get_out_to_loss_grad(self, model: Any, weights: Any, buffers: Any, batch: Any) -> Tensor:
            with torch.no_grad():
                margins = torch.func.functional_call(model, (weights, buffers), (batch[0],)).squeeze(-1)
            return torch.sigmoid(-margins)[:, None]

    train, heldout, head = _as_regression(features)
    with tempfile.TemporaryDirectory() as folder:
        tracer = TRAKer(
            model=head, task=Margin(), train_set_size=len(train), save_dir=folder, device="cpu", proj_dim=512,
            use_half_precision=False, logging_level=40,
        )  # fmt: skip
        tracer.load_checkpoint(head.state_dict(), model_id=0)
        for part in train.split(256):
            tracer.featurize(batch=(part, torch.ones(len(part))), num_samples=len(part))
        tracer.finalize_features()
        tracer.start_scoring_checkpoint("heldout", head.state_dict(), model_id=0, num_targets=len(heldout))
        for part in heldout.split(256):
            tracer.score(batch=(part, torch.ones(len(part))), num_samples=len(part))
        scores = tracer.finalize_scores("heldout")
    return -torch.as_tensor(scores).double().mean(dim=1)


def dattri(features: Features) -> Tensor:
    """dattri's explicit influence function, damped; influence on the held-out loss."""
    from dattri.algorithm.influence_function import IFAttributorExplicit
    from dattri.task import AttributionTask
    from torch.utils.data import DataLoader, TensorDataset

    train, heldout, head = _as_regression(features)

    def margin_loss(params: Any, batch: Any) -> Tensor:
        x, _ = batch
        return nn.functional.softplus(-torch.func.functional_call(head, params, (x,))).mean()

    task = AttributionTask(loss_func=margin_loss, model=head, checkpoints=head.state_dict())
    attributor = IFAttributorExplicit(task=task, device="cpu", regularization=1e-3)
    loaders = [
        DataLoader(TensorDataset(x, torch.ones(len(x))), batch_size=len(x), shuffle=False) for x in (train, heldout)
    ]
    attributor.cache(loaders[0])
    with torch.no_grad():
        scores = attributor.attribute(*loaders)
    return -scores.double().mean(dim=1)


def kronfluence(features: Features) -> Tensor:
    """kronfluence with EK-FAC; influence on the held-out loss."""
    import tempfile

    from kronfluence.analyzer import Analyzer, prepare_model
    from kronfluence.task import Task
    from torch.utils.data import TensorDataset

    class MarginTask(Task):  # type: ignore[misc]
        def compute_train_loss(self, batch: Any, model: Any, sample: bool = False) -> Tensor:
            margins = model(batch[0]).squeeze(-1)
            # Sampled labels: of two responses, the one that the model prefers.
            signs = torch.bernoulli(torch.sigmoid(margins.detach())) * 2 - 1 if sample else 1.0
            return nn.functional.softplus(-signs * margins).sum()

        def compute_measurement(self, batch: Any, model: Any) -> Tensor:
            return nn.functional.softplus(-model(batch[0]).squeeze(-1)).sum()

    train, heldout, head = _as_regression(features)
    data = [TensorDataset(x) for x in (train, heldout)]
    task = MarginTask()
    with tempfile.TemporaryDirectory() as folder:
        analyzer = Analyzer(
            "head", prepare_model(nn.Sequential(head), task), task, cpu=True, output_dir=folder, disable_tqdm=True
        )
        analyzer.fit_all_factors("ekfac", data[0], per_device_batch_size=512)
        analyzer.compute_pairwise_scores(
            "scores", "ekfac", query_dataset=data[1], train_dataset=data[0],
            per_device_query_batch_size=128, per_device_train_batch_size=512,
        )  # fmt: skip
        scores = analyzer.load_pairwise_scores("scores")["all_modules"]
    return -scores.double().mean(dim=0)


PEERS: dict[str, Callable[[Features], Tensor]] = {
    "cleanlab": cleanlab_default,
    "cleanlab, scaled features": cleanlab_scaled,
    "cleanlab, concepts": cleanlab_concepts,
    "loss": loss,
    "TracIn, self-influence": tracin_self,
    "TracIn, products with held-out": tracin_dot,
    "traker": traker,
    "dattri": dattri,
    "kronfluence": kronfluence,
}


def _states(features: Features) -> tuple[Any, list[Tensor]]:
    """The training pairs and dW at every `EVERY`-th step, the first included."""
    train, _ = token_spaces(features, Recipe(beta=BETA))
    run = simulate(
        train, AdamW(RATE), batch_order(len(train), BATCH, STEPS, 0), unembedding=features.unembedding.double(),
        loss=get_loss("sigmoid"),
    )  # fmt: skip
    states = [train.zeros(), *(state for step, state in enumerate(run, start=1) if step % EVERY == 0)]
    return train, states


def _as_regression(features: Features) -> tuple[Tensor, Tensor, nn.Linear]:
    """y g of training and held-out pairs, and the trained head whose value on them is the margin."""
    spaces = token_spaces(features, Recipe(beta=BETA))
    _, states = _states(features)
    signs = [torch.where(space.chosen == 1, 1.0, -1.0) for space in spaces]
    head = nn.Linear(spaces[0].features.shape[1], 1, bias=False)
    head.weight.data = (BETA * (states[-1][1] - states[-1][0])).float()[None]
    x = [(sign[:, None] * space.features).float() for sign, space in zip(signs, spaces, strict=True)]
    return x[0], x[1], head
