"""`mvtrain verify` and `mvtrain generate` on checkpoints on disk."""

from __future__ import annotations

import json

import pytest
import torch

from mvtrain.cli import main
from mvtrain.commands.generate import print_tree
from mvtrain.engine import Engine, row_cache
from mvtrain.engine.script import ScriptedSampler, write_script
from mvtrain.grammar import Block, Outline, Path, Trace, parse
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


def test_generate_prints_one_object_per_prompt(checkpoint, capsys, tmp_path):
    prompts = tmp_path / "prompts.jsonl"
    prompts.write_text('{"question": "two?"}\n\n{"prompt": "three?"}\n')
    options = ["--max-tokens", "5", "--temperature", "1", "--seed", "3", "--json"]
    assert main(["generate", checkpoint, "--prompt", "one?", "--prompts-file", str(prompts), *options]) == 0
    rows = lines(capsys)
    assert [row["prompt"] for row in rows] == ["one?", "two?", "three?"]
    assert all(row["num_generated"] == 5 and row["finish_reason"] == "length" for row in rows)
    assert main(["generate", checkpoint, "--prompt", "three?", *options]) == 0
    assert lines(capsys)[0]["text"] == rows[2]["text"]


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        ([], "give --prompt TEXT"),
        (["--prompt", "x", "--temperature", "-1"], "temperature = -1.0, expected at least 0"),
        (["--prompts-file", "no/such/file"], "No such file"),
        (["--prompt", "q", "--device", "foo"], "unknown device 'foo'; give cpu or cuda"),
    ],
)
def test_generate_says_what_is_wrong(checkpoint, capsys, arguments, message):
    assert main(["generate", checkpoint, *arguments]) == 2
    assert message in capsys.readouterr().err


def test_a_missing_checkpoint_is_named(tmp_path, capsys):
    for folder in (tmp_path, tmp_path / "nowhere"):
        assert main(["generate", str(folder), "--prompt", "q"]) == 2
        assert f"no checkpoint in {folder}: expected a folder" in capsys.readouterr().err


def test_a_broken_prompts_file_is_named_with_its_line(checkpoint, capsys, tmp_path):
    file = tmp_path / "prompts.jsonl"
    file.write_text('{"prompt": "a"}\n{"text": "b"}\n')
    assert main(["generate", checkpoint, "--prompts-file", str(file)]) == 2
    assert f'{file}, line 2: expected an object with a "prompt" or "question"' in capsys.readouterr().err


def test_the_tree_shows_paths_with_their_tokens_and_takes_nothing_for_markup(capsys):
    paths = (Path("1", ("[red]left[/red]",)), Path("2", ("right \x1b[31m",)))
    trace = Trace((Block((Outline("1", "one"), Outline("2", "two")), paths, "[bold]both"), "end"))
    tokenizer = tiny_tokenizer()
    sampler = ScriptedSampler(write_script(trace, tokenizer), len(tokenizer), tokenizer.eos_token_id)
    (completion,) = Engine(tiny_model(), tokenizer, sampler=sampler).generate([[1]])
    print_tree("why [not]?", completion)
    output = capsys.readouterr().out
    for shown in ("why [not]?", "[red]left[/red]", "conclusion: [bold]both", "block of 2 paths"):
        assert shown in output
    assert f"path 1: one ({completion.num_path_tokens[0]} tokens)" in output
    assert "\x1b[31m" not in output and f"parallelism {completion.parallelism:.2f}" in output
    assert parse(completion.text) == completion.trace
