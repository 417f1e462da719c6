"""Which batches does a training step see? Token ids of real pairs, so that a card's machine needs no data and no model.

`python -m benchmarks.gpu.tokens FILE` writes them with SmolLM2's tokenizer; $MARGINCAST_GPU_TOKENS names that file
where `python -m benchmarks gpu` runs. Random models read the ids as they are: "17 4 9" is the text of three tokens.
"""

from __future__ import annotations

import json
import os
import random
import sys
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from margincast.data import load_pairs
from margincast.records import Pair, PairSet

VOCABULARY = 49_152
END = "<end>"
SEED, STEPS = 0, 8


@dataclass(frozen=True)
class Job:
    """data: under $MARGINCAST_DATA_DIR, or personas;  batch: pairs of a step"""

    data: str
    batch: int


MAX_LENGTH = 1024
JOBS = {
    "persona": Job("persona:k1", 32),
    "hh": Job("hh-helpful/train.jsonl", 32),
    "chat": Job("chat/dpo_en_demo.json", 16),
}


def batches(name: str, vocabulary: int) -> PairSet:
    """Pairs of `STEPS` batches of `JOBS[name]`, their texts token ids, the remainders of a smaller `vocabulary`."""
    kept = os.environ.get("MARGINCAST_GPU_TOKENS")
    ids = json.loads(Path(kept).read_text())[name] if kept else token_ids(name)
    smaller = [[[one % (vocabulary - 1) for one in side] for side in row] for row in ids]
    return PairSet(tuple(pair_of(index, *row) for index, row in enumerate(smaller)))


def pair_of(index: int, *sides: list[int]) -> Pair:
    prompt, chosen, rejected = (" ".join(map(str, ids)) for ids in sides)
    # Both tokenise prompt + response: the space keeps the last and the first token apart.
    return Pair(str(index), "all", prompt, f" {chosen}", f" {rejected}", source="tokens", line=index)


def token_ids(name: str) -> list[tuple[list[int], list[int], list[int]]]:
    """(prompt, chosen, rejected) of pairs drawn at random, once; without the end of the sequence."""
    from margincast.models import load_model
    from margincast.models.load import default_cache_dir
    from margincast.passes.tokenize import encode

    job = JOBS[name]
    tokenizer = load_model("smollm2", cache_dir=default_cache_dir()).tokenizer
    if job.data.startswith("persona:"):
        pairs = load_pairs(job.data, persona_dir=Path(os.environ["MARGINCAST_PERSONA_DIR"]))
    else:
        pairs = load_pairs(Path(os.environ["MARGINCAST_DATA_DIR"]) / job.data, on_bad_row="skip")
    encoding = encode(pairs, tokenizer, eos=False, max_length=MAX_LENGTH - 1, on_bad_row="skip")
    wanted = STEPS * job.batch
    few = random.Random(SEED).sample(range(len(encoding.rows)), min(wanted, len(encoding.rows)))
    rows = [encoding.rows[few[place % len(few)]] for place in range(wanted)]
    return [(list(row.prompt), list(row.chosen), list(row.rejected)) for row in rows]


def tokenizer_of_ids(vocabulary: int) -> Any:
    """A tokenizer to which "17" is token 17, and `END` the last token."""
    from tokenizers import Tokenizer, models, pre_tokenizers
    from transformers import PreTrainedTokenizerFast

    words = {**{str(number): number for number in range(vocabulary - 1)}, END: vocabulary - 1}
    known = Tokenizer(models.WordLevel(words, unk_token=END))
    known.pre_tokenizer = pre_tokenizers.WhitespaceSplit()
    return PreTrainedTokenizerFast(tokenizer_object=known, eos_token=END, pad_token=END, unk_token=END)


def main() -> None:
    Path(sys.argv[1]).write_text(json.dumps({name: token_ids(name) for name in JOBS}))


if __name__ == "__main__":
    main()
