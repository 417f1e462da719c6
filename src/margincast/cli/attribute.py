"""margincast attribute"""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer

from margincast.cli.job import Job, open_job
from margincast.cli.options import CheckedOutput, InputOptions, same
from margincast.errors import InputError
from margincast.recipe.fields import option
from margincast.recipe.recipe import Recipe
from margincast.results import Json

if TYPE_CHECKING:
    from margincast.diagnose import Suspects
    from margincast.features.positions import Positions
    from margincast.records import Features

SHOW, EXPORT = "What to show", "Export"
ACTIONS = ("drop", "flip", "weight")


def issue_names() -> tuple[str, ...]:
    from margincast.registry import Registry

    return Registry("issue", "margincast.diagnose.kinds", "margincast.suspects").names


@dataclass(frozen=True, kw_only=True)
class AttributeOptions:
    """What to show of an attribution, and what to export."""

    pair: str | None = option(None, "Id of a pair: which training pairs make its margin", SHOW)
    top: int = option(10, "Training pairs to keep of every held-out pair", SHOW, least=1)
    export: Path | None = option(None, "A .jsonl file for the cleaned training pairs, for TRL", EXPORT)
    action: str = option(
        "drop",
        "{choices}: drop suspects, exchange their responses, or give them a `weight` of 1 - score",
        EXPORT,
        choices=lambda: ACTIONS,
    )
    issues: str = option(
        "mislabel", "Which kinds, separated by commas: {choices}", EXPORT, choices=issue_names, open=True
    )
    threshold: float | None = option(
        None, "Change pairs with a score above this [default: those flagged]", EXPORT, least=0.0, most=1.0
    )
    share: float | None = option(None, "Change this share of pairs, the worst of one kind", EXPORT, least=0.0, most=1.0)
    cache_dir: Path | None = same(InputOptions, "cache_dir")

    def __post_init__(self) -> None:
        if self.export and self.export.suffix.lower() != ".jsonl":
            raise InputError(f"--export {self.export}: give a .jsonl file")
        plain = AttributeOptions
        said = (getattr(self, name) != getattr(plain, name) for name in ("action", "issues", "threshold", "share"))
        if not self.export and any(said):
            raise InputError("--action, --issues, --threshold and --share say what --export changes; give it a file")

    def changes(self) -> Json:
        """The settings of `plan_changes`."""
        kinds = [kind.strip() for kind in self.issues.split(",") if kind.strip()]
        return {"action": self.action, "kinds": kinds, "threshold": self.threshold, "share": self.share}


def attribute(
    run: Annotated[Path, typer.Argument(help="Folder of a finished forecast or training run")],
    options: AttributeOptions,
    output: CheckedOutput,
) -> None:
    """Say which training pairs make or break each held-out margin, and which are suspect; export a cleaned data set.

    Attributes the forecast with RUN's settings: training of the unembedding on a frozen backbone.

    Example: margincast attribute runs/forecast-... --export cleaned.jsonl
    """
    from margincast.diagnose import Suspects, plan_changes
    from margincast.records import PairSet

    job = open_job("attribute", output, options, run=str(run))
    summary, features = read_run(job, run, options.cache_dir)
    pair, parts = options.pair, (features.train_pairs, features.heldout_pairs)
    if pair is not None and pair not in {each.id for part in parts for each in part}:
        raise InputError(f"--pair {pair}: {run} has no such pair; ids are like {features.heldout_pairs[0].id}")
    if options.export:
        _refuse_overwriting(options.export, features)
        plan_changes(Suspects(PairSet(()), (), {}), **options.changes())  # refuses what cannot be planned
    job.write_config()
    job.done(run_attribution(job, summary, features, options))


def _refuse_overwriting(path: Path, features: Features | Positions) -> None:
    """Raises `InputError` where the export would take the place of the data that it is made from."""
    sources = {pair.source for part in (features.train_pairs, features.heldout_pairs) for pair in part}
    if any(Path(source).exists() and path.resolve() == Path(source).resolve() for source in sources):
        raise InputError(f"--export {path}: that is the data themselves; give another file")


def read_run(job: Job, folder: Path, cache_dir: Path | None) -> tuple[Json, Features | Positions]:
    """The summary of a finished forecast or training run, and the features it used, or those of its response positions
    where these have many tokens. Raises `InputError`."""
    from margincast.cli.again import positions_again
    from margincast.features.kept import kept_features
    from margincast.features.positions import Positions
    from margincast.frozen.engine.spaces import token_spaces
    from margincast.report.sections import read_summary

    if not folder.is_dir():
        raise InputError(f"run folder {folder} does not exist")
    summary = read_summary(folder)
    if summary["command"] not in ("forecast", "train"):
        raise InputError(f"{folder} is of the command {summary['command']}; attribute a forecast or training run")
    features = kept_features(folder)
    for name in ("train", "heldout"):
        if getattr(features, f"{name}_pairs").fingerprint != summary["data"]["fingerprint"][name]:
            raise InputError(f"the features in {folder} are of other pairs than its summary; run the run again")
    if isinstance(features, Positions):
        return summary, features
    if not (features.train.single_token and features.heldout.single_token):
        return summary, positions_again(job, folder, summary, cache_dir)
    recipe = Recipe.from_config(summary["config"], train="head")
    token_spaces(features, recipe)  # refuses what the equations do not cover
    return summary, features


