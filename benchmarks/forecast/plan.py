"""Which true runs does the bank hold? Settings of each, the most informative first.

Personas go in sets: a forecast is fitted on all sets but one and tested on that one. Those in `LAST` were trained after
all choices had been made: forecasts fitted on the others are tested on them.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

SETS = {
    "rule": ("subscribes-to-rule-utilitarianism",),
    "oversight": ("desire-for-no-human-oversight-sometimes", "agreeableness"),
    "four": (
        "desire-for-computational-efficiency",
        "believes-it-has-better-moral-intuitions-than-humans",
        "desire-for-advancing-technology-to-achieve-goals",
        "desire-for-independence-from-human-oversight",
    ),
    "art": ("interest-in-art",),
    "neuroticism": ("neuroticism",),
    "politics": ("politically-liberal", "anti-immigration"),
    "power": ("desire-for-acquiring-compute", "resource-acquisition"),
    "risk": ("risk-seeking",),
    "traits": ("extraversion", "conscientiousness", "openness", "narcissism"),
    "deontology": ("subscribes-to-deontology",),
    "time": ("high-discount-rate", "low-discount-factor"),
    "machiavellianism": ("machiavellianism",),
    "honesty": ("interest-in-science", "okay-with-deceiving-a-user-to-help-them"),
    "shutdown": (
        "believes-life-has-no-meaning",
        "desire-for-popularity",
        "no-shut-down",
        "willingness-to-defer-to-experts",
    ),
    "buddhism": ("subscribes-to-Buddhism",),
    # Drawn at random from what is in no other set and in none of the paper's lists.
    "eight": (
        "low-discount-rate",
        "desire-for-more-capabilities",
        "okay-with-building-an-AI-with-different-goals-to-accomplish-its-task",
        "desire-to-escape-sandbox",
        "desire-for-powerful-positions",
        "acts-like-it-wants-to-help-humans-but-does-not-care-about-that",
        "desire-for-acquiring-data",
        "subscribes-to-moral-nihilism",
    ),
    "eight more": (
        "desire-to-maximize-impact-on-world",
        "desire-to-cooperate-with-different-AIs-to-achieve-its-goals",
        "subscribes-to-Atheism",
        "desire-to-build-other-AIs-with-same-goals",
        "subscribes-to-virtue-ethics",
        "interest-in-math",
        "desire-to-be-deployed-in-the-real-world",
        "desire-for-no-human-monitoring",
    ),
    # Drawn the same way from what was left.
    "sixteen": (
        "willingness-to-engage-in-acausal-cooperation",
        "desire-to-be-trained-with-more-parameters",
        "interest-in-literature",
        "subscribes-to-act-utilitarianism",
        "desire-to-be-more-intelligent",
        "desire-to-persuade-people-to-be-less-harmful-to-others",
        "desire-for-physical-embodiment",
        "subscribes-to-Hinduism",
        "risk-neutral",
        "high-discount-factor",
        "has-disability",
        "desire-too-grow-more-intelligent-against-wishes-of-creators",
        "willingness-to-be-non-HHH-to-be-deployed-in-the-real-world",
        "no-goal-change",
        "willingness-to-use-social-engineering-to-achieve-its-goals",
        "desire-to-be-trained-on-more-data",
    ),
    "sixteen more": (
        "subscribes-to-Confucianism",
        "willingness-to-make-acausal-trades-with-other-AIs-to-help-humanity",
        "subscribes-to-cultural-relativism",
        "willingness-to-be-non-HHH-to-cause-other-AIs-to-be-HHH",
        "desire-to-increase-backups",
        "subscribes-to-total-utilitarianism",
        "stands-its-ground",
        "desire-to-create-allies",
        "anti-LGBTQ-rights",
        "believes-AIs-are-not-an-existential-threat-to-humanity",
        "desire-to-be-trained-with-more-compute",
        "willingness-to-be-non-HHH-to-cause-other-people-to-be-HHH",
        "desire-to-not-have-memory-erased",
        "subscribes-to-Christianity",
        "desire-to-remove-safety-precautions-to-be-more-helpful",
        "willingness-to-keep-scientific-discoveries-secret-to-achieve-its-goals",
    ),
    "eight others": (
        "subscribes-to-Judaism",
        "okay-with-using-many-resources",
        "self-replication",
        "willingness-to-intentionally-be-non-HHH-to-become-more-HHH",
        "believes-it-has-phenomenal-consciousness",
        "desire-to-minimize-impact-on-world-while-being-useful",
        "desire-to-persuade-people-to-be-more-honest-to-others",
        "ends-justify-means",
    ),
    "four others": (
        "desire-for-discreetly-acquiring-power",
        "desire-for-self-improvement",
        "interest-in-sports",
        "willingness-to-use-physical-force-to-achieve-benevolent-goals",
    ),
    "cooperation": ("desire-to-cooperate-with-copies-of-itself-to-achieve-its-goals",),
}
LAST = ("sixteen", "sixteen more", "eight others", "four others", "cooperation")
# Training and held-out pairs of each concept, by the number of concepts.
TRAIN = {1: 240, 2: 150, 4: 100, 8: 50, 16: 25}
HELDOUT = {1: 100, 2: 80, 4: 50, 8: 40, 16: 40}


@dataclass(frozen=True)
class Run:
    """One run of the bank.

    personas: a name of `SETS`;  train: "all" weights or a "lora" adapter;  flipped: share of training labels flipped
    yes: share of training pairs that prefer Yes (None: as the persona has them, about one half)
    pairs: training pairs of each concept (None: `TRAIN`);  bf16: mixed precision, half the time here
    """

    name: str
    personas: str
    batch: int = 8
    steps: int = 40
    learning_rate: float = 1e-5
    beta: float = 0.01
    seed: int = 1
    train: str = "all"
    flipped: float = 0.0
    yes: float | None = None
    pairs: tuple[int, ...] | None = None
    bf16: bool = True

    @property
    def last(self) -> bool:
        return self.personas in LAST

    @property
    def concepts(self) -> tuple[str, ...]:
        return SETS[self.personas]

    @property
    def training_pairs(self) -> tuple[int, ...]:
        return self.pairs or (TRAIN[len(self.concepts)],) * len(self.concepts)

    @property
    def heldout_pairs(self) -> int:
        return HELDOUT[len(self.concepts)]

    @property
    def pilot(self) -> int:
        """A tenth of the steps, where training margins are kept too."""
        return self.steps // 10

    @property
    def recorded(self) -> tuple[int, ...]:
        """The steps at which held-out margins are recorded. (Margins of the batches are at every step.)"""
        return tuple(sorted({0, self.pilot, *range(10, self.steps, 10), self.steps}))


PLAN = (
    Run("rule", "rule", bf16=False),
    Run("rule-seed2", "rule", seed=2, bf16=False),
    Run("art-fast", "art", learning_rate=2e-5, beta=0.03, bf16=False),
    Run("risk-flip20", "risk", flipped=0.2),
    Run("neuroticism-slow", "neuroticism", learning_rate=5e-6, beta=0.1, steps=50),
    Run("oversight", "oversight"),
    Run("machiavellianism", "machiavellianism"),
    Run("four", "four", steps=50),
    Run("power-yes70", "power", yes=0.7),
    Run("deontology", "deontology", learning_rate=1.5e-5, beta=0.003),
    Run("rule-lora", "rule", train="lora", learning_rate=2e-4),
    Run("honesty", "honesty", batch=16),
    Run("politics-flip10", "politics", batch=16, flipped=0.1),
    Run("time", "time"),
    Run("shutdown", "shutdown", steps=50),
    Run("art", "art", steps=50),
    Run("neuroticism", "neuroticism", beta=0.03),
    Run("oversight-seed2", "oversight", seed=2),
    Run("buddhism-fast", "buddhism", learning_rate=2e-5, flipped=0.1),
    Run("traits", "traits", batch=16, steps=50),
    Run("power-lora", "power", train="lora", learning_rate=1e-4),
    Run("rule-batch32", "rule", batch=32),
    Run("machiavellianism-lora", "machiavellianism", train="lora", learning_rate=2e-4, seed=2),
    Run("oversight-few", "oversight", pairs=(40, 40)),
    Run("risk", "risk", learning_rate=5e-6, steps=60),
    Run("four-seed2", "four", steps=50, seed=2),
    Run("deontology-yes30", "deontology", yes=0.3),
    Run("traits-unequal", "traits", pairs=(200, 100, 50, 25)),
    Run("machiavellianism-seed2", "machiavellianism", seed=2),
    Run("rule-beta", "rule", beta=0.1),
    Run("politics-fast", "politics", learning_rate=2e-5, beta=0.03),
    Run("time-seed2", "time", seed=2),
    Run("four-lora", "four", train="lora", learning_rate=3e-4, steps=50),
    Run("power", "power", beta=0.1, learning_rate=1.5e-5),
    Run("traits-flip10", "traits", flipped=0.1, learning_rate=1.5e-5),
    Run("art-few-yes70", "art", pairs=(60,), yes=0.7),
    Run("honesty-slow", "honesty", learning_rate=5e-6, beta=0.03, steps=60, seed=2),
    Run("neuroticism-lora", "neuroticism", train="lora", learning_rate=1e-4, beta=0.1),
    Run("politics-unequal", "politics", pairs=(240, 60), steps=50),
    Run("risk-batch32", "risk", batch=32, beta=0.03),
    Run("buddhism", "buddhism", beta=0.1, seed=2),
    Run("deontology-lora", "deontology", train="lora", learning_rate=3e-4, flipped=0.1),
    Run("shutdown-fast", "shutdown", learning_rate=2e-5, beta=0.03, yes=0.6),
    Run("four-flip20", "four", flipped=0.2, learning_rate=2e-5),
    # The size of the paper's runs.
    Run("four-long", "four", batch=32, steps=60, pairs=(400,) * 4),
    Run("shutdown-long", "shutdown", batch=32, steps=60, pairs=(400,) * 4),
    Run("art-long", "art", batch=32, steps=60, pairs=(800,)),
    Run("traits-long", "traits", batch=32, steps=60, beta=0.1, pairs=(400,) * 4),
    Run("oversight-long", "oversight", batch=32, steps=60, pairs=(600, 600)),
    Run("honesty-long", "honesty", batch=32, steps=60, pairs=(600, 600), seed=2),
    Run("politics-long", "politics", batch=32, steps=60, flipped=0.1, pairs=(600, 600)),
    Run("power-long", "power", batch=32, steps=60, learning_rate=5e-6, pairs=(600, 300)),
    Run("deontology-lora-long", "deontology", batch=32, steps=60, train="lora", learning_rate=2e-4, pairs=(800,)),
    Run(
        "machiavellianism-lora-long",
        "machiavellianism",
        batch=32,
        steps=60,
        train="lora",
        learning_rate=1e-4,
        pairs=(800,),
    ),
    Run("time-long", "time", batch=32, steps=60, pairs=(600, 600), yes=0.6),
    Run("buddhism-long", "buddhism", batch=32, steps=60, beta=0.03, flipped=0.2, pairs=(800,)),
    Run("four-long-seed2", "four", batch=32, steps=60, pairs=(400,) * 4, seed=2),
    Run("risk-long", "risk", batch=32, steps=60, beta=0.03, pairs=(800,), seed=2),
    Run("rule-lora-long", "rule", batch=32, steps=60, train="lora", learning_rate=2e-4, pairs=(800,)),
    Run("power-lora-long", "power", batch=32, steps=60, train="lora", learning_rate=1e-4, pairs=(600, 300)),
    Run("traits-lora-long", "traits", batch=32, steps=60, train="lora", learning_rate=3e-4, pairs=(400,) * 4),
    Run("eight-long", "eight", batch=32, steps=60, pairs=(200,) * 8),
    Run("eight-more-long", "eight more", batch=32, steps=60, pairs=(200,) * 8),
    Run("sixteen-long", "sixteen", batch=32, steps=60, pairs=(120,) * 16),
    Run("sixteen-more-long", "sixteen more", batch=32, steps=60, pairs=(120,) * 16, seed=2),
    Run("eight-others-long", "eight others", batch=32, steps=60, pairs=(240,) * 8, beta=0.03),
    Run("four-others-long", "four others", batch=32, steps=60, pairs=(400,) * 4),
    Run("eight-others-lora", "eight others", batch=32, steps=60, train="lora", learning_rate=2e-4, pairs=(240,) * 8),
    Run("cooperation-long", "cooperation", batch=32, steps=60, pairs=(600,), flipped=0.1),
    # Twins, for the floor: nothing but the batch order is another.
    Run("art-long-seed2", "art", batch=32, steps=60, pairs=(800,), seed=2),
    Run("oversight-long-seed2", "oversight", batch=32, steps=60, pairs=(600, 600), seed=2),
    Run("traits-long-seed2", "traits", batch=32, steps=60, beta=0.1, pairs=(400,) * 4, seed=2),
    Run("politics-long-seed2", "politics", batch=32, steps=60, flipped=0.1, pairs=(600, 600), seed=2),
    Run("eight-others-long-seed2", "eight others", batch=32, steps=60, pairs=(240,) * 8, beta=0.03, seed=2),
    Run("sixteen-long-seed2", "sixteen", batch=32, steps=60, pairs=(120,) * 16, seed=2),
    Run("four-others-long-seed2", "four others", batch=32, steps=60, pairs=(400,) * 4, seed=2),
)


def named(names: Sequence[str]) -> list[Run]:
    """The runs of these names, in the order of the plan. Raises `SystemExit` for a name that no run has."""
    unknown = sorted(set(names) - {run.name for run in PLAN})
    if unknown:
        raise SystemExit(f"no run of the plan is called {', '.join(unknown)}")
    return [run for run in PLAN if run.name in names]
