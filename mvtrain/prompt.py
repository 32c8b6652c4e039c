"""The prompt convention, shared by training and generation so that they cannot differ. Standard library only."""

from __future__ import annotations

from typing import Any

from mvtrain.grammar import TAGS

PARALLEL_SUFFIX = " Think step by step and in parallel before answering."
SEQUENTIAL_SUFFIX = " Think step by step before answering."


def prompt_text(tokenizer: Any, question: str, parallel: bool = True) -> str:
    """The question as a user turn in the tokenizer's own chat template, up to where the assistant turn begins.

    Raises ValueError when the question holds one of the twelve tags, or the tokenizer has no chat template.
    """
    refuse_tags(question)
    if not getattr(tokenizer, "chat_template", None):
        raise ValueError(
            "the tokenizer has no chat template; take an instruction-tuned checkpoint, "
            "or put a chat_template.jinja beside its tokenizer files"
        )
    message = {"role": "user", "content": question + (PARALLEL_SUFFIX if parallel else SEQUENTIAL_SUFFIX)}
    return tokenizer.apply_chat_template([message], add_generation_prompt=True, tokenize=False)


def prompt_ids(tokenizer: Any, question: str, parallel: bool = True) -> list[int]:
    """Token ids of `prompt_text`. The template writes its own special tokens, so none are added in front."""
    text = prompt_text(tokenizer, question, parallel)
    return list(tokenizer(text, add_special_tokens=False)["input_ids"])


def response_text(trajectory: str, answer: str) -> str:
    """The assistant turn: the trajectory, a blank line, the answer.

    "Answer: " is put in front of the answer unless "Answer:" stands somewhere in it, as in the data that the released
    checkpoints were trained on.
    """
    prefix = "" if "Answer:" in answer else "Answer: "
    return f"{trajectory.rstrip()}\n\n{prefix}{answer.strip()}"


def refuse_tags(question: str) -> None:
    """Raise ValueError if a question holds a tag: it would become a special token and open a block in the prompt."""
    for tag in TAGS:
        if tag in question:
            place = question.index(tag) + 1
            raise ValueError(
                f"the question contains the tag {tag} (character {place}); write it without angle brackets"
            )
