"""Topics: planted clusters come back, in number and membership, points without clusters are one topic, names tell."""

from __future__ import annotations

import random
from dataclasses import replace

import pytest
import torch
from sklearn.metrics import adjusted_rand_score
from torch import Tensor

from margincast.errors import InputError
from margincast.records import Pair, PairSet, Text
from margincast.structure import kmeans
from margincast.structure.kmeans import rand_index, stabilities
from margincast.structure.topics import ONE, Topics, find_topics
from margincast.structure.words import telling_words, words

THEMES = ("recipe cook dinner", "python code error", "goal striker match", "planet orbit moon", "tax invoice salary")


def planted(topics: int, each: int, seed: int, distance: float = 6.0) -> tuple[Tensor, PairSet, list[int]]:
    """Prompts of `topics` themes whose features are Gaussian, of a falling spectrum, about a centre for each."""
    generator = torch.Generator().manual_seed(seed)
    width, total = 24, topics * each
    truth = [k % topics for k in range(total)]
    centres = torch.nn.functional.normalize(torch.randn(topics, width, generator=generator, dtype=torch.float64), dim=1)
    noise = torch.randn(total, width, generator=generator, dtype=torch.float64) * torch.linspace(1.5, 0.5, width)
    hidden = 3.0 + distance * centres[truth] * (topics > 1) + noise
    hidden[:, 5] *= 300.0  # a coordinate of another scale, as models have
    draw = random.Random(seed)
    made = []
    for row, topic in enumerate(truth):
        theme = " ".join(draw.sample(THEMES[topic].split(), 2))
        dashes = "-" * draw.randrange(60)  # prompts of all lengths, whatever their topic
        prompt = f"Human: please tell me what the {theme} of number {row} would be {dashes}\n"
        made.append(Pair(f"p{row}", "all", prompt, " Yes", " No", "made.jsonl", row + 1))
    return hidden, PairSet(tuple(made)), truth


