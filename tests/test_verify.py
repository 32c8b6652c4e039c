"""`mvtrain verify` on checkpoints on disk."""

from __future__ import annotations

import json

import pytest
import torch

from mvtrain.cli import main
from mvtrain.engine import Engine, row_cache
from tests.tiny import tiny_model, tiny_tokenizer


@pytest.fixture(scope="module")
def checkpoint(tmp_path_factory):
    folder = tmp_path_factory.mktemp("checkpoint")
    tiny_model("qwen3").save_pretrained(folder)
    tokenizer = tiny_tokenizer()
    tokenizer.save_pretrained(folder)
    manifest = {"scheme": "original", "tags": {}}
    (folder / "mvtrain.json").write_text(json.dumps(manifest))
    return str(folder)


def lines(capsys) -> list[dict]:
    return [json.loads(line) for line in capsys.readouterr().out.splitlines()]


@pytest.mark.parametrize(
    ("dtype", "measured", "limit"),
    [("fp64", "max", 1e-10), ("fp32", "max", 1e-3), ("bf16", "sampled", 0.1), ("fp16", "sampled", 0.02)],
)
def test_verify_agrees_and_says_what_it_went_through(checkpoint, capsys, dtype, measured, limit):
    arguments = ["verify", checkpoint, "--scheme", "isolated", "--dtype", dtype, "--max-tokens", "10", "--json"]
    assert main(arguments) == 0
    scripted, generated = lines(capsys)
    assert scripted["num_blocks"] == 3 and scripted["num_paths"] == 7 and scripted["num_sampled"] > 500
    assert scripted["ok"] and scripted[f"{measured}_difference"] < limit == scripted["threshold"]
    assert scripted["max_difference_to_training"] is None
    assert generated["name"] == "generated" and generated["num_sampled"] == 10


def test_the_scheme_comes_from_the_manifest(checkpoint, capsys):
    assert Engine.from_pretrained(checkpoint).scheme == "original"
    assert Engine.from_pretrained(checkpoint, scheme="isolated").scheme == "isolated"
    assert main(["verify", checkpoint, "--dtype", "fp64", "--max-tokens", "3"]) == 0
    output = capsys.readouterr().out
    assert "to the training mask" in output and "verified" in output


def test_verify_fails_when_the_mask_is_wrong(checkpoint, capsys, monkeypatch):
    mask = row_cache.RowCache._mask
    monkeypatch.setattr(row_cache.RowCache, "_mask", lambda *args: torch.zeros_like(mask(*args)))
    assert main(["verify", checkpoint, "--max-tokens", "3", "--scheme", "isolated"]) == 1
    output = capsys.readouterr().out
    assert "NOT verified" in output and "FAILED" in output


def test_a_trace_that_does_not_fork_is_no_verification(tmp_path, capsys):
    tiny_model(max_position_embeddings=200).save_pretrained(tmp_path)
    tiny_tokenizer().save_pretrained(tmp_path)
    assert main(["verify", str(tmp_path)]) == 2
    assert "the engine forked" in capsys.readouterr().err
