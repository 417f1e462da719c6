"""What do the numbers mean, in plain words? Sentences made from results, for someone who has not read the paper."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from margincast.intervals import Estimate, proportion
from margincast.runs.metrics import CHANCE, taking_all

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
            "The closer this is to zero, the less training on one concept moves another by what is its own. Training "
            "moves the shared part too, and with it all concepts whose responses are the same."
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
    share = proportion(round(final["eval_rewards/accuracies"] * heldout), heldout)
    texts = [
        f"After {final['step']} steps {share.value:.0%} of {heldout} held-out pairs have a positive margin"
        f"{beside}. Of more such pairs it would be {share.low:.0%} to {share.high:.0%}: {_chance(share)}. "
        f"The mean held-out reward margin is {final['eval_rewards/margins']:.3g}, the held-out loss "
        f"{final['eval_loss']:.4g}.",
        *read_responses(summary["results"].get("responses", {})),
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
            f"{ranked[-1]} has the largest mean margin ({quick['value']:.3g}) and {ranked[0]} the smallest "
            f"({slow['value']:.3g}); {sure}."
        )
    chosen = final.get("eval_rewards/chosen")
    if chosen is not None and chosen < 0 < final["eval_rewards/margins"]:
        texts.append(
            f"The margin grows although chosen responses become less likely (mean chosen reward {chosen:.3g}): "
            "rejected ones fall faster. This is likelihood displacement."
        )
    return texts


def _chance(share: Estimate) -> str:
    if share.low > CHANCE:
        return f"above chance, {CHANCE:.0%}"
    return f"below chance, {CHANCE:.0%}" if share.high < CHANCE else f"not told from chance, {CHANCE:.0%}"


def read_responses(counts: Mapping[str, Mapping[str, int]]) -> list[str]:
    """Accuracy by the chosen response, where there are a few, and whether one of them takes all."""
    if not counts:
        return []
    each = (f'of those that prefer "{name}" {count["right"]} of {count["of"]}' for name, count in counts.items())
    told, up = f"Held-out pairs with a positive margin: {'; '.join(each)}.", taking_all(counts)
    return [told if up is None else f'{told} One response takes all: training moves "{up}" up for every prompt alike.']


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
        *(read_foretold(results) if "foretold" in results else []),
        f"At step {results['step']} {_order(heldout)}. Accuracy is {heldout['accuracy_a']:.0%} in A ({a}) and "
        f"{heldout['accuracy_b']:.0%} in B ({b}), the mean margin {heldout['margin_a']:.3g} and "
        f"{heldout['margin_b']:.3g}.",
    ]
    return [*texts, *read_differences(results)]


def read_foretold(results: Mapping[str, Any]) -> list[str]:
    """Which concepts came where the forecast had its intervals, and how good it was."""
    inside, level = results["inside"], results["inside"]["level"]
    said = []
    for quantity, plural in (("accuracy", "accuracies"), ("margin", "margins")):
        found = inside[quantity]
        missed = [each for each in results["foretold"] if each["concept"] in found["outside"]]
        outside = ", ".join(_missed(each, quantity) for each in missed if each["quantity"] == quantity)
        count = found["of"] - len(found["outside"])
        said.append(
            f"At step {results['step']} {count} of {found['of']} {plural if found['of'] > 1 else quantity} came inside "
            f"the forecast's {level:.0%} interval ({found['steps']:.0%} over all recorded steps)"
            + (f"; outside: {outside}." if outside else ".")
        )
    texts = [*said, f"So did {inside['pairs']:.0%} of the margins of single pairs."]
    if inside["partial"]:
        texts.append(f"The run has not all of the forecast's pairs of {', '.join(inside['partial'])}: left out here.")
    return [*texts, *filter(None, (_rho(results, quantity) for quantity in results["rho"]))]


def _missed(outcome: Mapping[str, Any], quantity: str) -> str:
    def shown(name: str) -> str:
        return f"{outcome[name]:.1%}" if quantity == "accuracy" else f"{outcome[name]:.3g}"

    return f"{outcome['concept']} (came {shown('run')}, foretold {shown('value')} [{shown('low')}, {shown('high')}])"


def _rho(results: Mapping[str, Any], quantity: str) -> str | None:
    """How near the score is to what runs of other seeds allow."""
    rho = results["rho"][quantity]
    if rho is None:
        return None
    if rho["value"] is None or rho["value"] != rho["value"]:
        return f"Run and twins have the same {quantity} in every concept: there is no floor to hold the score to."
    known = rho["low"] is not None and rho["low"] == rho["low"]
    sure = f" [{rho['low']:.2f}, {rho['high']:.2f}, over concepts]" if known else ""
    return (
        f"rho of {quantity} is {rho['value']:.2f}{sure}: the forecast's score over the floor that the differences of "
        "these runs set (1: as good as a forecast can be, 2: as far off as another batch order)."
    )


def read_differences(results: Mapping[str, Any]) -> list[str]:
    """What a gap between A and B may come from."""
    differing, unrecorded = results.get("differences"), results.get("unrecorded", [])
    if differing is None:  # a comparison of before
        return []
    texts = []
    named = ", ".join(_both(each) for each in differing)
    names = {each["name"] for each in differing}
    moved = {(each["a"], each["b"]) for each in differing if each["name"] == "train"}
    if names == {"train"} and not unrecorded and moved <= {("head", "all"), ("all", "head")}:
        texts.append(
            f"A and B differ in {named} and in no other setting: the gap between them is what the moving backbone adds."
        )
    elif len(names) > 1:
        texts.append(f"A and B differ in {named}: the gap between them is of all of these together.")
    elif names:
        texts.append(f"A and B differ in {named}.")
    if "train" in names and "forecast, frozen backbone" in results["titles"]:
        texts.append(
            "A frozen-backbone forecast is of training the unembedding alone; of other training it says nothing."
        )
    if unrecorded:
        texts.append(f"One of the two does not record: {', '.join(unrecorded)}. They may differ there too.")
    return texts


def _both(each: Mapping[str, Any]) -> str:
    if each["name"] in ("training pairs", "held-out pairs", "model"):
        return f"the {each['name']}"
    a, b = (f"{side:g}" if isinstance(side, float) else str(side) for side in (each["a"], each["b"]))
    return f"{each['name']} ({a} in A, {b} in B)"


def _order(heldout: Mapping[str, Any]) -> str:
    rho = heldout["spearman"]
    if rho is None:
        return "there are too few different margins to compare the order of held-out pairs"
    low, high = heldout["intervals"]["spearman"]
    strength = "nearly the same order" if rho > 0.9 else "a related order" if rho > 0.5 else "different orders"
    return f"A and B put held-out pairs in {strength} (rank correlation {rho:.2f} [{_two(low)}, {_two(high)}])"


def _two(value: float | None) -> str:
    return "-" if value is None else f"{value:.2f}"
