"""What does a reproduction run, in which order, and where? The parts that `margincast reproduce` is made of."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import replace
from pathlib import Path
from typing import TYPE_CHECKING, Any

from margincast.cli.forecast import run_forecast
from margincast.cli.inputs import PairInputs, read_inputs
from margincast.cli.job import Job
from margincast.cli.train import run_training, training_settings
from margincast.cli.trained import PilotOption, run_trained, train_config

if TYPE_CHECKING:
    from margincast.paper.curves import Curves
    from margincast.paper.embeddings import Cosines
    from margincast.paper.scales import RunSpec, Scale
    from margincast.paper.verdicts import Verdict
    from margincast.records import PairSet
    from margincast.report.reproduction import Records


class Plan:
    """What a reproduction runs, in order, and where. Every part is a run folder of its own, made once."""

    def __init__(
        self, job: Job, scale: Scale, figures: list[str], personas: Path | None, cache_dir: Path | None
    ) -> None:
        from margincast.data.sources import find_sources
        from margincast.paper.scales import run_specs

        self.job, self.scale, self.figures, self.personas, self.cache_dir = job, scale, figures, personas, cache_dir
        with_runs = bool({"fig2", "fig4", "fig5"} & set(figures))
        self.specs = run_specs(scale) if with_runs else []
        # Every file is looked for before the first is used.
        self.found = [source.label for source in find_sources("persona:all", personas, None)]
        for k in scale.K if with_runs else ():
            find_sources(self.data(k), personas, None)

    def data(self, k: int) -> str:
        """The DATA of K personas: the paper's list, or the first ones of the packaged data."""
        from margincast.data.persona import paper_lists

        smoke = self.job.config["scale"] == "smoke"
        return "persona:" + ",".join(sorted(self.found)[:k] if smoke else paper_lists()[f"k{k}"])

    def embedded(self, figure: str) -> list[str]:
        """The personas of Figure 1 or 3."""
        from margincast.paper.scales import subset

        return subset(self.found) if figure == "fig1" else sorted(self.found)

    def setting(self) -> str:
        """What was run, in a sentence or three."""
        scale, config = self.scale, self.job.config
        parts = [f"Scale {config['scale']}, model {config['model']}."]
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
        model = {"id": job.config["model"], "revision": job.config["revision"]}
        summary = write_summary(job.out, "reproduce", job.config, results, model=model, device=job.config["device"])
        write_page(job.out)
        job.table("", VERDICT_HEADER, verdict_rows(verdicts))
        job.say(f"Figures and verdicts: {job.out / 'report.html'}")
        job.done(summary)

    def verdicts(self, records: Records, conditions: list[dict[str, Any]]) -> list[Verdict]:
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

    def embeddings(self) -> tuple[list[Cosines], list[dict[str, Any]]]:
        """Cosines of Figures 1 and 3, and the theorems' conditions on the questions of the first of them."""
        from margincast.paper.embeddings import INPUTS, condition_rows, figure_cosines, normed_again

        cosines: list[Cosines] = []
        conditions: list[dict[str, Any]] = []
        for figure in self.figures:
            if figure not in self.scale.statements:
                continue
            for shown in INPUTS:
                self.job.say(f"{figure}: embeddings of {len(self.embedded(figure))} personas, {shown}s")
                features, model = self.features(figure, shown)
                cosines += figure_cosines(figure, shown, features)
                if self.job.config["double_norm"]:
                    cosines += figure_cosines(figure, shown, normed_again(features, model), double_norm=True)
                if shown == "question" and not conditions:
                    conditions = condition_rows(features, f"{shown}s of {figure}")
        return cosines, conditions

    def shown(self, figure: str, shown: str) -> PairSet:
        """The pairs whose prompts are what the model reads for the figure: questions, or bare statements."""
        from margincast.data import load_pairs
        from margincast.paper.embeddings import as_statements
        from margincast.training.run import spread

        names, count = self.embedded(figure), self.scale.statements[figure]
        pairs = spread(load_pairs("persona:" + ",".join(names), persona_dir=self.personas), (count or 0) * len(names))
        return as_statements(pairs) if shown == "statement" else pairs

    def features(self, figure: str, shown: str) -> tuple[Any, Any]:
        """Features of the figure's pairs, all of them as training pairs, and the model."""
        from margincast.features import features_of
        from margincast.models import load_model
        from margincast.models.load import default_cache_dir
        from margincast.passes.tokenize import encode
        from margincast.records import PairSet

        pairs, config = self.shown(figure, shown), self.job.config
        cache_dir = self.cache_dir or default_cache_dir()
        options = {name: config[name] for name in ("revision", "dtype", "device", "trust_remote_code")}
        loaded = load_model(config["model"], cache_dir=cache_dir, **options)
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
                        self.run(stage)

    @contextmanager
    def claimed(self, part: str, wait: bool) -> Iterator[bool]:
        """Whether `part` is this process's to make: no other process that runs this reproduction is at it."""
        from filelock import FileLock, Timeout

        from margincast.processes import launched

        if launched():  # processes of one launch make every part together
            yield True
            return
        path = self.job.out / "locks" / part
        path.parent.mkdir(parents=True, exist_ok=True)
        lock = FileLock(path, blocking=wait)
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
        from margincast.training.run import spread

        for spec in self.specs if self.job.main else ():
            trajectory = load_run(self.stage(spec).out).trajectory
            # A forecast has all training pairs: of them those that training records.
            recorded = spread(trajectory.train.pairs, self.scale.record_train * spec.K)
            yield curves_of(spec, restricted(trajectory, recorded))

    def run(self, stage: Job) -> None:
        """Make one run. Features of its pairs are made once for all seeds: they are the same under any split."""
        from margincast.features import features_of
        from margincast.models.load import default_cache_dir
        from margincast.records import PairSet

        inputs = read_inputs(stage, self.personas, self.cache_dir)
        loaded, encoding, train, heldout = inputs.loaded, inputs.encoding, inputs.train, inputs.heldout
        every = features_of(
            loaded,
            encoding,
            encoding.pairs,
            PairSet(()),
            cache_dir=self.cache_dir or default_cache_dir(),
            progress=self.job.progress,
            layers=True,
        )
        features = replace(every, train=every.train.select(train), heldout=every.train.select(heldout))
        whole = PairInputs(loaded, encoding, train, heldout, features)
        if stage.command == "train":
            run_training(stage, whole)
        elif stage.main and "backbone" in stage.config:  # of several processes the first alone makes a forecast
            run_trained(stage, whole, training_settings(train_config(stage.config)), PilotOption(), None)
        elif stage.main:
            run_forecast(stage, whole)

    def stage(self, spec: RunSpec) -> Job:
        from margincast.paper.scales import settings_of
        from margincast.processes import processes

        names = ("model", "revision", "dtype", "device", "trust_remote_code")
        config = {name: self.job.config[name] for name in names} | settings_of(spec, self.scale, processes())
        config |= {"data": self.data(spec.K), "persona_dir": None if self.personas is None else str(self.personas)}
        if processes() > 1 and spec.source == "training":
            config["processes"] = processes()
        return replace(self.job, config=config, quiet=True).stage(f"runs/{spec.folder}", spec.source.replace("ing", ""))
