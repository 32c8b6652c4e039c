"""The prompt convention, with two chat templates."""

from __future__ import annotations

import subprocess
import sys
from pathlib import Path

import pytest

from mvtrain.grammar import TAGS
from mvtrain.prompt import PARALLEL_SUFFIX, SEQUENTIAL_SUFFIX, prompt_ids, prompt_text, refuse_tags, response_text
from tests.tiny import tiny_tokenizer


@pytest.mark.parametrize(("parallel", "suffix"), [(True, PARALLEL_SUFFIX), (False, SEQUENTIAL_SUFFIX)])
def test_prompt_is_the_chat_template_around_question_and_suffix(parallel, suffix):
    tokenizer = tiny_tokenizer()
    expected = f"<|im_start|>user\nWhat is 2 + 2?{suffix}<|im_end|>\n<|im_start|>assistant\n"
    assert prompt_text(tokenizer, "What is 2 + 2?", parallel) == expected
    ids = prompt_ids(tokenizer, "What is 2 + 2?", parallel)
    assert isinstance(ids, list) and all(type(id) is int for id in ids)
    assert tokenizer.decode(ids) == expected
    start = tokenizer.convert_tokens_to_ids("<|im_start|>")
    assert ids.count(start) == 2 and ids.count(tokenizer.eos_token_id) == 1


def test_suffixes_are_those_of_the_released_checkpoints():
    assert PARALLEL_SUFFIX == " Think step by step and in parallel before answering."
    assert SEQUENTIAL_SUFFIX == " Think step by step before answering."


def test_a_tokenizer_that_adds_tokens_by_itself_adds_none():
    from tokenizers.processors import TemplateProcessing

    tokenizer = tiny_tokenizer()
    plain = prompt_ids(tokenizer, "q")
    eos = ("<|im_end|>", tokenizer.eos_token_id)
    tokenizer.backend_tokenizer.post_processor = TemplateProcessing(single="<|im_end|> $A", special_tokens=[eos])
    assert tokenizer("q")["input_ids"][0] == tokenizer.eos_token_id  # control: it does add one
    assert prompt_ids(tokenizer, "q") == plain


@pytest.mark.parametrize("tag", TAGS)
def test_a_question_with_a_tag_is_refused(tag):
    with pytest.raises(ValueError, match=rf"the tag {tag} \(character 5\)"):
        prompt_ids(tiny_tokenizer(), f"Sum {tag} x")


def test_a_question_that_only_looks_like_a_tag_is_allowed():
    refuse_tags("Is <path> a tag, or < Path>, or <Goals>?")


def test_a_tokenizer_without_chat_template_is_refused():
    tokenizer = tiny_tokenizer()
    tokenizer.chat_template = None
    with pytest.raises(ValueError, match="no chat template; take an instruction-tuned checkpoint"):
        prompt_ids(tokenizer, "q")


@pytest.mark.parametrize(
    ("answer", "expected"),
    [
        ("4", "<Think>\nx\n</Think>\n\nAnswer: 4"),
        ("Answer: 4", "<Think>\nx\n</Think>\n\nAnswer: 4"),
        ("So it is.\nAnswer: 4\n", "<Think>\nx\n</Think>\n\nSo it is.\nAnswer: 4"),
        ("The answer: 4", "<Think>\nx\n</Think>\n\nAnswer: The answer: 4"),
    ],
)
def test_response_text(answer, expected):
    assert response_text("<Think>\nx\n</Think>\n", answer) == expected


def test_grammar_and_prompt_need_the_standard_library_only():
    code = "import sys, mvtrain.grammar, mvtrain.prompt; print(*{name.split('.')[0] for name in sys.modules})"
    root = Path(__file__).parents[1]
    done = subprocess.run([sys.executable, "-S", "-c", code], cwd=root, capture_output=True, text=True, check=True)
    assert set(done.stdout.split()) - set(sys.stdlib_module_names) <= {"mvtrain", "__main__"}
