"""`benchmarks/rlhf_speed.py` at a small size, without the peer."""

import dataclasses
import os
import subprocess
import sys

import jax.numpy as jnp
import numpy as np
import pytest

from tests.benchmarks.test_scripts import ROOT, script


@pytest.fixture(scope="module")
def module():
    return script("rlhf_speed")


@pytest.fixture(scope="module")
def found(module):
    origin = {"commit": "c", "jax": "j", "device": "cpu", "cores": 2}
    return origin | module.measure(module.QUICK, None)


@pytest.mark.full
def test_ours_is_measured_and_the_peer_is_left_out(module, found):
    assert len(found["ours"]["rewards"]) == module.QUICK.iterations
    assert all(0.0 <= x <= 1.0 for x in found["ours"]["rewards"])
    assert found["ours"]["seconds_per_step"]["median"] > 0.0
    table = module.table(found)
    assert "| jaxrl |" in table and "TRL" not in table


@pytest.mark.full
def test_a_table_of_both_sides(module, found):
    run = {"first": 1.0, "seconds": [9.0] * 9 + [4.0] * 9, "rewards": [0.5] * 10}
    twice = run | {"seconds": [12.0] * 18, "versions": dict.fromkeys(VERSIONS, "1")}
    both = module.gathered(module.PARTS["tiny"], {"ours": [run], "theirs": [twice]})
    with pytest.raises(ValueError, match="zip"):
        module.gathered(module.QUICK, {"ours": [run] * 2, "theirs": [twice]})
    assert both["ratio"]["median"] == 3.0 and both["reward_difference"] == (0.0, 0.0)
    table = module.table({**found, **both})
    assert "| TRL | 12000 [12000, 12000] | 0.500 |" in table
    assert "TRL's seconds over ours: 3.00 [3.00, 3.00]" in table


VERSIONS = ("trl", "transformers", "torch")


def test_both_sides_pay_the_same(module):
    """For tokens of the answer alone, EOS among them."""
    tokens = np.random.default_rng(0).integers(0, 9, (6, 7))
    lengths = np.array([1, 2, 3, 4, 4, 4])
    answer = np.arange(7) - 3 < lengths[:, None]
    answer[:, :3] = False
    paid = module.judge((), jnp.asarray(tokens), None, jnp.asarray(answer))
    peer = script("peers/trl_grpo")
    expected = [
        peer.reward(row[3 : 3 + n]) for row, n in zip(tokens, lengths, strict=True)
    ]
    np.testing.assert_allclose(paid, expected, rtol=1e-6)
    assert len(set(expected)) > 2


def test_a_step_of_the_peer_is_clipped_and_penalized_as_ours(module):
    """Its loss is ours divided by the longest answer's length."""
    settings = module.PARTS["tiny"]
    config, peer = module.config_of(settings), script("peers/trl_grpo")
    assert (config.kl_penalty, config.loss_mean, config.scale_rewards) == (
        *("k3", "responses"),
        False,
    )
    assert peer.TRAIN["loss_type"] == "dr_grpo" and not config.anneal_lr
    arguments = peer.arguments(
        dataclasses.asdict(settings) | {"seed": 0, "folder": "."}
    )
    assert arguments["max_grad_norm"] * settings.max_new_tokens == config.max_grad_norm
    assert arguments["per_device_train_batch_size"] == config.batch_size
    assert arguments["beta"] == config.kl_coef
    assert arguments["epsilon"] == config.clip_eps


def run(*words):
    return subprocess.run(
        [sys.executable, "-m", "benchmarks.rlhf_speed", *words],
        env=os.environ | {"JAX_PLATFORMS": "cpu"},
        cwd=ROOT,
        capture_output=True,
        text=True,
    )


@pytest.mark.full
def test_without_the_peer_one_line_says_how_to_make_it(tmp_path):
    peers = ("--peers-dir", str(tmp_path / "none"))
    done = run("--quick", "--parts", "tiny", "--out", str(tmp_path), *peers)
    assert done.returncode == 0, done.stderr
    assert "pip install torch==2.13.0 trl==1.16.0" in done.stdout.split("\n")[0]
    assert [path.name for path in tmp_path.iterdir()] == ["rlhf_speed.json"]
    real = run("--parts", "tiny", *peers)
    assert real.returncode == 2 and "there is no" in real.stderr
