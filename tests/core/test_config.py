"""`jaxrl.core.config`: what a field may be, how it is documented, and the way to a file."""

import json

import jax.numpy as jnp
import numpy as np
import pytest

from jaxrl.algorithms import ALGORITHMS
from jaxrl.algorithms.ppo import Config
from jaxrl.core import config as configs
from jaxrl.errors import InvalidInput, require

every_algorithm = pytest.mark.parametrize("name", ALGORITHMS)


def problem(config) -> str:
    """The sentence with which a config is refused."""
    with pytest.raises(InvalidInput) as error:
        configs.check(config)
    return str(error.value)


@every_algorithm
def test_the_defaults_are_valid(name):
    configs.check(ALGORITHMS[name].Config())


@every_algorithm
def test_a_config_survives_the_way_through_json(name):
    config = ALGORITHMS[name].Config().replace(hidden_sizes=(3, 5), learning_rate=0.75)
    text = json.dumps(configs.to_dict(config))
    assert configs.from_dict(ALGORITHMS[name].Config, json.loads(text)) == config


@every_algorithm
def test_every_field_is_documented(name):
    docs = configs.field_docs(ALGORITHMS[name].Config)
    assert docs.keys() == configs.field_types(ALGORITHMS[name].Config).keys()
    assert all(doc.endswith((".", ")")) and len(doc) > 10 for doc in docs.values())


@every_algorithm
def test_every_limit_is_enforced(name):
    config = ALGORITHMS[name].Config()
    outside = {"low": -1, "above": 0, "high": +1}
    checked = 0
    for field in config.__dataclass_fields__.values():
        for limit, bound in field.metadata.get("limits", {}).items():
            value = bound + outside[limit]
            if isinstance(getattr(config, field.name), tuple):
                value = (8, value)
            sentence = problem(config.replace(**{field.name: value}))
            assert sentence.startswith(f"{field.name} = {value}: must be ")
            assert str(bound) in sentence
            checked += 1
    assert checked > 10


@pytest.mark.parametrize(
    ("field", "value", "sentence"),
    [
        ("num_envs", 0, "num_envs = 0: must be at least 1."),
        ("num_envs", 2.5, "num_envs = 2.5: must be a whole number."),
        ("num_envs", True, "num_envs = True: must be a whole number."),
        ("num_envs", "4", "num_envs = '4': must be a whole number."),
        ("num_envs", None, "num_envs = None: must be a whole number."),
        ("learning_rate", -0.1, "learning_rate = -0.1: must be at least 0."),
        ("learning_rate", True, "learning_rate = True: must be a number."),
        ("learning_rate", "1e-3", "learning_rate = '1e-3': must be a number."),
        ("learning_rate", None, "learning_rate = None: must be a number."),
        ("learning_rate", float("nan"), "learning_rate = nan: must be a number."),
        ("learning_rate", float("inf"), "learning_rate = inf: must be finite."),
        ("learning_rate", (0.1, 0.2), "learning_rate = (0.1, 0.2): must be a number."),
        ("gamma", 1.5, "gamma = 1.5: must be at most 1."),
        ("max_grad_norm", 0.0, "max_grad_norm = 0.0: must be greater than 0."),
        ("target_kl", 0.0, "target_kl = 0.0: must be greater than 0."),
        ("target_kl", "x", "target_kl = 'x': must be a number."),
        ("anneal_lr", 1, "anneal_lr = 1: must be true or false."),
        (
            "hidden_sizes",
            64,
            "hidden_sizes = 64: must be whole numbers, at most 100 of them: (64, 64).",
        ),
        ("hidden_sizes", (8, 0), "hidden_sizes = (8, 0): must be at least 1."),
        (
            "hidden_sizes",
            (8, 2.5),
            "hidden_sizes = (8, 2.5): must be whole numbers, at most 100 of them: "
            "(64, 64).",
        ),
        (
            "objective",
            "clop",
            "objective = 'clop': must be one of 'clip', 'kl' (did you mean 'clip'?).",
        ),
        ("objective", 3, "objective = 3: must be one of 'clip', 'kl'."),
    ],
)
def test_a_bad_value_is_one_sentence_with_field_and_value(field, value, sentence):
    assert problem(Config().replace(**{field: value})) == sentence


def test_an_unknown_field_is_named_with_the_nearest_one():
    with pytest.raises(InvalidInput) as error:
        configs.from_dict(Config, {"learning_rat": 0.1})
    assert str(error.value) == (
        "learning_rat is not a field of this config (did you mean 'learning_rate'?)."
    )


def test_values_of_a_file_are_checked():
    with pytest.raises(InvalidInput, match=r"^num_envs = 0: must be at least 1\.$"):
        configs.from_dict(Config, {"num_envs": 0})


def test_values_of_a_file_become_the_types_of_the_fields():
    values = {"num_envs": 16.0, "total_steps": 1000, "hidden_sizes": [8, 8]}
    config = configs.from_dict(Config, values)
    assert (config.num_envs, type(config.num_envs)) == (16, int)
    assert (config.total_steps, type(config.total_steps)) == (1000.0, float)
    assert config.hidden_sizes == (8, 8)


def test_an_optional_float_may_be_none_or_a_number():
    configs.check(Config(target_kl=None))
    configs.check(Config(target_kl=0.02))


@pytest.mark.parametrize("array", [np.array, jnp.array])
def test_a_float_may_be_an_array_of_which_every_entry_is_checked(array):
    configs.check(Config(learning_rate=array([1e-3, 1e-4])))
    assert "must be at least 0" in problem(Config(learning_rate=array([1e-3, -1.0])))
    assert "must be a number" in problem(Config(learning_rate=array([1e-3, np.nan])))
    assert "must be finite" in problem(Config(learning_rate=array([1e-3, np.inf])))
    assert "must be a number" in problem(Config(learning_rate=array([True])))


def test_an_array_is_json_ready():
    values = configs.to_dict(Config(learning_rate=jnp.array([0.5, 0.25])))
    assert values["learning_rate"] == [0.5, 0.25]


def test_require_raises_unless_the_condition_holds():
    require(True, "never said")
    with pytest.raises(InvalidInput, match=r"^said$"):
        require(False, "said")
