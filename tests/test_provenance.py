"""What is written down of a run, and that no secret is in it."""

from __future__ import annotations

import json
import subprocess
from pathlib import Path

import pytest

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


@pytest.mark.parametrize(
    ("text", "shown"),
    [
        ("https://ghp_abc@github.com/x", "https://***@github.com/x"),
        ("https://u:p@w@host/x", "https://***@host/x"),
        ("https://u:pa/ss@host/x", "https://***@host/x"),
        ("https://u:p@w/o@rd@host", "https://***@host"),
        ("git+https://t0k@h/r.git@main, https://a:b@c", "git+https://***@h/r.git@main, https://***@c"),
        ("https://host/path@v1", "https://host/path@v1"),
        ("https://host/a:b@v1 and me@example.org", "https://host/a:b@v1 and me@example.org"),
        ("https://host:80/path", "https://host:80/path"),
        ("https://host:80/path@v1", "https://***@v1"),  # may be a password with a slash
    ],
)
def test_what_may_be_a_password_in_an_address_is_hidden(text, shown):
    assert provenance.without_secrets(text) == shown


def test_a_secret_that_begins_with_another_leaves_no_end(monkeypatch):
    monkeypatch.setenv("A_TOKEN", "abcdef")
    monkeypatch.setenv("B_TOKEN", "abcdefghi")
    assert provenance.without_secrets("x abcdefghi y") == "x *** y"


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
