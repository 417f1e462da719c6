"""A report in a real browser without a network: the console is silent and nothing is asked of anyone."""

from __future__ import annotations

import json
import re
import shutil
import subprocess
from pathlib import Path

import pytest

from margincast.report.sections import write_page
from tests.cli.helpers import run
from tests.report.test_page import HOSTILE, forecast_folder

NAMES = ("chromium", "chromium-browser", "google-chrome", "chrome")
BROWSER = next(filter(None, map(shutil.which, NAMES)), None)
SWITCHES = (
    "--headless", "--no-sandbox", "--disable-gpu", "--disable-quic", "--no-first-run", "--disable-component-update",
    "--disable-background-networking", "--disable-sync", "--host-resolver-rules=MAP * ~NOTFOUND",
    "--enable-logging=stderr", "--v=0", "--dump-dom",
)  # fmt: skip
pytestmark = pytest.mark.skipif(BROWSER is None, reason=f"no browser on PATH: {', '.join(NAMES)}")


def complaints(page: Path, scratch: Path) -> list[str]:
    """What a browser says about `page`: messages on its console, and requests that it made for it, all in vain."""
    log = scratch / "net.json"
    places = (f"--user-data-dir={scratch / 'profile'}", f"--log-net-log={log}")
    done = subprocess.run(
        [str(BROWSER), *SWITCHES, *places, page.as_uri()], capture_output=True, text=True, check=True, timeout=120
    )
    assert "</html>" in done.stdout
    console = [line for line in done.stderr.splitlines() if re.search(r":CONSOLE[:(]\d+\)?\]", line)]
    record = json.loads(log.read_text(encoding="utf-8"))
    started = record["constants"]["logEventTypes"]["URL_REQUEST_START_JOB"]
    asked = [event["params"] for event in record["events"] if event["type"] == started and "params" in event]
    # What the browser asks for itself, its clock and its updates, has no page behind it.
    return console + [event["url"] for event in asked if "url" in event and event["initiator"] != "not an origin"]


def test_the_report_of_a_run(tmp_path: Path) -> None:
    outcome = run("forecast", "traits", "--model", "tiny", "--max_steps", 2, "--out", tmp_path / "run")
    assert outcome.status == 0, outcome.err
    assert complaints(tmp_path / "run" / "report.html", tmp_path) == []


def test_a_report_full_of_hostile_names(tmp_path: Path) -> None:
    assert complaints(write_page(forecast_folder(tmp_path / "run", list(HOSTILE))), tmp_path) == []


@pytest.mark.parametrize(
    "body, complaint",
    [
        ("<script>console.error('to be seen')</script>", "to be seen"),
        ("<script>no_such_function()</script>", "no_such_function is not defined"),
        ("<script src='https://example.org/there.js'></script>", "https://example.org/there.js"),
    ],
)
def test_a_page_that_is_not_right_is_found_out(body: str, complaint: str, tmp_path: Path) -> None:
    page = tmp_path / "page.html"
    page.write_text(f"<!doctype html><html><body>{body}</body></html>", encoding="utf-8")
    (found,) = complaints(page, tmp_path)
    assert complaint in found
