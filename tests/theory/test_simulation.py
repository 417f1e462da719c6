"""Simulations, their sweep, their figures, and the two commands on top."""

from __future__ import annotations

import json
from pathlib import Path

import pytest
import typer
from typer.testing import CliRunner

from margincast.cli.bounds import bounds
from margincast.cli.main import with_options
from margincast.cli.options import parse_sweep
from margincast.cli.simulate import SWEPT
from margincast.cli.simulate import simulate as simulate_command
from margincast.errors import InputError
from margincast.report.simulation import (
    coverage_figure,
    risk_figure,
    simulation_results,
    sweep_figure,
    trajectories_figure,
)
from margincast.theory.distribution import preference_distribution
from margincast.theory.simulation import Setup, simulate, sweep

SMALL = {"K": 2, "Q": 10, "d": 20, "shared_norm": 0.4, "noise": 0.02}


def run_command(command: object, *words: str) -> tuple[int, str, BaseException | None]:
    app = typer.Typer()
    app.command()(with_options(command))
    result = CliRunner().invoke(app, words)
    return result.exit_code, result.stdout, result.exception


def flags(**changes: object) -> list[str]:
    return [word for name, value in {**SMALL, **changes}.items() for word in (f"--{name}", str(value))]


def test_a_run_ends_at_tau_1_inside_every_bracket() -> None:
    run = simulate(preference_distribution(**{**SMALL, "noise": 0.003}), beta=0.3, tau=2.0, seed=1, points=11)
    results = simulation_results(run)
    assert results["tau_1"] == pytest.approx(run.guarantees["printed"].tau_1)
    assert results["certificate_at_tau_1"]["lower"] <= results["margin_at_tau_1"]["min"]
    assert results["margin_at_tau_1"]["max"] <= results["certificate_at_tau_1"]["upper"]
    assert results["envelope_held"] and results["explicit_envelope_held"] and results["lemma_event_held"]
    assert results["log10_risk_at_tau_1"] < -50.0
    assert results["certified_learned_at_tau_1"] == {"train": 40, "train_true": 40, "fresh": 200, "fresh_true": 200}


def test_a_run_far_outside_the_conditions_is_reported_as_such() -> None:
    run = simulate(preference_distribution(2, 10, 20, 0.4, 1.0, "shared"), beta=1.0, points=5)
    results = simulation_results(run)
    assert not results["lemma_event_held"] and not results["envelope_held"]
    assert -2.0 < results["log10_risk_at_tau_1"] < 0.0


def test_the_same_seed_gives_the_same_numbers_in_any_process() -> None:
    setups = {K: Setup(preference_distribution(**{**SMALL, "K": K}), 0.3, 1.0, 7) for K in (1, 2)}
    inside = [
        simulation_results(simulate(each.distribution, each.beta, each.tau, each.seed)) for each in setups.values()
    ]
    outside = sweep("K", setups, processes=2)
    assert outside.values == (1, 2)
    assert [simulation_results(run) for run in outside.runs] == inside


def test_each_figure_shows_the_run_and_what_is_promised() -> None:
    runs = [simulate(preference_distribution(**{**SMALL, "K": K}), 0.3, points=5) for K in (1, 2)]
    figure = trajectories_figure(runs[0])
    labels = [text.get_text() for text in figure.axes[0].get_legend().get_texts()]
    assert labels == ["all training pairs", "mean", "certificate", "envelopes, derived", "envelopes, explicit"]
    labels = [text.get_text() for text in risk_figure(runs[0]).axes[0].get_legend().get_texts()]
    assert [label for label in labels if label.startswith("printed") and label.endswith("says nothing")]
    assert len(coverage_figure(runs[0]).axes[0].lines) == 4
    mean = sweep_figure("K", [1, 2], runs).axes[0].lines[0].get_ydata()
    assert mean[1] == pytest.approx(mean[0] / 2.0, rel=0.1)


def test_bounds_prints_the_promised_keys(tmp_path: Path) -> None:
    status, output, _ = run_command(bounds, "--json", "--out", str(tmp_path / "run"))
    assert status == 0
    results = json.loads(output)["results"]
    assert {"name", "left", "right", "holds"} <= set(results["conditions"][0])
    assert results["envelope_at_tau_1"]["lower"] < results["envelope_at_tau_1"]["upper"]
    for bound in ("failure_probability", "risk_bound"):
        assert {"printed", "derived", "explicit", "vacuous"} <= set(results[bound])
        assert results[bound]["vacuous"] == {
            "printed": True,
            "printed_appendix": True,
            "derived": True,
            "explicit": False,
        }
    assert results["failure_probability"]["explicit"] < 1e-20 < 1.0 < results["failure_probability"]["derived"]


def test_simulate_prints_the_promised_keys_and_saves_figures(tmp_path: Path) -> None:
    out = tmp_path / "run"
    status, output, _ = run_command(simulate_command, *flags(), "--json", "--out", str(out))
    assert status == 0
    results = json.loads(output)["results"]
    assert results["envelope_held"] is True
    assert set(results["margin_at_tau_1"]) >= {"min", "max"}
    assert set(results["certificate_at_tau_1"]) >= {"lower", "upper"}
    assert results["log10_risk_at_tau_1"] < 0.0
    assert {path.name for path in (out / "figures").glob("*.svg")} == {"trajectories.svg", "risk.svg", "coverage.svg"}


def test_a_sweep_reports_every_value_and_growth_falls_with_K(tmp_path: Path) -> None:
    words = [*flags(), "--sweep", "K=1,2", "--json", "--out", str(tmp_path / "run")]
    status, output, _ = run_command(simulate_command, *words)
    assert status == 0
    rows = json.loads(output)["results"]["sweep"]
    assert [row["K"] for row in rows] == [1, 2]
    assert rows[1]["growth"] == pytest.approx(rows[0]["growth"] / 2.0, rel=0.1)
    assert (tmp_path / "run/figures/sweep.png").is_file()


@pytest.mark.parametrize("command", [bounds, simulate_command])
@pytest.mark.parametrize(
    "change",
    [{"noise": -0.1}, {"noise": 0}, {"K": 20}, {"K": 0}, {"Q": 0}, {"beta": 0}, {"beta": -1}, {"tau": "nan"}],
)
def test_nonsense_is_refused_before_anything_is_written(command: object, change: dict, tmp_path: Path) -> None:
    out = tmp_path / "run"
    status, output, error = run_command(command, *flags(**change), "--out", str(out))
    # Ours is refused with one line; what the option's own type refuses ends with the status of bad usage.
    assert (isinstance(error, InputError) and "\n" not in str(error)) or status == 2
    assert output == "" and not out.exists()


@pytest.mark.parametrize("text", ["K", "K=", "K=one", "K=1.5", "speed=1,2", "K=1,1", "=1"])
def test_a_sweep_that_cannot_be_read_is_refused(text: str) -> None:
    with pytest.raises(InputError, match="--sweep"):
        parse_sweep(text, SWEPT, "K=1,2")
    assert parse_sweep("noise=0.1,0.2", SWEPT, "K=1,2") == ("noise", [0.1, 0.2])


def test_a_simulation_too_large_for_memory_is_refused(tmp_path: Path) -> None:
    _, _, error = run_command(simulate_command, *flags(Q=10**9), "--out", str(tmp_path / "run"))
    assert isinstance(error, InputError) and "lower Q or d" in str(error)
