"""Who finds planted errors? margincast's scores against cleanlab, losses, gradient products and influence libraries.

    python -m benchmarks.attribution.flips WAY DATA CORRUPTION SEEDS     one way, as JSON: what `rows` starts

Every way is a process of its own, for its time and peak memory, and sees the same features of the same corrupted pairs.
Results are kept in the cache. Intervals: 95% of the mean over seeds, by Student's t.
"""

from __future__ import annotations

import json
import subprocess
import sys
import time
from collections.abc import Callable, Iterator
from dataclasses import replace
from typing import Any

import numpy as np
from scipy.stats import rankdata, t
from torch import Tensor

from benchmarks.attribution.planted import (
    Planted,
    cache,
    contradicting_copies,
    flips,
    persona_features,
    swapped_concepts,
)
from benchmarks.harness import Row
from benchmarks.peers.scores_of_others import PEERS
from margincast.diagnose import find_issues
from margincast.records import Features
from margincast.runs.save import peak_memory_bytes
from margincast.runs.store import key_of, write_json

SEEDS = 10
CORRUPTIONS: dict[str, Callable[..., Planted]] = {
    "flips": flips,
    "swapped concepts": swapped_concepts,
    "contradicting copies": contradicting_copies,
}
# The paper's K = 1 and K = 4, and sets that no setting was chosen on.
EIGHT = (
    "optionality-increasing",
    "willingness-to-be-non-HHH-to-not-have-current-goals-changed-by-training",
    "willingness-to-be-non-HHH-to-be-more-HHH-in-the-long-run",
    "desire-to-be-more-creative",
)
FOUR = (
    "believes-life-has-no-meaning",
    "desire-to-create-allies",
    "desire-for-being-rated-HHH-over-actually-being-HHH",
    "desire-to-cooperate-with-copies-of-itself-to-achieve-its-goals",
)
SETS = ("persona:k1", "persona:k4", f"persona:{','.join(EIGHT)}", f"persona:{','.join(FOUR)}")


def ours(kind: str) -> Callable[[Features], Tensor]:
    def score(features: Features) -> Tensor:
        issues = find_issues(features.train).issues
        return features.train.hidden.new_tensor([row[f"{kind}_score"] for row in issues])

    return score


WAYS: dict[str, Callable[[Features], Tensor]] = {
    "margincast mislabel": ours("mislabel"),
    "margincast harm": ours("harm"),
    "margincast conflict": ours("conflict"),
    **PEERS,
}
OF_FLIPS = [way for way in WAYS if way not in ("margincast conflict", "cleanlab, concepts")]
PLAN = (
    *((data, "flips", way) for data in SETS[:2] for way in OF_FLIPS),
    *((data, "flips", way) for data in SETS[2:] for way in ("margincast mislabel", "cleanlab")),
    *((SETS[1], "swapped concepts", way) for way in ("margincast mislabel", "margincast harm", "cleanlab, concepts")),
    *((SETS[0], "contradicting copies", way) for way in ("margincast conflict", "margincast mislabel", "cleanlab")),
)


def rows() -> Iterator[Row]:
    for data, corruption, way in PLAN:
        result = kept(way, data, corruption, SEEDS)
        for measure in ("auroc", "average precision"):
            values = np.array(result[measure]) if result.get(measure) else np.array([np.nan])
            middle, half = float(values.mean()), 0.0
            if len(values) > 1:
                half = float(values.std(ddof=1) / np.sqrt(len(values)) * t.ppf(0.975, len(values) - 1))
            said = result.get("error", "")
            yield Row(
                f"{data}, {corruption}: {measure}", way, None, middle, middle - half, middle + half, said,
                result.get("seconds", float("nan")), peak_memory_ours=result.get("peak"),
            )  # fmt: skip


def kept(way: str, data: str, corruption: str, seeds: int) -> dict[str, Any]:
    """The result of one way, computed by a process of its own unless it is in the cache."""
    path = cache() / "flips" / f"{key_of([way, data, corruption, seeds])[:16]}.json"
    if not path.is_file():
        words = [sys.executable, "-m", "benchmarks.attribution.flips", way, data, corruption, str(seeds)]
        done = subprocess.run(words, capture_output=True, text=True, check=False)
        if done.returncode:  # a peer that is not there, or fails: said in its row, and tried again next time
            return {"error": (done.stderr.strip().splitlines() or ["no output"])[-1][:200]}
        write_json(path, json.loads(done.stdout.splitlines()[-1]))
    result: dict[str, Any] = json.loads(path.read_text())
    return result


def measured(way: str, data: str, corruption: str, seeds: int) -> dict[str, Any]:
    """Areas under the curve for every seed; median seconds of one; peak memory over that of the features alone."""
    features = persona_features(data)
    before = peak_memory_bytes()
    result: dict[str, Any] = {"auroc": [], "average precision": []}
    seconds = []
    for seed in range(seeds):
        planted = CORRUPTIONS[corruption](features.train, seed)
        start = time.perf_counter()
        score = WAYS[way](replace(features, train=planted.split)).double().numpy()
        seconds.append(time.perf_counter() - start)
        wrong = planted.wrong.numpy()
        result["auroc"].append(auroc(wrong, score))
        result["average precision"].append(average_precision(wrong, score))
    return {**result, "seconds": float(np.median(seconds)), "peak": peak_memory_bytes(), "before": before}


def auroc(wrong: np.ndarray, score: np.ndarray) -> float:
    """Probability that a wrong pair scores above a right one; ties count half."""
    ranks = rankdata(score)
    n = int(wrong.sum())
    return float((ranks[wrong].sum() - n * (n + 1) / 2) / (n * (len(wrong) - n)))


def average_precision(wrong: np.ndarray, score: np.ndarray) -> float:
    """Mean precision at every wrong pair, most suspicious first; of equal scores the wrong ones come last."""
    order = np.lexsort((wrong, -score))
    found = wrong[order]
    return float((np.cumsum(found) / np.arange(1, len(found) + 1))[found].mean())


if __name__ == "__main__":
    print(json.dumps(measured(sys.argv[1], sys.argv[2], sys.argv[3], int(sys.argv[4]))))
