"""What is every file of a run folder called, and in which schema is it written? Names are said here and nowhere else.

`config.yaml` says what a run is, and claims the folder before the first result; `summary.json` comes last and says that
the run is finished; between them come the files of its results.
"""

from __future__ import annotations

from pathlib import Path

SCHEMA_VERSION = 1  # of summary.json; a reader of another version refuses the folder

CONFIG, SUMMARY, REPORT, FIGURES = "config.yaml", "summary.json", "report.html", "figures"

# Every recorded margin, the pairs they are of, and their means.
MARGINS, PAIRS, METRICS = "margins.safetensors", "pairs.jsonl", "metrics.jsonl"

# What the extraction cached, W0's rows of the response tokens, and every pair with its token ids.
FEATURES, FEATURES_MANIFEST = "features.safetensors", "features.manifest.json"
FEATURES_HEAD, FEATURES_PAIRS = "features.head.safetensors", "features.pairs.jsonl"

# A forecast of a trained backbone: the ends of its intervals, the rehearsal, the folder of the pilot.
INTERVALS, REHEARSAL, PILOT = "intervals.safetensors", "rehearsal.safetensors", "pilot"

# A training run: the log of its steps, its model, and the folder of what it needs until it is finished.
TRAIN_LOG, MODEL, STATE = "train_log.jsonl", "model", "state"
REFERENCES = "references.jsonl"  # every pair with its reference log-probabilities, as TRL reads them
LOCK = ".lock"  # of the process that trains there

# What attribute, decompose and reproduce find.
ATTRIBUTION, ISSUES, SUSPECTS = "attribution.jsonl", "issues.jsonl", "suspects.json"
DISPLACEMENT = "displacement.jsonl"
LENGTH = "length.jsonl"  # of a forecast of responses of many tokens
FORETOLD = "foretold.jsonl"  # of compare: every quantity of a forecast with intervals, and what came
SELECTION = "selection.jsonl"  # of select: every training pair, and whether it is kept
COSINES, CURVES, STAGES, LOCKS = "cosines.jsonl", "curves.jsonl", "runs", "locks"

# Files whose SHA-256 summary.json keeps. Features are not read twice for it: their manifest, which is here, has theirs.
HASHED = (
    *(MARGINS, PAIRS, METRICS, FEATURES_MANIFEST, FEATURES_HEAD, FEATURES_PAIRS, INTERVALS, REHEARSAL, TRAIN_LOG),
    REFERENCES,
    *(ATTRIBUTION, ISSUES, SUSPECTS, DISPLACEMENT, LENGTH, FORETOLD, SELECTION, COSINES, CURVES),
)

# All that a run leaves in its folder.
RUN_FILES = {CONFIG, SUMMARY, REPORT, FEATURES, LOCK, *HASHED}
RUN_FOLDERS = {FIGURES, PILOT, MODEL, STATE, STAGES, LOCKS}


def figure_path(folder: Path, name: str) -> Path:
    """The SVG of a figure, which pages show. `report.figures.save_figure` writes others beside it."""
    return folder / FIGURES / f"{name}.svg"
