"""`jaxrl report`: what stands in the page and the tables is what the runs say."""

import csv
import dataclasses
import json
import re
import shlex
import shutil
from pathlib import Path

import numpy as np
import pytest

from jaxrl import plotting
from jaxrl.algorithms import ALGORITHMS
from jaxrl.cli import main
from jaxrl.errors import InvalidInput
from jaxrl.report import write_report
from jaxrl.report.entries import Entry, collect_warnings, read_entries
from jaxrl.report.papers import PAPERS, bibtex
from jaxrl.report.tables import aggregates, aggregates_to_latex, to_latex
from jaxrl.runs.experiment import describe, read_experiment, train_command
from jaxrl.sweeps import plan
from jaxrl.sweeps.plan import read_sweep, sweep_command
from tests.support import runs
from tests.support.runs import read_json


@pytest.fixture(scope="module")
def swept(tmp_path_factory):
    """A small sweep through the command line, with a confirmation."""
    out = tmp_path_factory.mktemp("sweep") / "swept_1"
    words = runs.train_argv("ppo", "--quiet", "--out", str(out), "--confirm-seeds", "2")
    grid = ["--grid", "learning_rate=1e-3,1e-2", "gamma=0.9,0.99"]
    assert main(["sweep", *words[1:], *grid]) == 0
    return out


@pytest.fixture(scope="module")
def reported(ppo_run, dqn_run, swept, tmp_path_factory):
    out = tmp_path_factory.mktemp("report") / "out"
    assert (
        main(["report", str(ppo_run), str(dqn_run), str(swept), "--out", str(out)]) == 0
    )
    return out


@pytest.mark.full
def test_the_page_stands_alone_and_holds_everything(reported, ppo_run, swept):
    page = (reported / "report.html").read_text()
    assert not re.search(r'(src|href)="(?!data:)', page), "loads something from outside"
    figures = sorted(reported.glob("*.png"))
    assert len(figures) == 5 and page.count("data:image/png;base64,") == 5
    assert {f.with_suffix(".pdf").exists() for f in figures} == {True}
    for command in (
        train_command(read_experiment(ppo_run)),
        sweep_command(read_sweep(swept)),
    ):
        assert command.replace("'", "&#x27;") in page
    for name, version in read_json(ppo_run / "summary.json")["versions"].items():
        assert f"{name} {version}" in page


@pytest.mark.full
def test_the_tables_hold_what_the_runs_say(reported, ppo_run, dqn_run, swept):
    lines = list(csv.DictReader((reported / "results.csv").open()))
    assert len(lines) == 2 + 4 + 1
    summary = read_json(ppo_run / "summary.json")
    assert float(lines[0]["episode_return_mean"]) == np.mean(
        summary["evaluation_by_member"]
    )
    assert int(lines[0]["seeds"]) == 2
    seeds = list(csv.DictReader((reported / "seeds.csv").open()))
    assert len(seeds) == 2 + 1 + 4 * 2 + 2
    of_sweep = [t["returns"] for t in read_json(swept / "summary.json")["trials"]]
    found = [float(s["episode_return"]) for s in seeds[3:11]]
    assert found == [x for returns in of_sweep for x in returns]


@pytest.mark.full
def test_the_latex_table(reported, swept):
    table = (reported / "table.tex").read_text()
    assert table.count("\\\\\n") == 1 + 7  # the head, and a line for each label
    assert "learning\\_rate = 0.001, gamma = 0.9" in table
    entries = read_entries(swept)
    lines = to_latex(entries).splitlines()
    best = max(np.mean(e.finite_returns) for e in entries)
    assert sum("\\mathbf" in line for line in lines) == sum(
        np.mean(e.finite_returns) == best for e in entries
    )


@pytest.mark.full
def test_a_flattering_return_is_said_to_be_one(swept, ppo_run, tmp_path, capsys):
    out = str(tmp_path / "out")
    words = runs.train_argv("ppo", "--quiet", "--out", str(tmp_path / "sweep"))
    assert main(["sweep", *words[1:], "--grid", "gamma=0.9,0.99"]) == 0
    capsys.readouterr()
    assert main(["report", str(tmp_path / "sweep"), "--out", out]) == 0
    assert "chosen by the same seeds" in capsys.readouterr().out
    assert main(["report", str(swept), "--out", out]) == 0
    assert "chosen by the same seeds" not in capsys.readouterr().out


