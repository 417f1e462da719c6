"""Every figure shows what it was given, whatever the concepts are called and however few pairs there are."""

from collections.abc import Callable
from pathlib import Path
from xml.etree import ElementTree

import pytest
from matplotlib.figure import Figure

from margincast.comparison import compare
from margincast.report.figures import comparison_curves, cosine_matrices, margin_scatter, run_curves, save_figure, short
from tests.report.records import STEPS, structure, trajectory

ONE, THREE = ["thrift"], ["thrift", "tidiness", "curiosity"]
TWENTY = [f"concept {number}" for number in range(20)]
ODD = [
    "_hidden",
    "$x^$y",
    "a very long name that no legend has room for, and more of it",
    "two\nlines",
    "100 $",
    "名前",
    "a\x1b[31m\x00\ufffe\u202eb",
]


def curves(concepts: list[str], heldout: int = 3) -> Figure:
    return run_curves(trajectory(concepts, heldout))


def both_curves(concepts: list[str], heldout: int = 3) -> Figure:
    return comparison_curves(compare(trajectory(concepts, heldout), trajectory(concepts, heldout, seed=1)), "A", "B")


def scatter(concepts: list[str], heldout: int = 3) -> Figure:
    return margin_scatter(compare(trajectory(concepts, heldout), trajectory(concepts, heldout, seed=1)), "A", "B")


def cosines(concepts: list[str], heldout: int = 3) -> Figure:
    return cosine_matrices(structure(concepts, nan=heldout == 1), "non_matching")


FIGURES = (curves, both_curves, scatter, cosines)


def legend(figure: Figure) -> list[str]:
    (only,) = figure.legends
    return [text.get_text() for text in only.get_texts()]


@pytest.mark.parametrize("make", FIGURES)
@pytest.mark.parametrize("concepts", [ONE, THREE, TWENTY, ODD], ids=["one", "three", "twenty", "odd"])
@pytest.mark.parametrize("heldout", [1, 3])
def test_any_concepts_can_be_drawn(
    make: Callable[[list[str], int], Figure], concepts: list[str], heldout: int, tmp_path: Path
) -> None:
    save_figure(make(concepts, heldout), tmp_path, "figure")
    assert (tmp_path / "figure.svg").read_text(encoding="utf-8").startswith("<?xml")
    assert (tmp_path / "figure.png").read_bytes().startswith(b"\x89PNG")


@pytest.mark.parametrize("make", FIGURES)
def test_the_same_figure_gives_the_same_bytes(make: Callable[[list[str]], Figure], tmp_path: Path) -> None:
    figure = make(THREE)
    for name in ("first", "second"):
        save_figure(figure, tmp_path, name)
    save_figure(make(THREE), tmp_path, "third")
    for kind in ("svg", "png"):
        first, *others = [(tmp_path / f"{name}.{kind}").read_bytes() for name in ("first", "second", "third")]
        assert others == [first, first]


def test_run_curves_have_a_line_per_concept_and_two_for_all() -> None:
    figure = curves(THREE)
    margin, _, accuracy = figure.axes
    assert [len(axis.lines) for axis in figure.axes] == [5, 5, 5]
    assert [axis.get_ylabel() for axis in figure.axes] == ["reward margin", "loss", "accuracy"]
    assert all(tuple(line.get_xdata()) == STEPS for axis in figure.axes for line in axis.lines)
    lines = {line.get_label(): line.get_ydata() for line in margin.lines}
    run = trajectory(THREE)
    assert list(lines["held-out"]) == pytest.approx(run.heldout.margins.mean(dim=1).tolist())
    assert list(lines["training"]) == pytest.approx(run.train.margins.mean(dim=1).tolist())
    assert list(lines["tidiness"]) == pytest.approx(run.heldout.margins[:, 3:6].mean(dim=1).tolist())
    assert accuracy.get_ylim() == (-0.03, 1.03)
    assert legend(figure) == ["held-out", "training", *THREE]


