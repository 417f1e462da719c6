"""What do the numbers mean, in plain words? Sentences made from results, for someone who has not read the paper."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

# Agreement below this share of the largest margin is what rounding of float32 leaves.
ROUNDING = 1e-4


def read_inspection(results: Mapping[str, Any]) -> list[str]:
    """What `inspect` found: the shared component, what is left without it, and the theorems' conditions."""
    texts = []
    raw, centred = results["mean_cosine_raw"], results["mean_cosine_centred"]
    if raw is not None:
        whose = "the statements that match two different concepts" if results["concept_lengths"] else "they"
        share = "almost everything" if raw > 0.9 else "a large part" if raw > 0.5 else "little"
        texts.append(
            f"Embeddings of two different concepts have a cosine of {raw:.2f} on average: they share {share}. "
            f"Once the shared part is taken away, {whose} have a cosine of {_two(centred)}. "
            "The closer this is to zero, the less training on one concept moves another."
        )
    if results["shared_norm"] is not None:
        texts.append(
            f"The shared part is {results['shared_norm']:.0f} times as long as the half-distance between a concept's "
            f"matching and non-matching statements, and single statements scatter about their group with energy "
            f"{results['noise_energy']:.1f} (1 would be as far as that half-distance, in all directions together)."
        )
    checks = results["conditions"]
    if checks:
        failed = [check["name"] for check in checks if not check["holds"]]
        if failed:
            texts.append(
                f"{len(checks) - len(failed)} of the {len(checks)} conditions of the paper's theorems hold here, so "
                f"they promise nothing for these data. Not met: {'; '.join(failed)}."
            )
        else:
            texts.append(f"All {len(checks)} conditions of the paper's theorems hold here.")
    return texts


def read_run(summary: Mapping[str, Any]) -> list[str]:
    """Where a forecast or training run ends, and which concepts are quick or slow."""
    final, concepts = summary["results"]["final"], summary["results"]["concepts"]
    heldout = sum(count["heldout"] for count in summary["data"]["concepts"].values())
    if final["eval_rewards/margins"] is None:
        return [f"The run diverged: at step {final['step']} margins are no numbers any more. Lower the learning rate."]
    # A run may have recorded no training pairs.
    train_accuracy, train_margin = final["rewards/accuracies"], final["rewards/margins"]
    beside = "" if train_accuracy is None else f", and {train_accuracy:.0%} of the recorded training pairs"
    texts = [
        f"After {final['step']} steps {final['eval_rewards/accuracies']:.0%} of {heldout} held-out pairs are learned"
        f"{beside}. The mean held-out reward margin is "
        f"{final['eval_rewards/margins']:.3g}, the held-out loss {final['eval_loss']:.4g}."
    ]
    if train_margin is not None and train_margin > 0 and final["eval_rewards/margins"] < train_margin / 2:
        texts.append(
            "Training pairs gain far more margin than held-out ones: most of what is learned does not carry over."
        )
    if len(concepts) > 1:
        ranked = sorted(concepts, key=lambda name: concepts[name]["heldout_margin"]["value"])
        slow, quick = concepts[ranked[0]]["heldout_margin"], concepts[ranked[-1]]["heldout_margin"]
        if slow["high"] is None or quick["low"] is None:
            sure = "a single held-out pair cannot say how sure that is"
        elif slow["high"] < quick["low"]:
            sure = "their 95% intervals do not overlap"
        else:
            sure = "their 95% intervals overlap, so this order may be chance"
        texts.append(
            f"{ranked[-1]} is learned fastest (margin {quick['value']:.3g}) and {ranked[0]} slowest "
            f"({slow['value']:.3g}); {sure}."
        )
    chosen = final.get("eval_rewards/chosen")
    if chosen is not None and chosen < 0 < final["eval_rewards/margins"]:
        texts.append(
            f"The margin grows although chosen responses become less likely (mean chosen reward {chosen:.3g}): "
            "rejected ones fall faster. This is likelihood displacement."
        )
    return texts


def read_comparison(results: Mapping[str, Any]) -> list[str]:
    """How close B came to A."""
    heldout, (a, b) = results["heldout"], results["titles"]
    if heldout["max_abs_difference"] is None:
        return [f"At step {results['step']} margins of A ({a}) or B ({b}) are no numbers any more: that run diverged."]
    share = heldout["max_abs_difference"] / heldout["largest_margin"] if heldout["largest_margin"] else 0.0
    if share <= ROUNDING:
        return [
            f"A ({a}) and B ({b}) agree in every one of {heldout['pairs']} held-out pairs: no margin differs by more "
            f"than {share:.1g} of the largest. That is rounding: they are the same run."
        ]
    texts = [
        f"At step {results['step']} {_order(heldout)}. Accuracy is {heldout['accuracy_a']:.0%} in A ({a}) and "
        f"{heldout['accuracy_b']:.0%} in B ({b}), the mean margin {heldout['margin_a']:.3g} and "
        f"{heldout['margin_b']:.3g}."
    ]
    if "forecast, frozen backbone" in (a, b) and any(title.startswith("training, all weights") for title in (a, b)):
        texts.append(
            "A frozen-backbone forecast is exact only when the backbone is frozen. Here every weight moved, so the gap "
            "between the two is what the moving backbone adds; do not read the forecast as a prediction of this run."
        )
    return texts


def _order(heldout: Mapping[str, Any]) -> str:
    rho = heldout["spearman"]
    if rho is None:
        return "there are too few different margins to compare the order of held-out pairs"
    low, high = heldout["intervals"]["spearman"]
    strength = "nearly the same order" if rho > 0.9 else "a related order" if rho > 0.5 else "different orders"
    return f"A and B put held-out pairs in {strength} (rank correlation {rho:.2f} [{_two(low)}, {_two(high)}])"


def _two(value: float | None) -> str:
    return "-" if value is None else f"{value:.2f}"
