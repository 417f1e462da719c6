"""What does a reproduction run, in which order, and where? The parts that `margincast reproduce` is made of."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import replace
from typing import TYPE_CHECKING, Any

from margincast.cli.forecast import run_forecast
from margincast.cli.inputs import PairInputs, Reading, read_inputs
from margincast.cli.job import Job
from margincast.cli.options import InputOptions, PairOptions
from margincast.cli.train import KeepOptions, run_training
from margincast.cli.trained import Beforehand, Pilot, run_trained
from margincast.results import Json

if TYPE_CHECKING:
    from margincast.cli.reproduce import ReproduceOptions
    from margincast.paper.curves import Curves
    from margincast.paper.embeddings import Cosines
    from margincast.paper.scales import RunSpec, Scale
    from margincast.paper.verdicts import Verdict
    from margincast.records import PairSet
    from margincast.report.reproduction import Records


class Plan:
    """What a reproduction runs, in order, and where. Every part is a run folder of its own, made once."""

    def __init__(
        self, job: Job, options: ReproduceOptions, scale: Scale, figures: list[str], inputs: InputOptions
    ) -> None:
        from margincast.data.sources import Where, find_sources
        from margincast.paper.scales import run_specs

        self.job, self.options, self.scale, self.figures, self.inputs = job, options, scale, figures, inputs
        where = Where(inputs.persona_dir)
        with_runs = bool({"fig2", "fig4", "fig5"} & set(figures))
        self.specs = run_specs(scale) if with_runs else []
        # Every file is looked for before the first is used.
        self.found = [source.label for source in find_sources("persona:all", where)]
        for k in scale.K if with_runs else ():
            find_sources(self.data(k), where)

    def data(self, k: int) -> str:
        """The DATA of K personas: the paper's list, or the first ones of the packaged data."""
        from margincast.data.persona import paper_lists

        smoke = self.options.scale == "smoke"
        return "persona:" + ",".join(sorted(self.found)[:k] if smoke else paper_lists()[f"k{k}"])

    def embedded(self, figure: str) -> list[str]:
        """The personas of Figure 1 or 3."""
        from margincast.paper.scales import subset

        return subset(self.found) if figure == "fig1" else sorted(self.found)

    def setting(self) -> str:
        """What was run, in a sentence or three."""
        scale = self.scale
        parts = [f"Scale {self.options.scale}, model {self.inputs.model}."]
        for figure in ("fig1", "fig3"):
            if figure in self.figures:
                names = self.embedded(figure)
                count = scale.statements[figure]
                which = " (drawn with a fixed seed, as the paper does not name its ten)" if figure == "fig1" else ""
                parts.append(
                    f"{figure.replace('fig', 'Figure ')}: {len(names)} personas{which}, "
                    f"{'all' if count is None else count} statements of each."
                )
        if self.specs:
            rates, ks, seeds = scale.learning_rate, ", ".join(map(str, scale.K)), ", ".join(map(str, scale.seeds))
            only = "" if "head" in scale.trained else " (the latter forecast, which is that run to rounding)"
            before = "from features alone"
            if scale.rehearsal:
                before = f"from features and a rehearsal with {scale.rehearsal:.0%} of the pairs"
            parts.append(
                f"Runs: K = {ks} personas, seeds {seeds} (split and batch order), {scale.max_steps} steps of AdamW on "
                f"{scale.per_device_train_batch_size} pairs per process, learning rate {rates['all']:g} for all "
                f"weights and {rates['head']:g} for the unembedding alone{only}. Every {scale.eval_steps} steps "
                f"margins of all held-out pairs (10%) and of {scale.record_train} training pairs per persona are kept. "
                f"Training all weights is forecast {before}; the unembedding alone exactly."
            )
            if scale.bf16:
                parts.append(
                    "All weights train, and are evaluated on the way, in bfloat16 mixed precision (weights, gradients "
                    "and AdamW in float32)."
                )
        return " ".join(parts)

    def carry_out(self) -> None:
        from margincast.models.device import resolve_device
        from margincast.report.reproduction import VERDICT_HEADER, Records, verdict_rows
        from margincast.report.sections import write_page
        from margincast.runs.save import write_summary

        job = self.job
        job.write_config()
        job.say(self.setting())
        found = None
        with self.claimed("embeddings", wait=False) as mine:
            if mine:
                found = self.embeddings()
        self.work()
        if found is None:  # another process was at them
            with self.claimed("embeddings", wait=True):
                found = self.embeddings()
        cosines, conditions = found
        curves = tuple(self.curves())
        if not job.main:
            return
        records = Records(tuple(cosines), curves, tuple(self.figures))
        verdicts = [verdict.as_dict() for verdict in self.verdicts(records, conditions)]
        records.save(job.out)
        results = {
            "verdicts": verdicts,
            "figures": self.figures,
            "setting": self.setting(),
            "conditions": conditions,
            "seconds": job.seconds,
        }
        model = {"id": self.inputs.model, "revision": self.inputs.revision}
        device = resolve_device(self.inputs.device)
        summary = write_summary(job.out, "reproduce", job.config, results, model=model, device=device)
        write_page(job.out)
        job.table("", VERDICT_HEADER, verdict_rows(verdicts))
        job.say(f"Figures and verdicts: {job.out / 'report.html'}")
        job.done(summary)

    def verdicts(self, records: Records, conditions: list[Json]) -> list[Verdict]:
        from margincast.paper.verdicts import condition_verdicts, cosine_verdicts, curve_verdicts

        found = [verdict for one in records.cosines for verdict in cosine_verdicts(one)]
        found += [*condition_verdicts(conditions), *curve_verdicts(records.curves)]
        if self.specs and len(self.scale.K) > 1:
            found.append(self.theory())
        return found

    def theory(self) -> Verdict:
        """How margins grow with K where the theory's own distribution is drawn: what its scaling is set beside."""
        from margincast.paper.growth import simulated_growth
        from margincast.paper.scales import BETA
        from margincast.paper.verdicts import theory_verdict
        from margincast.theory.distribution import preference_distribution

        draws, Q, d, shared_norm, noise = 3, 20, 60, 0.4, 0.05
        rates = {}
        for k in self.scale.K:
            distribution = preference_distribution(k, Q, d, shared_norm, noise)
            rates[k] = [simulated_growth(distribution, BETA, seed) for seed in range(draws)]
        return theory_verdict(rates, f"{draws} draws of Q={Q}, d={d}, l_b={shared_norm}, v={noise}")

    def embeddings(self) -> tuple[list[Cosines], list[Json]]:
        """Cosines of Figures 1 and 3, and the theorems' conditions on the questions of the first of them."""
        from margincast.paper.embeddings import INPUTS, condition_rows, figure_cosines, normed_again

        cosines: list[Cosines] = []
        conditions: list[Json] = []
        for figure in self.figures:
            if figure not in self.scale.statements:
                continue
            for shown in INPUTS:
                self.job.say(f"{figure}: embeddings of {len(self.embedded(figure))} personas, {shown}s")
                features, model = self.features(figure, shown)
                cosines += figure_cosines(figure, shown, features)
                if self.options.double_norm:
                    cosines += figure_cosines(figure, shown, normed_again(features, model), double_norm=True)
                if shown == "question" and not conditions:
                    conditions = condition_rows(features, f"{shown}s of {figure}")
        return cosines, conditions

    def shown(self, figure: str, shown: str) -> PairSet:
        """The pairs whose prompts are what the model reads for the figure: questions, or bare statements."""
        from margincast.data import load_pairs
        from margincast.paper.embeddings import as_statements

        names, count = self.embedded(figure), self.scale.statements[figure]
        every = load_pairs("persona:" + ",".join(names), persona_dir=self.inputs.persona_dir)
        pairs = every.spread((count or 0) * len(names))
        return as_statements(pairs) if shown == "statement" else pairs

    def features(self, figure: str, shown: str) -> tuple[Any, Any]:
        """Features of the figure's pairs, all of them as training pairs, and the model."""
        from margincast.features import features_of
        from margincast.passes.tokenize import encode
        from margincast.records import PairSet

        pairs, inputs = self.shown(figure, shown), self.inputs
        cache_dir = inputs.cache
        loaded = inputs.loaded()
        encoding = encode(pairs, loaded.tokenizer, context=loaded.context)
        features = features_of(
            loaded, encoding, pairs, PairSet(()), cache_dir=cache_dir, progress=self.job.progress, say=self.job.say
        )
        return features, loaded.model

    def work(self) -> None:
        """Make every run that is not made yet. Another process at work in the same folder takes other runs."""
        before = sum(self.stage(spec).finished for spec in self.specs)
        if before:
            self.job.say(f"{before} of {len(self.specs)} runs: done before")
        for wait in (False, True):  # first what nobody is at, then what others were at and have perhaps not finished
            for number, spec in enumerate(self.specs, start=1):
                with self.claimed(spec.folder, wait) as mine:
                    # Asked under the lock: another process may have made it meanwhile.
                    stage = self.stage(spec)
                    if mine and not stage.finished:
                        self.job.say(f"run {number} of {len(self.specs)}: {spec.folder}")
                        self.run(spec, stage)

    @contextmanager
    def claimed(self, part: str, wait: bool) -> Iterator[bool]:
        """Whether `part` is this process's to make: no other process that runs this reproduction is at it."""
        from filelock import FileLock, Timeout

        from margincast.cli.launch import launched

        if launched():  # processes of one launch make every part together
            yield True
            return
        path = self.job.out / "locks" / part
        path.parent.mkdir(parents=True, exist_ok=True)
        lock = FileLock(path, timeout=-1 if wait else 0)
        try:
            lock.acquire()
        except Timeout:
            yield False
            return
        try:
            yield True
        finally:
            lock.release()

    def curves(self) -> Iterator[Curves]:
        """What every run of Figures 2, 4 and 5 found."""
        from margincast.paper.curves import curves_of, restricted
        from margincast.runs.load import load_run

        for spec in self.specs if self.job.main else ():
            trajectory = load_run(self.stage(spec).out).trajectory
            # A forecast has all training pairs: of them those that training records.
            recorded = trajectory.train.pairs.spread(self.scale.record_train * spec.K)
            yield curves_of(spec, restricted(trajectory, recorded))

    def run(self, spec: RunSpec, stage: Job) -> None:
        """Make one run. Features of its pairs are made once for all seeds: they are the same under any split."""
        from margincast.features import features_of
        from margincast.paper.scales import recipe_of
        from margincast.processes import processes
        from margincast.records import PairSet

        recipe = recipe_of(spec, self.scale, processes())
        reading = Reading(self.data(spec.K), self.inputs, PairOptions(), spec.seed, recipe.max_length)
        inputs = read_inputs(stage, reading)
        every = features_of(
            inputs.loaded,
            inputs.encoding,
            inputs.encoding.pairs,
            PairSet(()),
            cache_dir=self.inputs.cache,
            progress=self.job.progress,
            layers=True,
        )
        features = replace(every, train=every.train.select(inputs.train), heldout=every.train.select(inputs.heldout))
        whole = PairInputs(**vars(inputs), features=features)
        if spec.source == "training":
            run_training(stage, whole, recipe, KeepOptions(save_model=False))
        elif stage.main and spec.weights == "all":  # of several processes the first alone makes a forecast
            run_trained(stage, whole, recipe, Beforehand(Pilot(), self.scale.rehearsal), reading)
        elif stage.main:
            run_forecast(stage, whole, recipe)

    def stage(self, spec: RunSpec) -> Job:
        from margincast.paper.scales import recipe_of
        from margincast.processes import processes

        shared = {"processes": processes()} if processes() > 1 and spec.source == "training" else {}
        rehearsed = {"rehearsal": self.scale.rehearsal} if spec.weights == "all" and spec.source == "forecast" else {}
        return replace(self.job, quiet=True).stage(
            f"runs/{spec.folder}",
            spec.source.replace("ing", ""),
            recipe_of(spec, self.scale, processes()),
            self.inputs,
            PairOptions(),
            data=self.data(spec.K),
            **rehearsed,
            **shared,
        )