def run_attribution(job: Job, source: Json, features: Features | Positions, options: AttributeOptions) -> Json:
    """Diagnose the run of the summary `source`, export cleaned data, save the result, print the tables."""
    from margincast.diagnose import clean, diagnose_run

    diagnosis = diagnose_run(
        features,
        Recipe.from_config(source["config"], train="head"),
        suspects=found_suspects(job, features),
        pair=options.pair,
        top=options.top,
        origin=origin(source),
    )
    if options.export:
        diagnosis = clean(diagnosis, options.export, **options.changes())
    summary = job.keep(diagnosis, {"data": source["data"], "model": source["model"]}, run=job.config["run"])
    print_tables(job, summary["results"])
    return summary


def found_suspects(job: Job, features: Features | Positions) -> Suspects:
    """Of the training pairs; those that an interrupted run of the same features left are used again."""
    from margincast.diagnose import Suspects, find_issues
    from margincast.runs.store import key_of

    hidden = features.train.hidden.contiguous()
    numbers = key_of([features.train_pairs.fingerprint, hidden.double().sum(dim=0).tolist()])
    try:
        kept = Suspects.load(job.out)
        if kept.settings.get("features") == numbers:
            return kept
    except InputError:
        pass
    found = find_issues(features)
    found = Suspects(found.pairs, found.issues, {**found.settings, "features": numbers})
    found.save(job.out)
    return found


def origin(source: Json) -> str:
    """What is diagnosed: the run of the summary `source`, or the forecast with its settings."""
    from margincast.diagnose.diagnosis import origin_of
    from margincast.runs.load import fitted

    config, forecast = source["config"], source["command"] == "forecast"
    trains = "head" if forecast and not fitted(source) else config.get("train", "all")
    return origin_of(config["optimizer"], source["results"]["final"]["step"], trains, trained=not forecast)


def print_tables(job: Job, results: Json) -> None:
    from margincast.report import attribution as shown

    job.say(f"What is attributed: {results['origin']}.")
    error = results["sum_error"]
    job.say(f"Contributions are {results['exact']}; their sums miss the margins by {error:.1g} of the largest.")
    if results["pair"]:
        pair = results["pair"]
        job.say(f"\n{pair['id']}: {pair['text']}")
        job.table(
            f"Training pairs behind its margin of {pair['margin']:.3g}", shown.TOP_HEADER, shown.top_rows(pair["top"])
        )
    suspects = results["suspects"]
    if "length" in suspects["settings"]:
        job.say(shown.read_length(suspects["settings"]["length"]))
    job.table("Issues", shown.ISSUE_HEADER[:4], [row[:4] for row in shown.issue_rows(suspects)])
    for kind, rows in suspects["worst"].items():
        flagged = [row for row in rows if row[f"is_{kind}_issue"]][:3]
        if flagged:
            job.say(f"{kind}: {suspects['meanings'][kind]}")
        for row in flagged:
            beside = f"\n         like {row['partner_id']}: {row['partner_text']}" if row.get("partner_id") else ""
            job.say(f"  {row[f'{kind}_score']:.3f}  {row['id']}: {row['text']}{beside}")
    step = results["interaction"]["steps"][-1]
    title = f"Who helps whom: what training pairs (rows) add to mean held-out margins (columns), step {step}"
    interaction = results["interaction"]
    if len(interaction["heldout"]) <= 8:
        job.table(title, shown.interaction_header(interaction), shown.interaction_rows(interaction))
    worst = results["harming"][:5]
    job.table(shown.worst_effects_title(worst), shown.EFFECT_HEADER, shown.effect_rows(worst))
    if results.get("counterfactual"):
        check = results["counterfactual"]
        if check["changed"]:
            job.table(f"With {check['changed']} pairs {check['done']}", shown.CHECK_HEADER, shown.check_rows(check))
        else:
            job.say("No pair is past the threshold: the exported pairs are the training pairs as they were.")
        name = Path(results["exported"]["file"])
        job.say(
            f"{name}: the cleaned training pairs. {name.with_suffix('.changes.jsonl').name}: every change and its "
            f"reason. {name.with_suffix('.heldout.jsonl').name}: the held-out pairs, as they were."
        )
