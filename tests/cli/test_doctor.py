"""`jaxrl doctor`: known bad things are named, with their fix."""

import json
import sys

import pytest

from jaxrl.cli import doctor, main


def test_this_installation_is_ok(capsys, monkeypatch):
    monkeypatch.setenv("JAX_PLATFORMS", "cpu")
    assert main(["doctor", "--json"]) == 0
    lines = capsys.readouterr().out.splitlines()
    found = {row["what"]: row for row in json.loads(lines[-1])}
    assert lines[-2] == "nothing is known to be bad"
    assert {"python", "jax", "jaxlib", "flax", "gymnax", "devices"} <= found.keys()
    assert all(row["state"] != "BAD" for row in found.values())


BAD = {
    "gymnax": ("0.0.9", "gymnax", "before 1.0 a step returns five values"),
    "jax": ("0.12.0", "jax", "pip install 'jax>=0.10.0,<0.12'"),
    "flax": ("0.10.0", "flax", "pip install 'flax"),
    "jaxlib": ("99.0", "jaxlib", "pip install 'jaxlib=="),
    "tensorflow-probability": ("0.25.0", "tensorflow-probability", "tfp-nightly"),
    "tfp-nightly": (None, "tfp-nightly", "pip install tfp-nightly"),
    "optax": (None, "optax", "pip install 'optax"),
}


@pytest.mark.parametrize("name", BAD)
def test_a_bad_version_is_named_with_its_fix(name, monkeypatch, capsys):
    installed, what, fix = BAD[name]
    real = doctor.version
    monkeypatch.setattr(
        doctor, "version", lambda n: installed if n == name else real(n)
    )
    finding = doctor.Finding("ok", "devices", "")
    monkeypatch.setattr(doctor, "check_devices", lambda: finding)
    assert main(["doctor"]) == 1
    out = capsys.readouterr().out
    assert out.splitlines()[-1] == f"bad: {what}" and fix in out


def test_a_card_that_jax_does_not_see_is_bad(monkeypatch, tmp_path):
    monkeypatch.setattr(doctor, "NVIDIA", tmp_path)
    monkeypatch.delenv("JAX_PLATFORMS", raising=False)
    finding = doctor.check_devices()
    assert finding.state == "BAD" and "jaxrl[cuda12]" in finding.fix
    monkeypatch.setenv("JAX_PLATFORMS", "cpu")
    assert doctor.check_devices().state == "note"


def test_jax_that_does_not_start_is_bad(monkeypatch):
    def broken():
        raise RuntimeError("no such\nplatform")

    monkeypatch.setattr("jax.devices", broken)
    monkeypatch.setenv("JAX_PLATFORMS", "cuda")
    finding = doctor.check_devices()
    assert finding.state == "BAD" and "no such platform" in finding.words
    assert finding.fix.startswith("unset JAX_PLATFORMS, which is 'cuda', or pip")


def test_jax_that_cannot_be_imported_is_no_traceback(monkeypatch):
    """As with a jaxlib that does not fit, at which jax raises no ImportError."""

    class Broken:
        @staticmethod
        def find_spec(name, path=None, target=None):
            if name == "jaxrl.training.devices":
                raise RuntimeError("jaxlib version 99 is newer than jax")

    monkeypatch.delitem(sys.modules, "jaxrl.training.devices", raising=False)
    monkeypatch.setattr(sys, "meta_path", [Broken, *sys.meta_path])
    assert doctor.check_cache().state == "note"


def test_what_is_no_version_is_bad():
    assert doctor.check_package("optax", ">=0.2", "from-a-branch").state == "BAD"


def test_few_cores_with_the_jaxlib_that_deadlocks_are_noted(monkeypatch):
    monkeypatch.setattr(doctor, "version", lambda name: "0.10.2")
    monkeypatch.setattr(doctor, "_cores", lambda: 2)
    finding = doctor.check_lapack()
    assert finding.state == "note" and "initializers.orthogonal" in finding.fix
    monkeypatch.setattr(doctor, "_cores", lambda: 8)
    assert doctor.check_lapack().state == "ok"


def test_a_cache_that_cannot_be_written_is_noted(monkeypatch, tmp_path):
    file = tmp_path / "file"
    file.write_text("")
    monkeypatch.setenv("JAX_COMPILATION_CACHE_DIR", str(file / "cache"))
    finding = doctor.check_cache()
    assert finding.state == "note" and "JAX_COMPILATION_CACHE_DIR" in finding.fix
    monkeypatch.setenv("JAX_COMPILATION_CACHE_DIR", str(tmp_path))
    assert "1 file, 0.0 MB" in doctor.check_cache().words


def test_another_python_is_bad(monkeypatch):
    monkeypatch.setattr(doctor.sys, "version_info", (3, 14))
    assert doctor.check_python().state == "BAD"
