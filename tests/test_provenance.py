"""What is written down of a run, and that no secret is in it."""

from __future__ import annotations

import json
import subprocess
from pathlib import Path

from mvtrain import provenance


def test_secrets_of_the_environment_are_hidden_at_any_depth(monkeypatch):
    monkeypatch.setenv("HF_TOKEN", "hf_abcdefgh")
    monkeypatch.setenv("MY_PASSWORD", "open sesame")
    monkeypatch.setenv("PLAIN", "harmless value")
    value = {"a": ["x hf_abcdefgh y", {"b": "open sesame"}], "c": 7, "d": "harmless value", "e": None}
    assert provenance.without_secrets(value) == {
        "a": ["x *** y", {"b": "***"}],
        "c": 7,
        "d": "harmless value",
        "e": None,
    }


def test_passwords_in_addresses_are_hidden():
    text = provenance.without_secrets("read https://me:pass@host/file and https://host:80/other")
    assert text == "read https://***@host/file and https://host:80/other"


def test_short_values_are_no_secrets(monkeypatch):
    """Otherwise KEY=1 would take every 1 out of the file."""
    monkeypatch.setenv("SOME_KEY", "1")
    assert provenance.without_secrets("step 1 of 11") == "step 1 of 11"


def test_the_code_version_is_the_commit(tmp_path, monkeypatch):
    package = tmp_path / "mvtrain"
    package.mkdir(parents=True)
    (package / "provenance.py").write_text("")
    monkeypatch.setattr(provenance, "__file__", str(package / "provenance.py"))
    assert provenance.code_version() is None, "not a repository"
    git = ["git", "-C", str(tmp_path), "-c", "user.name=a", "-c", "user.email=a@b"]
    for arguments in (["init", "-q"], ["add", "."], ["commit", "-qm", "x"]):
        subprocess.run([*git, *arguments], check=True)
    commit = provenance.code_version()
    assert len(commit) == 40
    Path(package / "provenance.py").write_text("changed")
    assert provenance.code_version() == commit + "+changes"


def test_the_header_is_json(monkeypatch):
    """What a value cannot be serialised would show only when a checkpoint is saved."""
    assert json.loads(json.dumps(provenance.without_secrets({"betas": (0.9, 0.95)}))) == {"betas": [0.9, 0.95]}
