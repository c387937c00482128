"""Models in folders: scores of a reward model."""

import jax
import numpy as np
import pytest

from jaxrl.core import storage
from jaxrl.errors import InvalidInput
from jaxrl.rlhf.models import language_model
from jaxrl.rlhf.models.transformer import GPT
from tests.support.language import (
    REWARD,
    close,
    read,
)
from tests.support.language import SMALL as MODEL


def test_a_score_is_read_at_the_last_token(pairs):
    rows = pairs.teacher.rows
    flat = [x.reshape(-1, x.shape[-1]) for x in rows[:3]]
    found = jax.jit(language_model.scorer(GPT(MODEL)))(REWARD, *flat)
    for i in range(4):
        _, hidden = read(REWARD.model, flat[0][i][flat[1][i]])
        close(found[i], hidden @ REWARD.head + REWARD.bias, 1e-4)


def test_normalized_moments_by_hand():
    r = np.array([1.0, 2.0, 6.0])
    moments = np.array([0.25, r.mean(), 0.25 * r.var()])  # of any weight
    found = language_model.normalize(REWARD, moments)
    assert found.model is REWARD.model
    gain = 1 / r.std()
    close(found.head, gain * REWARD.head)
    close(found.bias, gain * (REWARD.bias - r.mean()))
    # Scores that are all alike, and a model that has not begun: the scale stays.
    for moments in (np.array([1.0, 2.0, 1e-18]), np.zeros(3)):
        close(language_model.normalize(REWARD, moments).head, REWARD.head)


ABOUT = {
    "algorithm": "rlhf-sft",
    "config": {},
    "env_params": {},
    "seeds": [0, 1],
    "language_model": {
        "kind": "policy",
        "config": {"vocab_size": 258, "max_length": 8, "num_layers": 1},
        "tokenizer": {"kind": "bytes"},
    },
}


@pytest.mark.parametrize(
    ("changes", "field"),
    [
        ({"language_model": [1]}, "language_model"),
        ({"language_model": 5}, "language_model"),
        ({"language_model": None}, "holds no language model"),
        (
            {"language_model": {"kind": "policy", "config": 1}},
            r"language_model\.config",
        ),
        ({"seeds": None}, "seeds"),
        ({"seeds": [0, 1, 2]}, "policy/x"),
        ({"env_params": []}, "env_params"),
    ],
)
def test_a_manifest_of_another_shape_is_refused(tmp_path, changes, field):
    arrays = {"policy": {"x": np.zeros((2, 3))}}
    storage.write(tmp_path / "policy", arrays, ABOUT | changes)
    with pytest.raises(InvalidInput, match=field) as refused:
        language_model.load(tmp_path, agent=len((ABOUT | changes)["seeds"] or "0") - 1)
    assert str(tmp_path) in str(refused.value)