def test_a_figure_is_xml_whatever_its_concepts_are_called(tmp_path: Path) -> None:
    save_figure(run_curves(trajectory(ODD)), tmp_path, "curves")
    assert ElementTree.parse(tmp_path / "curves.svg").getroot().tag.endswith("svg")


def test_a_single_concept_is_not_drawn_twice() -> None:
    assert [len(axis.lines) for axis in curves(ONE).axes] == [2, 2, 2]
    assert [len(axis.lines) for axis in both_curves(ONE).axes] == [2, 2, 2]
    assert legend(curves(ONE)) == ["held-out", "training"]


def test_comparison_curves_have_both_runs_of_every_concept() -> None:
    figure = both_curves(THREE)
    assert [len(axis.lines) for axis in figure.axes] == [8, 8, 8]
    assert legend(figure) == ["A", "B", *THREE]
    solid, dashed = ([line for line in figure.axes[0].lines if line.get_linestyle() == style] for style in ("-", "--"))
    assert len(solid) == len(dashed) == 4
    assert {line.get_color() for line in solid} == {line.get_color() for line in dashed}


def test_the_scatter_has_a_point_per_heldout_pair() -> None:
    figure = scatter(THREE)
    (axis,) = figure.axes
    assert [len(points.get_offsets()) for points in axis.collections] == [3, 3, 3]
    assert "Spearman" in axis.get_title()
    assert "nan" not in scatter(ONE, heldout=1).axes[0].get_title()


def test_cosine_matrices_are_shown_with_their_numbers_as_long_as_there_is_room() -> None:
    raw, centred, *bars = cosines(THREE).axes
    assert len(bars) == 2
    for axis, limits in ((raw, (0.0, 1.0)), (centred, (-1.0, 1.0))):
        (image,) = axis.images
        assert image.get_array().shape == (3, 3)
        assert image.get_clim() == limits
        assert sorted(text.get_text() for text in axis.texts) == ["0.50"] * 6 + ["1.00"] * 3
    assert not cosines(TWENTY).axes[0].texts


def test_a_cosine_that_there_is_none_of_is_no_number() -> None:
    texts = [text.get_text() for text in cosines(THREE, heldout=1).axes[0].texts]
    assert texts.count("-") == 5
    assert "nan" not in texts


def test_every_concept_has_an_entry_in_the_legend() -> None:
    entries = legend(curves(ODD))
    assert len(entries) == len(ODD) + 2
    assert all(len(entry) <= 29 for entry in entries)
    assert legend(curves(TWENTY)) == ["held-out", "training", *TWENTY]


@pytest.mark.parametrize("make", [curves, both_curves, scatter])
@pytest.mark.parametrize("count", [20, 24, 25, 40])
def test_the_legend_fits_into_the_figure(make: Callable[[list[str]], Figure], count: int) -> None:
    figure = make([f"concept {number} of a family with a long name" for number in range(count)])
    figure.draw_without_rendering()
    box = figure.legends[0].get_window_extent()
    assert box.y0 >= 0
    assert box.x1 <= figure.bbox.x1
    assert all(axis.get_position().x1 * figure.bbox.x1 <= box.x0 for axis in figure.axes)
    named = [entry for entry in legend(figure) if entry.startswith("concept")]
    assert len(named) == (count if count <= 24 else 0)
    assert (f"each of {count} concepts" in legend(figure)) == (count > 24)


@pytest.mark.parametrize(
    ("name", "label"),
    [
        ("thrift", "thrift"),
        ("_a", " _a"),
        ("$1 or $2", r"\$1 or \$2"),
        ("a\n b", "a b"),
        ("x" * 20 + "y" * 20, "x" * 14 + "…" + "y" * 13),
    ],
)
def test_labels_are_short_and_literal(name: str, label: str) -> None:
    assert short(name) == label