@pytest.mark.parametrize("topics, seed", [(2, 0), (3, 1), (5, 2)])
def test_planted_topics_come_back_with_their_words(topics: int, seed: int) -> None:
    hidden, pairs, truth = planted(topics, 100 // topics + 10, seed)
    found = find_topics(hidden, pairs)
    assert len(found.names) == topics
    assert adjusted_rand_score(truth, found.train_topic.tolist()) > 0.95
    for number, name in enumerate(found.names):
        theme = {truth[row] for row in range(len(pairs)) if found.train_topic[row] == number}
        best = max(theme, key=lambda k: sum(truth[r] == k for r in range(len(pairs)) if found.train_topic[r] == number))
        assert set(name.split("-")) == set(THEMES[best].split())
    assert [train for train, _ in found.sizes] == sorted((train for train, _ in found.sizes), reverse=True)
    assert next(row for row in found.stability if row.count == topics).agreement > 0.9


def test_points_without_clusters_are_one_topic() -> None:
    """At a level of 1 in 20 more than two finds among six are an accident of 1 in 450; the draws are fixed."""
    found = [find_topics(*planted(1, 60, seed)[:2], seed=seed) for seed in range(6)]
    assert sum(len(topics.names) > 1 for topics in found) <= 2
    single = next(topics for topics in found if len(topics.names) == 1)
    assert single.names == (ONE,) and single.sizes == ((60, 0),) and single.words == ((),)


def test_neither_the_order_nor_the_ids_of_pairs_matter() -> None:
    hidden, pairs, _ = planted(3, 20, seed=3)
    order = torch.randperm(len(pairs), generator=torch.Generator().manual_seed(0))
    mixed = PairSet(tuple(replace(pairs[row], id=f"x{k}", line=k + 1) for k, row in enumerate(order.tolist())))
    one, other = find_topics(hidden, pairs), find_topics(hidden[order], mixed)
    assert (one.names, one.words, one.stability) == (other.names, other.words, other.stability)
    assert torch.equal(one.train_topic[order], other.train_topic)


def test_held_out_pairs_go_to_the_nearest_topic_and_do_not_move_it() -> None:
    hidden, pairs, truth = planted(3, 60, seed=4)
    cut = 120
    found = find_topics(hidden[:cut], pairs[:cut], count=3)
    both = found.place(hidden[cut:], pairs[cut:])
    assert both.names == found.names and torch.equal(both.train_topic, found.train_topic)
    assert adjusted_rand_score(truth[cut:], both.heldout_topic.tolist()) > 0.95
    assert sum(heldout for _, heldout in both.sizes) == len(pairs) - cut
    wanted = pairs[100:140]
    labelled = both.relabel(wanted)
    assert [pair.id for pair in labelled] == [pair.id for pair in wanted]
    assert set(labelled.concepts) <= set(both.names)
    assert [replace(pair, concept="all") for pair in labelled] == list(wanted)
    topic = torch.cat([both.train_topic, both.heldout_topic])[100:140].tolist()
    assert [pair.concept for pair in labelled] == [both.names[number] for number in topic]
    with pytest.raises(KeyError):
        found.relabel(wanted)


def test_a_prompt_of_many_pairs_counts_once() -> None:
    hidden, pairs, _ = planted(2, 20, seed=5)
    repeats = tuple(replace(pairs[0], id=f"again{k}", chosen=f" {k}") for k in range(200))
    found = find_topics(torch.cat([hidden, hidden[:1].expand(200, -1)]), PairSet(pairs.pairs + repeats))
    alone = find_topics(hidden, pairs)
    assert torch.equal(found.train_topic[: len(pairs)], alone.train_topic) or len(found.names) == len(alone.names) == 2
    assert len(set(found.train_topic[len(pairs) :].tolist()) | {int(found.train_topic[0])}) == 1


def test_short_prompts_are_no_topic() -> None:
    """Features that move with the length of prompts, far more than with their topics, give the topics all the same."""
    hidden, pairs, truth = planted(3, 30, seed=8)
    lengths = [1 if draw < 0.5 else 8 for draw in torch.rand(90, generator=torch.Generator().manual_seed(0)).tolist()]
    longer = PairSet(tuple(replace(p, prompt=str(p.prompt) * n) for p, n in zip(pairs, lengths, strict=True)))
    logs = torch.tensor([len(str(pair.prompt)) for pair in longer]).double().log()[:, None]
    moved = hidden + 20.0 * logs * torch.randn(24, generator=torch.Generator().manual_seed(1), dtype=torch.float64)
    found = find_topics(moved, longer, count=3)
    assert adjusted_rand_score(truth, found.train_topic.tolist()) > 0.95


def test_what_cannot_be_grouped() -> None:
    hidden, pairs, _ = planted(2, 20, seed=6)
    same = PairSet(tuple(replace(pair, prompt="again") for pair in pairs))
    assert find_topics(hidden, same).names == find_topics(torch.ones_like(hidden), pairs).names == (ONE,)
    assert find_topics(hidden[:3], pairs[:3]).names == (ONE,)
    assert find_topics(hidden[:1], pairs[:1]).names == (ONE,)
    assert find_topics(torch.ones_like(hidden), pairs, count=3).names == (ONE,)
    for count in (0, 41):
        with pytest.raises(InputError, match=f"{count} topics cannot be found in 40 different prompts; give 1 to 40"):
            find_topics(hidden, pairs, count=count)
    hidden[7, 3] = float("nan")
    with pytest.raises(InputError, match=r"made.jsonl, line 8: the features of the prompt are not finite"):
        find_topics(hidden, pairs)
    with pytest.raises(InputError, match="there are none"):
        find_topics(hidden[:0], pairs[:0])
    with pytest.raises(InputError, match="features of 39 pairs"):
        find_topics(hidden, pairs[:39])


def chat(*contents: str) -> Text:
    return tuple({"role": "user", "content": content} for content in contents)


def test_words_of_any_script_name_topics() -> None:
    """Chinese is written without spaces, Hindi and Thai with marks that are no letters; some prompts say nothing."""
    assert list(words("Don't STOP 3 times, it's the café’s menu")) == [
        "dont",
        "stop",
        "times",
        "its",
        "the",
        "cafés",
        "menu",
    ]
    assert list(words("我喜欢猫")) == ["我喜", "喜欢", "欢猫"]
    assert list(words("हिन्दी भाषा")) == ["हिन्दी", "भाषा"]
    prompts = [chat("请介绍足球比赛", f"第{k}") for k in range(9)] + [chat(f"请写烹饪食谱 {k}") for k in range(9)]
    empty = ["", "?!", "42", "\n", *[f"ราคา {'x' * k}" for k in range(2, 8)]]
    found = telling_words([*prompts, *empty], [0] * 9 + [1] * 9 + [2] * 4 + [3] * 6, 4)
    assert {word for word, _ in found[0]} == {"介绍", "绍足", "足球", "球比", "比赛", "请介"}
    assert {"烹饪", "食谱"} <= {word for word, _ in found[1]}
    assert found[2] == []
    assert {word for word, _ in found[3]} == {"รา", "าค", "คา"}


def test_stop_words_and_words_of_every_prompt_do_not_name_topics() -> None:
    """Nor do words of one prompt, however strange; a word is of one topic."""
    first = [f"Human: you would not bake the bread {'of' * k} rye" for k in range(20)]
    second = [f"Human: can we go to paint a picture with oil number {k}" for k in range(20)]
    found = telling_words([*first, *second], [0] * 20 + [1] * 20, 2)
    assert [word for word, _ in found[0]] == ["bake", "bread", "rye"]
    assert [word for word, _ in found[1]] == ["number", "oil", "paint", "picture"]


def test_agreement_of_clusterings_is_the_adjusted_rand_index() -> None:
    generator = torch.Generator().manual_seed(0)
    first = torch.randint(4, (6, 50), generator=generator)
    second = torch.where(
        torch.rand(6, 50, generator=generator) < 0.5, first, torch.randint(3, (6, 50), generator=generator)
    )
    expected = [adjusted_rand_score(a, b) for a, b in zip(first.tolist(), second.tolist(), strict=True)]
    torch.testing.assert_close(rand_index(first, second), torch.tensor(expected, dtype=torch.float64))
    assert float(rand_index(torch.zeros(1, 5).long(), torch.zeros(1, 5).long())) == 1.0


def test_kmeans_is_as_good_as_that_of_scikit_learn() -> None:
    from sklearn.cluster import KMeans

    points = torch.randn(3, 80, 4, generator=torch.Generator().manual_seed(0), dtype=torch.float64)
    centres = kmeans.kmeans(points, 5, torch.Generator().manual_seed(1), restarts=20)
    ours = torch.cdist(points, centres).amin(dim=-1).square().sum(dim=1).tolist()
    theirs = [KMeans(5, n_init=20, random_state=0).fit(problem.numpy()).inertia_ for problem in points]
    assert all(mine <= 1.02 * peer for mine, peer in zip(ours, theirs, strict=True))


def test_a_long_direction_is_no_cluster() -> None:
    """Two halves of points along a line agree where to cut it: only the Gaussian points beside them show that."""
    generator = torch.Generator().manual_seed(0)
    points = torch.randn(400, 6, generator=generator, dtype=torch.float64) * torch.tensor([9.0, 1, 1, 1, 1, 1])
    rows, beyond_chance = stabilities(points, (2, 3), generator)
    assert rows[0].agreement > 0.7 and not beyond_chance


def test_topics_show_themselves() -> None:
    hidden, pairs, _ = planted(3, 40, seed=7)
    topics: Topics = find_topics(hidden[:90], pairs[:90], count=3).place(hidden[90:], pairs[90:])
    frame = topics.to_pandas()
    assert list(frame.topic) == list(topics.names)
    assert frame.train.sum() == 90 and frame.heldout.sum() == 30
    assert topics._repr_html_().startswith("<table>") and topics.names[0] in topics._repr_html_()
    assert len(repr(topics)) < 200


def test_a_single_word_tells_nothing() -> None:
    assert telling_words(["Question 1 is", "Question 2 is"] * 3, [0, 1] * 3, 2) == [[], []]
    assert telling_words(["Question 1 is"] * 6, [0] * 6, 1) == [[]]
