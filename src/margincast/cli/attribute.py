"""margincast attribute"""

from __future__ import annotations

from enum import StrEnum
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer

from margincast.cli import options as opt
from margincast.cli.job import Job, open_job
from margincast.errors import InputError

if TYPE_CHECKING:
    from margincast.diagnose import Suspects
    from margincast.records import Features

SHOW, EXPORT = "What to show", "Export"
EFFECTS = 10  # training pairs of each direction


class Action(StrEnum):
    drop = "drop"
    flip = "flip"
    weight = "weight"


def attribute(
    run: Annotated[Path, typer.Argument(help="Folder of a finished forecast or training run")],
    pair: Annotated[
        str | None,
        typer.Option("--pair", help="Id of a pair: which training pairs make its margin", rich_help_panel=SHOW),
    ] = None,
    top: Annotated[
        int, typer.Option("--top", min=1, help="Training pairs to keep of every held-out pair", rich_help_panel=SHOW)
    ] = 10,
    export: Annotated[
        Path | None,
        typer.Option("--export", help="A .jsonl file for the cleaned training pairs, for TRL", rich_help_panel=EXPORT),
    ] = None,
    action: Annotated[
        Action,
        typer.Option(
            "--action",
            help="Drop suspects, exchange their responses, or give them a `weight` of 1 - score",
            rich_help_panel=EXPORT,
        ),
    ] = Action.drop,
    issues: Annotated[
        str,
        typer.Option(
            "--issues",
            help="Which kinds, separated by commas: mislabel, duplicate, conflict, unlearnable, harm",
            rich_help_panel=EXPORT,
        ),
    ] = "mislabel",
    threshold: Annotated[
        float | None,
        typer.Option(
            "--threshold",
            min=0.0,
            max=1.0,
            help="Change pairs with a score above this [default: those flagged]",
            rich_help_panel=EXPORT,
        ),
    ] = None,
    share: Annotated[
        float | None,
        typer.Option(
            "--share",
            min=0.0,
            max=1.0,
            help="Change this share of pairs, the worst of one kind",
            rich_help_panel=EXPORT,
        ),
    ] = None,
    out: opt.Out = None,
    resume: opt.Resume = True,
    json_: opt.Json = False,
    quiet: opt.Quiet = False,
) -> None:
    """Say which training pairs make or break each held-out margin, and which are suspect; export a cleaned data set.

    Attributes the forecast with RUN's settings: training of the unembedding on a frozen backbone.

    Example: margincast attribute runs/forecast-... --export cleaned.jsonl
    """
    job = open_job("attribute", locals())
    if export and export.suffix.lower() != ".jsonl":
        raise InputError(f"--export {export}: give a .jsonl file")
    if not export and (threshold is not None or share is not None or action != Action.drop or issues != "mislabel"):
        raise InputError("--action, --issues, --threshold and --share say what --export changes; give it a file")
    summary, features = read_run(run)
    config = job.config
    if pair is not None and pair not in {each.id for part in (features.train, features.heldout) for each in part.pairs}:
        raise InputError(f"--pair {pair}: {run} has no such pair; ids are like {features.heldout.pairs[0].id}")
    if export:
        check_export(config)
    job.write_config()
    job.done(run_attribution(job, summary, features))


def read_run(folder: Path) -> tuple[dict[str, Any], Features]:
    """The summary of a finished forecast or training run, and the features it used. Raises `InputError`."""
    from margincast.frozen.engine.spaces import token_spaces
    from margincast.report.sections import read_summary
    from margincast.runs.features import kept_features

    if not folder.is_dir():
        raise InputError(f"run folder {folder} does not exist")
    summary = read_summary(folder)
    if summary["command"] not in ("forecast", "train"):
        raise InputError(f"{folder} is of the command {summary['command']}; attribute a forecast or training run")
    features = kept_features(folder)
    for name in ("train", "heldout"):
        if getattr(features, name).pairs.fingerprint != summary["data"]["fingerprint"][name]:
            raise InputError(f"the features in {folder} are of other pairs than its summary; run the run again")
    token_spaces(features, summary["config"]["beta"])  # refuses what the equations do not cover
    return summary, features


def check_export(config: dict[str, Any]) -> None:
    """Refuse an export that cannot be planned, before any work. Raises `InputError`."""
    from margincast.diagnose import Suspects, plan_changes
    from margincast.records import PairSet

    plan_changes(Suspects(PairSet(()), (), {}), **export_settings(config))


def export_settings(config: dict[str, Any]) -> dict[str, Any]:
    kinds = [kind.strip() for kind in config["issues"].split(",") if kind.strip()]
    return {"action": config["action"], "kinds": kinds, "threshold": config["threshold"], "share": config["share"]}


