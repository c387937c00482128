"""Writes rliable.json: what rliable gives for random scores.

    python -m venv V && V/bin/pip install rliable==1.2.0 'pandas<3'
    V/bin/python tests/golden/rliable_values.py

rliable needs pandas below 3, so it is not among the packages of the tests.
"""

import json
from importlib import metadata
from pathlib import Path

import numpy as np
from rliable import library, metrics

RESAMPLES = 20_000


def main() -> None:
    rng = np.random.default_rng(0)
    scores = {
        "x": rng.normal(0.7, 0.3, (12, 4)),
        "y": np.round(rng.normal(0.6, 0.4, (12, 4)), 1),  # with ties
    }
    thresholds = np.linspace(0.0, 1.5, 7)
    both = {"x,y": (scores["x"], scores["y"])}
    found: dict = {"thresholds": thresholds.tolist(), "scores": {}}
    for name, table in scores.items():
        found["scores"][name] = table.T.tolist()  # a list for each task
    points, intervals = {}, {}
    for name, statistic in (
        ("iqm", metrics.aggregate_iqm),
        ("optimality_gap", metrics.aggregate_optimality_gap),
    ):
        for label, table in scores.items():
            function = lambda x, statistic=statistic: np.array([statistic(x)])  # noqa: E731
            point, interval = library.get_interval_estimates(
                {label: table},
                function,
                reps=RESAMPLES,
                random_state=np.random.RandomState(0),
            )
            points[f"{name}/{label}"] = float(point[label][0])
            intervals[f"{name}/{label}"] = interval[label].ravel().tolist()
    point, interval = library.get_interval_estimates(
        both,
        metrics.probability_of_improvement,
        reps=RESAMPLES,
        random_state=np.random.RandomState(0),
    )
    points["probability_of_improvement/x,y"] = float(point["x,y"])
    intervals["probability_of_improvement/x,y"] = interval["x,y"].ravel().tolist()
    profiles, bands = library.create_performance_profile(
        {"x": scores["x"]}, thresholds, reps=RESAMPLES
    )
    found |= {
        "points": points,
        "intervals": intervals,
        "profile": profiles["x"].tolist(),
        "profile_interval": bands["x"].tolist(),
        "versions": {n: metadata.version(n) for n in ("rliable", "arch", "numpy")},
    }
    path = Path(__file__).with_name("rliable.json")
    path.write_text(json.dumps(found, indent=1) + "\n")


if __name__ == "__main__":
    main()
