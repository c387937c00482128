"""`jaxrl.cli.running`: what commands print."""

import pytest

from jaxrl.cli import main
from jaxrl.cli.running import evaluation_in_words, host_options, print_evaluation

STEERING = "rows\x1b]0;x\x07.jsonl"

EVALUATION = {
    "algorithm": "ppo",
    "env": "CartPole-v1",
    "seeds": [0, 1],
    "episodes": 128,
    "episode_return_mean": 1.0,
    "episode_return_iqm": 1.0,
    "episode_return_ci95": [1.0, 1.0],
}


@pytest.mark.parametrize(
    "say",
    [
        lambda text: print_evaluation(
            EVALUATION | {"env": text}, as_json=True, next_command=text
        ),
        lambda text: host_options(quiet=False, received=[])["report"](text),
    ],
    ids=["evaluation", "report"],
)
def test_names_from_elsewhere_do_not_steer_the_terminal(say, capsys):
    say(STEERING)
    printed = capsys.readouterr().out
    assert "rows\\x1b]0;x\\x07.jsonl" in printed
    assert not {"\x1b", "\x07"} & set(printed)


def test_episodes_that_were_cut_are_told():
    whole = list(evaluation_in_words(EVALUATION))
    first, told = evaluation_in_words(EVALUATION | {"episodes_cut": 3})
    assert [first] == whole and told.startswith("3 of these") and "10,000" in told


def test_collect_tells_how_many_episodes_were_cut(monkeypatch, capsys):
    about = {"policy": {"algorithm": "ppo"}, "env": "endless", "episodes": 4}
    about |= {"steps": 5, "return_mean": 1.0, "return_stderr": None, "episodes_cut": 3}
    monkeypatch.setattr("jaxrl.runs.collect.collect", lambda *_, **__: about)
    assert main(["collect", "run", "--out", "data", "--episodes", "4"]) == 0
    assert "3 of these episodes did not end" in capsys.readouterr().out
