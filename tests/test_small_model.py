"""The small model of the generated tasks: its words, and the way from tags to none."""

import re
import runpy
from pathlib import Path

import pytest
import torch
from safetensors.torch import load_file, save_file
from transformers import AutoTokenizer

from mvtrain.convert import convert_checkpoint
from mvtrain.data.tasks import TASKS, problems
from mvtrain.grammar import TAGS
from mvtrain.prompt import prompt_text, response_text

SCRIPT = runpy.run_path(str(Path(__file__).parents[1] / "examples" / "small_model.py"))


@pytest.fixture(scope="module")
def folders(tmp_path_factory):
    root = tmp_path_factory.mktemp("small")
    SCRIPT["make_checkpoint"](str(root / "ar"), width=16, layers=1, heads=2, head_width=8, seed=0)
    convert_checkpoint(str(root / "ar"), str(root / "tagged"))
    return root


@pytest.mark.parametrize("task", TASKS)
def test_every_text_is_known_words_and_comes_back_as_it_is(folders, task):
    tokenizer = AutoTokenizer.from_pretrained(folders / "tagged")
    highest = min(TASKS[task].highest, SCRIPT["MAX_VARIABLES"])
    for problem in problems(task, 30, 9, (TASKS[task].lowest, highest)):
        answer = problem.row("")["deepseek_attempt"]
        for text in (problem.parallel, problem.sequential):
            for asked in (True, False):
                whole = prompt_text(tokenizer, problem.question, asked) + response_text(text, answer)
                ids = tokenizer(whole, add_special_tokens=False)["input_ids"]
                assert tokenizer.unk_token_id not in ids
                assert tokenizer.decode(ids) == whole


def test_labels_of_any_depth_are_one_token_and_tags_begin_apart(folders):
    tokenizer = AutoTokenizer.from_pretrained(folders / "tagged")
    trace = next(problems("sat", 1, 0, 5)).parallel
    labels = set(re.findall(r"<Outline>([\d.]+:)", trace))
    assert {len(label) for label in labels} == {2, 4, 6, 8}
    assert all(len(tokenizer(label, add_special_tokens=False)["input_ids"]) == 1 for label in labels)
    weights = load_file(folders / "tagged" / "model.safetensors")["model.embed_tokens.weight"]
    rows = weights[tokenizer.convert_tokens_to_ids(list(TAGS))]
    assert len({tuple(row.tolist()) for row in rows}) == len(TAGS)


def test_untag_keeps_what_was_trained_and_only_drops_the_tags(folders, tmp_path):
    trained = tmp_path / "trained"
    convert_checkpoint(str(folders / "ar"), str(trained))
    before = load_file(trained / "model.safetensors")
    after = {name: weight + torch.arange(weight.numel()).reshape(weight.shape) for name, weight in before.items()}
    save_file(after, trained / "model.safetensors", {"format": "pt"})
    SCRIPT["remove_tags"](str(trained), str(folders / "ar"), str(tmp_path / "ar"))
    found, original = (load_file(folder / "model.safetensors") for folder in (tmp_path / "ar", folders / "ar"))
    assert found.keys() == original.keys()
    for name, weight in found.items():
        assert weight.shape == original[name].shape
        assert torch.equal(weight, after[name][: len(weight)]), name
    tokenizer = AutoTokenizer.from_pretrained(tmp_path / "ar")
    assert not set(TAGS) & set(tokenizer.get_vocab())
    assert convert_checkpoint(str(tmp_path / "ar"), str(tmp_path / "again"))


def test_a_checkpoint_with_a_config_is_whole(tmp_path, monkeypatch):
    """What goes on after an interruption takes the config for the sign that all of it is there."""
    moved = []
    replace = Path.replace
    monkeypatch.setattr(Path, "replace", lambda file, to: (moved.append(file.name), replace(file, to))[1])
    with SCRIPT["_config_last"](tmp_path / "model") as part:
        for name in ("a.json", "config.json", "tokenizer.json"):
            (part / name).write_text("{}")
    assert sorted(moved) == ["a.json", "config.json", "tokenizer.json"] and moved[-1] == "config.json"
    assert sorted(file.name for file in tmp_path.iterdir()) == ["model"]