def run_attribution(job: Job, source: dict[str, Any], features: Features) -> dict[str, Any]:
    """Attribute the run with the settings of `source`, find suspects, export, save everything, print the tables."""
    from margincast.cli.forecast import forecast_settings
    from margincast.diagnose import interaction
    from margincast.diagnose.effects import heldout_effects, heldout_tops, top_of
    from margincast.frozen.attribution.contributions import attribute as attribute_run
    from margincast.frozen.forecast import forecast
    from margincast.report import attribution as shown
    from margincast.report.figures import save_figure
    from margincast.report.sections import write_page
    from margincast.runs.save import peak_memory_bytes, write_summary
    from margincast.runs.store import write_jsonl

    config = job.config
    settings = forecast_settings(source["config"])
    now = forecast(features, **settings)
    last = now.attributed()
    suspects = found_suspects(job, features)
    effects = heldout_effects(features, last, settings["beta"])
    suspicion = {row["id"]: row["mislabel_score"] for row in suspects.issues}
    suspects = suspects.with_column("heldout_effect", effects.tolist())
    suspects.save(job.out)
    count = min(config["top"], len(features.train.pairs))
    write_jsonl(job.out / "attribution.jsonl", heldout_tops(features, last, settings["beta"], count))
    steps = (attribute_run(features, at=[step], **settings)[step] for step in now.steps)
    matrix = interaction(features, steps, settings["beta"])
    ranked = sorted(suspects.issues, key=lambda row: row["heldout_effect"])
    margins = now.heldout.margins[-1]
    sums = last.margins(now_targets(features, settings["beta"]))
    results: dict[str, Any] = {
        "run": config["run"],
        "origin": origin_of(source),
        "exact": last.exact,
        "step": now.steps[-1],
        "sum_error": float((sums - margins).abs().max() / margins.abs().max().clamp_min(1e-300)),
        "heldout": {"margin": float(margins.mean()), "accuracy": float((margins > 0).double().mean())},
        "suspects": suspects.summary(),
        "interaction": matrix.as_dict(),
        "helping": effect_list(ranked[::-1]),
        "harming": effect_list(ranked),
        "pair": top_of(features, last, settings["beta"], config["pair"], count) if config["pair"] else None,
    }
    if results["pair"]:
        results["pair"]["top"] = [{**row, "mislabel_score": suspicion[row["id"]]} for row in results["pair"]["top"]]
    if config["export"]:
        results |= export_changes(job, features, suspects, settings)
    results |= {"seconds": job.seconds, "peak_memory_bytes": peak_memory_bytes()}
    for name, figure in (
        ("interaction", shown.interaction_figure(results["interaction"])),
        ("interaction-over-time", shown.interaction_over_time(results["interaction"])),
        ("suspects", shown.suspects_figure(suspects.issues)),
    ):
        save_figure(figure, job.out / "figures", name)
    summary = write_summary(job.out, "attribute", config, results, data=source["data"], model=source["model"])
    write_page(job.out)
    print_tables(job, results)
    return summary


def found_suspects(job: Job, features: Features) -> Suspects:
    """Of the training pairs; those that an interrupted run of the same features left are used again."""
    from margincast.diagnose import Suspects, find_issues
    from margincast.runs.store import key_of

    hidden = features.train.hidden.contiguous()
    numbers = key_of([features.train.pairs.fingerprint, hidden.double().sum(dim=0).tolist()])
    try:
        kept = Suspects.load(job.out)
        if kept.settings.get("features") == numbers:
            return kept
    except InputError:
        pass
    found = find_issues(features.train)
    found = Suspects(found.pairs, found.issues, {**found.settings, "features": numbers})
    found.save(job.out)
    return found


def now_targets(features: Features, beta: float) -> Any:
    from margincast.frozen.engine.spaces import token_spaces

    return token_spaces(features, beta)[1]


def origin_of(source: dict[str, Any]) -> str:
    """What is attributed, said plainly."""
    config = source["config"]
    frozen = f"training the unembedding on a frozen backbone, with {config['optimizer']}, {config['max_steps']} steps"
    if source["command"] == "forecast" or config["train"] == "head":
        return f"{frozen}: the run itself"
    what = {"all": "all weights", "lora": "a LoRA adapter"}[config["train"]]
    return (
        f"the forecast of {frozen}, with the settings of a run that trained {what}; contributions are exact for the "
        "forecast, and no statement about what the moving backbone added. Suspects are of the data, and hold for both"
    )


def effect_list(rows: list[Any]) -> list[dict[str, Any]]:
    return [
        {"id": row["id"], "effect": row["heldout_effect"], "mislabel_score": row["mislabel_score"]}
        for row in rows[:EFFECTS]
    ]


def export_changes(job: Job, features: Features, suspects: Suspects, settings: dict[str, Any]) -> dict[str, Any]:
    """Write the cleaned data set, and say what it would do to the forecast: first order, and run again."""
    from margincast.diagnose import plan_changes, write_cleaned
    from margincast.diagnose.effects import counterfactual

    changes = plan_changes(suspects, **export_settings(job.config))
    path = Path(job.config["export"])
    write_cleaned(path, features.train.pairs, features.heldout.pairs, changes)
    done = {"drop": "dropped", "flip": "flipped", "weight": "given less weight"}[job.config["action"]]
    check = counterfactual(features, changes, settings)
    return {
        "exported": {"file": str(path), "changed": [change.id for change in changes], "action": job.config["action"]},
        "counterfactual": {"changed": len(changes), "done": done, **check},
    }


def print_tables(job: Job, results: dict[str, Any]) -> None:
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
    job.table("Training pairs that harm most", shown.EFFECT_HEADER, shown.effect_rows(results["harming"][:5]))
    if results.get("counterfactual"):
        check = results["counterfactual"]
        job.table(f"With {check['changed']} pairs {check['done']}", shown.CHECK_HEADER, shown.check_rows(check))
        name = Path(results["exported"]["file"])
        job.say(
            f"{name}: the cleaned training pairs. {name.with_suffix('.changes.jsonl').name}: every change and its "
            f"reason. {name.with_suffix('.heldout.jsonl').name}: the held-out pairs, as they were."
        )