@pytest.mark.full
@pytest.mark.parametrize("name", ALGORITHMS)
def test_every_algorithm_has_a_paper_to_cite(name):
    assert PAPERS[name] in bibtex({name})


def parsed(monkeypatch, command, name):
    """The experiment or sweep that a command line asks for; nothing runs."""
    asked = []

    def record(wanted, *args, **kwargs):
        asked.append(wanted)
        raise InvalidInput("seen")

    monkeypatch.setattr(f"jaxrl.{name}", record)
    words = shlex.split(command)
    assert words[0] == "jaxrl" and main(words[1:]) == 2
    return asked[0]


@pytest.mark.full
def test_the_command_of_a_run_asks_for_it_again(monkeypatch, ppo_run, dqn_run):
    for run in (ppo_run, dqn_run):
        experiment = read_experiment(run)
        command = train_command(experiment)
        again = parsed(monkeypatch, command, "runs.session.run_experiment")
        assert describe(again) == describe(experiment)


@pytest.mark.full
def test_the_command_of_a_sweep_asks_for_it_again(monkeypatch, swept):
    sweep = read_sweep(swept)
    command = sweep_command(sweep)
    again = parsed(monkeypatch, command, "sweeps.training.run_sweep")
    assert plan.described(again) == plan.described(
        dataclasses.replace(sweep, block=None)
    )


@pytest.mark.parametrize("out", ["report", "../run/report", "figures/report", "."])
def test_a_report_in_a_run_with_a_link_that_leaves_is_refused(ppo_run, tmp_path, out):
    run = shutil.copytree(ppo_run, tmp_path / "run")
    (run / "link").symlink_to(tmp_path / "elsewhere")
    with pytest.raises(InvalidInput, match=str(run / "link")):
        write_report([run], f"{run}/{out}")
    assert not (run / "report").exists()


def test_what_is_not_finished_is_refused(tmp_path, capsys):
    assert main(["report", str(tmp_path)]) == 2
    assert "is not finished" in capsys.readouterr().err
    assert main(["report", str(tmp_path / "nothing")]) == 2
    assert "does not exist" in capsys.readouterr().err


@pytest.mark.full
def test_the_settings_of_a_block_are_lines_of_their_own(swept, capsys):
    """Also of a run of a sweep by itself, and where it is evaluated again."""
    block = swept / "runs" / "000"
    entries, whole = read_entries(block), read_entries(swept)
    for mine, theirs in zip(entries, whole[:4], strict=True):
        assert (mine.label, mine.returns) == (theirs.label, theirs.returns)
        assert mine.command == f"jaxrl train ppo --config {block}/config.json"
    assert main(["evaluate", str(block), "--episodes", "4", "--json"]) == 0
    lines = capsys.readouterr().out.splitlines()
    assert lines[1].startswith("learning_rate = 0.001, gamma = 0.9: return")
    parts = json.loads(lines[-1])["variants"]
    assert [part["overrides"] for part in parts] == [
        t["overrides"] for t in trials_of(swept)
    ]
    assert [part["episode_return_mean"] for part in parts] == [
        np.mean(e.returns) for e in entries
    ]


def trials_of(sweep):
    return read_json(sweep / "summary.json")["trials"]


@pytest.mark.full
def test_seeds_that_chose_a_setting_are_said_to_have(swept, ppo_run, dqn_run):
    entries = [*read_entries(swept), *read_entries(ppo_run), *read_entries(dqn_run)]
    (found,) = [
        line
        for line in collect_warnings([swept, ppo_run, dqn_run], entries)
        if "chose a setting" in line
    ]
    assert found.startswith(f"{ppo_run}: its seeds [0, 1]") and "--seed 2" in found


def entry(label, env, returns):
    row = {"env_steps": 1, "rollout/episode_return": returns}
    seeds = list(range(len(returns)))
    return Entry(label, "ppo", env, seeds, returns, [row], 1, "x", Path(env), {})


