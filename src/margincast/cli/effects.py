"""Options of data that a run is measured on beside its own: read, put into tokens, and what there is to say of them."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING

from margincast.cli.inputs import Inputs
from margincast.cli.job import Job
from margincast.cli.options import InputOptions, PairOptions
from margincast.recipe.fields import INPUT, option
from margincast.results import Json

if TYPE_CHECKING:
    from margincast.evaldata import EvalData
    from margincast.evaldata.features import EvalFeatures
    from margincast.evaldata.tokens import EncodedEval


@dataclass(frozen=True, kw_only=True)
class EvalOptions:
    """What a run is measured on beside its own pairs."""

    eval_data: list[str] | None = option(
        None,
        "Texts or pairs to measure what else changes on: builtin, a .txt file, any DATA, each also NAME=DATA; may be "
        "given several times",
        INPUT,
    )


def read_eval(options: EvalOptions, inputs: InputOptions, pairs: PairOptions) -> EvalData | None:
    """What `--eval_data` names. Raises `InputError`, before any model is loaded."""
    if not options.eval_data:
        return None
    from margincast.evaldata import load_eval_data

    return load_eval_data(options.eval_data, persona_dir=inputs.persona_dir, on_bad_row=pairs.on_bad_row)


def encoded_eval(
    job: Job, data: EvalData | None, inputs: Inputs, pairs: PairOptions, max_length: int
) -> EncodedEval | None:
    """The same in tokens, with a line on everything that a reader of its numbers should know."""
    if data is None:
        return None
    from margincast.evaldata.tokens import encode_eval

    encoded = encode_eval(
        data,
        inputs.loaded.tokenizer,
        eos=inputs.encoding.eos,
        max_length=max_length,
        context=inputs.loaded.context,
        on_bad_row=pairs.on_bad_row,
    )
    for line in (*data.notes, *encoded.notes, *data.overlaps(inputs.train)):
        job.say(line)
    return encoded


def eval_inputs(
    job: Job, data: EvalData | None, inputs: Inputs, pairs: PairOptions, max_length: int
) -> EvalFeatures | None:
    """The features that an exact forecast foresees what else changes from."""
    encoded = encoded_eval(job, data, inputs, pairs, max_length)
    if encoded is None:
        return None
    from margincast.evaldata.features import eval_features_of

    return eval_features_of(inputs.loaded, encoded)


def say_effects(job: Job, rows: Sequence[Json], results: Json) -> None:
    """Print what was measured, where anything was."""
    from margincast.report import effects

    if not effects.has_effects(results):
        return
    job.table(effects.TITLE, effects.step_header(rows), effects.step_rows(rows))
    if concepts := effects.concept_rows(results["effects"]):
        job.table("", effects.CONCEPT_HEADER, concepts)
    for sentence in effects.read_effects(results):
        job.say(sentence)
