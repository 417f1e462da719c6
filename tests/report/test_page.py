"""The page opens anywhere: nothing is fetched, nothing in the data acts as markup, figures are inside."""

import base64
import re
from html.parser import HTMLParser
from pathlib import Path

import pytest

from margincast.cli.job import open_job
from margincast.cli.options import OutputOptions
from margincast.decision import verdict
from margincast.errors import InputError
from margincast.report.figures import run_curves, save_figure
from margincast.report.page import PageFigure, PageTable, Section, render_page
from margincast.report.sections import page_of, write_page
from margincast.runs.save import save_trajectory, trajectory_results, write_summary
from tests.report.records import trajectory

HOSTILE = (
    "<script>alert(1)</script>",
    "\"' onload='alert(1)' x=\"",
    "{{ 7 * 7 }}{% for x in y %}",
    "</title></pre></td><img src=https://example.org/x.png>",
    "&lt;b&gt; & <b>",
    "a\u2028b",
    "a\x1b[31m\x00\ufffe\u202eb",
)
# Elements that load or run something, and attributes that name what to load or run.
ACTIVE = {"script", "iframe", "object", "embed", "link", "base", "form", "svg", "video", "audio", "source"}
ADDRESSES = {"src", "href", "srcset", "action", "data", "poster", "background", "xlink:href"}


def shown(text: str) -> str:
    """`text` with what nobody sees in it, and XML refuses, as code points."""
    return re.sub("[\x00\x1b\u2028\u202e\ufffe]", lambda found: f"<U+{ord(found[0]):04X}>", text)


class Reader(HTMLParser):
    """Elements, addresses, event handlers and text of a page."""

    def __init__(self, page: str) -> None:
        super().__init__(convert_charrefs=True)
        self.elements: list[str] = []
        self.addresses: list[str] = []
        self.attributes: list[str] = []
        self.words: list[str] = []
        self.feed(page)
        self.close()
        self.text = "".join(self.words)

    def handle_starttag(self, tag: str, attributes: list[tuple[str, str | None]]) -> None:
        self.elements.append(tag)
        self.attributes += [name for name, _ in attributes]
        self.addresses += [value or "" for name, value in attributes if name in ADDRESSES]

    def handle_data(self, data: str) -> None:
        self.words.append(data)


def assert_self_contained(page: str) -> Reader:
    reader = Reader(page)
    assert not ACTIVE & set(reader.elements)
    assert all(address.startswith("data:image/svg+xml;base64,") for address in reader.addresses)
    assert not [name for name in reader.attributes if name.startswith("on")]
    style = re.search(r"<style>(.*?)</style>", page, re.DOTALL)
    assert style
    assert "url(" not in style[1]
    assert "@import" not in style[1]
    assert "default-src 'none'" in page
    return reader


@pytest.fixture
def figure(tmp_path: Path) -> Path:
    path = tmp_path / "figure.svg"
    path.write_text('<svg xmlns="http://www.w3.org/2000/svg"><script>alert(1)</script></svg>')
    return path


@pytest.mark.parametrize("text", HOSTILE)
def test_every_text_is_shown_as_it_is_or_by_code_points(text: str, figure: Path) -> None:
    section = Section(text, [text], [text], [PageFigure(figure, text)], [PageTable(text, [text, "n"], [[text, "1"]])])
    page = render_page(text, text, [section], [(text, text)])
    reader = assert_self_contained(page)
    text = shown(text)
    # title twice, lead, section title, text, reading, figure caption, table caption, header, cell, detail and its text
    assert reader.text.count(text) == 12
    if set(text) & set("<>&\"'"):
        assert text not in page


def test_figures_are_images_inside_the_page(figure: Path) -> None:
    page = render_page("a", "b", [Section("c", figures=[PageFigure(figure, "d")])], [])
    (address,) = assert_self_contained(page).addresses
    assert base64.b64decode(address.partition(",")[2]) == figure.read_bytes()


def test_numbers_align_right_and_prose_left(figure: Path) -> None:
    tables = [PageTable("numbers", ["a"], [["1"]]), PageTable("prose", ["a"], [["b"]], text=True)]
    page = render_page("a", "b", [Section("c", tables=tables)], [])
    assert page.count('<table class="text">') == 1
    assert page.count("<table>") == 1


def forecast_folder(folder: Path, concepts: list[str], last: float = 1.0, heldout: int = 3) -> Path:
    """A finished forecast of made-up margins, as the command would have left it."""
    run = trajectory(concepts, heldout, last=last)
    settings = {"data": HOSTILE[0], "beta": run.beta, "loss_type": run.loss_type}
    job = open_job("forecast", OutputOptions(out=folder, quiet=True), **settings)
    rows = save_trajectory(folder, run)
    save_figure(run_curves(run), folder / "figures", "curves")
    data = {"concepts": {name: {"train": 4, "heldout": heldout} for name in concepts}}
    results = {**trajectory_results(run, rows, 1.0), "verdict": verdict(run).as_dict()}
    write_summary(folder, "forecast", job.config, results, data=data)
    return folder


def test_the_page_of_a_run_holds_hostile_names_harmlessly(tmp_path: Path) -> None:
    folder = forecast_folder(tmp_path / "run", list(HOSTILE))
    page = write_page(folder).read_text(encoding="utf-8")
    assert page == page_of(folder)
    reader = assert_self_contained(page)
    assert len(reader.addresses) == 1
    assert all(shown(concept) in reader.text for concept in HOSTILE)
    assert "100% of 21 held-out pairs have a positive margin" in reader.text
    assert reader.text.index("Held-out accuracy at step 10 is expected") < reader.text.index("A pair is a prompt")
    assert "7 * 7" in reader.text


def test_the_page_of_a_run_of_single_pairs_says_what_cannot_be_known(tmp_path: Path) -> None:
    text = Reader(page_of(forecast_folder(tmp_path / "run", ["thrift", "tidiness"], heldout=1))).text
    assert "a single held-out pair cannot say how sure that is" in text
    assert "nan" not in text.lower()
    assert "None" not in text


def test_the_page_of_a_diverged_run_says_so(tmp_path: Path) -> None:
    text = Reader(page_of(forecast_folder(tmp_path / "run", ["thrift", "tidiness"], last=float("nan")))).text
    assert "The run diverged: at step 10" in text
    assert "have a positive margin" not in text
    assert "STOP" in text
    assert "Margins are no numbers at step 10" in text


def test_only_finished_runs_have_a_page(tmp_path: Path) -> None:
    with pytest.raises(InputError, match="has no readable summary"):
        page_of(tmp_path)
    folder = forecast_folder(tmp_path / "run", ["thrift"])
    (folder / "figures" / "curves.svg").unlink()
    with pytest.raises(InputError, match=r"run is damaged: .*curves.svg is missing"):
        page_of(folder)