@pytest.mark.full
def test_environments_are_taken_together_by_hand():
    """A scores (0, 1) and (1/2, 1); its IQM is that of 0, 1/2, 1, 1: 3/4."""
    entries = [
        entry("a", "one", [0.0, 10.0]),
        entry("a", "two", [-50.0, 0.0]),
        entry("b", "one", [0.0, 0.0]),
        entry("b", "two", [-100.0, None]),
        entry("c", "one", [5.0]),
    ]
    rows = aggregates(entries, {})
    assert [row["label"] for row in rows] == ["a", "b"]
    assert rows[0]["score_iqm"] == 0.75
    assert rows[0]["score_gap"] == pytest.approx(1 - (0 + 1 + 0.5 + 1) / 4)
    assert (rows[1]["score_iqm"], rows[1]["score_gap"]) == (0.0, 1.0)
    assert rows[0]["score_iqm_low"] <= 0.75 <= rows[0]["score_iqm_high"]
    given = aggregates(entries, {"one": (0.0, 20.0)})
    assert given[0]["score_gap"] == pytest.approx(1 - (0 + 0.5 + 0.5 + 1) / 4)
    assert aggregates(entries[:1], {}) == []
    assert "0.75" in aggregates_to_latex(rows)


@pytest.mark.full
@pytest.mark.parametrize(
    ("reference", "message"),
    [
        ("CartPole-v1=0:500", "no run is on 'CartPole-v1'"),
        ("probe/action=1:0", "the first must be the smaller one"),
        ("probe/action=1", "write it as ENV=LOW:HIGH"),
    ],
)
def test_a_reference_that_does_not_fit(ppo_run, tmp_path, capsys, reference, message):
    words = ["--out", str(tmp_path / "out"), "--reference", reference]
    assert main(["report", str(ppo_run), *words]) == 2
    assert message in capsys.readouterr().err and not (tmp_path / "out").exists()


@pytest.mark.full
def test_several_environments_on_one_page(ppo_run, tmp_path):
    other = runs.train(tmp_path / "other", "ppo", env="probe/action-observation")
    out = tmp_path / "out"
    words = ["--reference", "probe/action-observation=-1:1", "--out", str(out)]
    assert main(["report", str(ppo_run), str(other), *words]) == 0
    (row,) = csv.DictReader((out / "aggregates.csv").open())
    assert row["label"] == "ppo" and row["environments"] == "2"
    assert "optimality gap" in (out / "report.html").read_text()
    for name in ("efficiency.pdf", "aggregates.pdf", "aggregates.tex"):
        assert (out / name).exists()
    figure = out / "drawn.svg"
    words = ["plot", str(ppo_run), str(other), "--kind", "aggregates"]
    assert main([*words, "--out", str(figure)]) == 0
    assert "optimality gap" in figure.read_text()
    words[2] = str(ppo_run)
    assert main([*words, "--out", str(figure)]) == 2


@pytest.mark.full
@pytest.mark.fast_cases("png-intervals")
@pytest.mark.parametrize("kind", ["efficiency", "intervals", "profile"])
@pytest.mark.parametrize("ending", ["png", "pdf", "svg"])
def test_figures_of_several_runs(ppo_run, dqn_run, tmp_path, kind, ending):
    out = tmp_path / f"figure.{ending}"
    assert (
        main(["plot", str(ppo_run), str(dqn_run), "--kind", kind, "--out", str(out)])
        == 0
    )
    assert out.stat().st_size > 2_000


@pytest.mark.full
@pytest.mark.parametrize("kind", ["curves", "slices", "heatmap"])
def test_figures_of_a_sweep(swept, tmp_path, kind):
    out = tmp_path / "figure.png"
    assert main(["plot", str(swept), "--kind", kind, "--out", str(out)]) == 0
    assert out.stat().st_size > 5_000


@pytest.mark.full
def test_efficiency_is_normalised_on_each_environment(tmp_path, monkeypatch):
    """A curve from the lowest to the highest score is the diagonal, whatever the scale."""

    def rows(low, high):
        return [
            {"env_steps": 10 * i, "return": [low + (high - low) * i / 4] * 3}
            for i in range(5)
        ]

    drawn = {}
    from matplotlib.axes import Axes

    monkeypatch.setattr(Axes, "plot", lambda self, x, y, **kw: drawn.update(x=x, y=y))
    plotting.plot_efficiency(
        {"a": {"one": rows(0, 500), "two": rows(-90, -80)}},
        tmp_path / "x.png",
        "return",
    )
    np.testing.assert_allclose(drawn["y"], drawn["x"] / 40, atol=1e-12)


@pytest.mark.parametrize(
    ("kind", "message"),
    [("heat", "did you mean 'heatmap'"), ("slices", "a figure of one sweep")],
)
def test_a_figure_that_cannot_be_drawn(ppo_run, tmp_path, capsys, kind, message):
    out = tmp_path / "figure.png"
    assert main(["plot", str(ppo_run), "--kind", kind, "--out", str(out)]) == 2
    assert message in capsys.readouterr().err and not out.exists()
