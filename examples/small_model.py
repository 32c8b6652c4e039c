"""A small model for the generated tasks (`mvtrain prepare synthetic --task ...`), with a tokenizer of whole words.

    python examples/small_model.py make runs/small_ar            # Qwen3's shape, random weights
    mvtrain convert runs/small_ar runs/small_tagged              # launch/sft.py trains only what knows the tags
    ... train runs/small_tagged on chains without tags ...
    python examples/small_model.py untag runs/base_training/export runs/small_ar runs/base_ar
    mvtrain convert runs/base_ar runs/base                       # the tags anew, as on any autoregressive checkpoint

`untag` keeps the rows of the words and drops those of the tags, so what is converted is a plain autoregressive model
without tags. One word with the space before it is one token, and so is a newline. The shape is not Qwen2's, because
transformers reads the tokenizer of every Qwen2 checkpoint as Qwen2's own, which cuts a label into its digits.
"""

from __future__ import annotations

import argparse
import re
import shutil
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

import torch
from tokenizers import Regex, Tokenizer, decoders, models, pre_tokenizers
from transformers import AutoModelForCausalLM, PreTrainedTokenizerFast, Qwen3Config, Qwen3ForCausalLM

from mvtrain.data.tasks import problems
from mvtrain.grammar import TAGS
from mvtrain.prompt import PARALLEL_SUFFIX, SEQUENTIAL_SUFFIX, response_text

WORD = r"\n| ?[^\s]+|\s"
CHAT_TEMPLATE = (
    "{% for message in messages %}{{ '<|im_start|>' + message['role'] + '\n' + message['content'] + '<|im_end|>\n' }}"
    "{% endfor %}{% if add_generation_prompt %}{{ '<|im_start|>assistant\n' }}{% endif %}"
)
MAX_VARIABLES = 6
"""Of `sat`. There is a word for each case, so the number of words doubles with every further variable."""
NUM_READ = 1000
"""Problems per task that are read for their words; the rarest word stands in one of about 30."""


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    commands = parser.add_subparsers(dest="command", required=True)
    make = commands.add_parser("make", help="write a checkpoint with random weights")
    make.add_argument("folder", help="where the checkpoint goes")
    make.add_argument("--width", type=int, default=128, help="of the hidden states (default 128)")
    make.add_argument("--layers", type=int, default=2, help="default 2")
    make.add_argument("--heads", type=int, default=4, help="of queries and keys (default 4)")
    make.add_argument("--head-width", type=int, default=32, help="of each head (default 32)")
    make.add_argument("--seed", type=int, default=0, help="of the weights (default 0)")
    untag = commands.add_parser("untag", help="the autoregressive model within a trained checkpoint")
    untag.add_argument("trained", help="folder of the trained checkpoint")
    untag.add_argument("original", help="folder of the checkpoint without tags that it began as")
    untag.add_argument("folder", help="where the result goes")
    args = parser.parse_args()
    if args.command == "make":
        make_checkpoint(args.folder, args.width, args.layers, args.heads, args.head_width, args.seed)
    else:
        remove_tags(args.trained, args.original, args.folder)


def make_checkpoint(folder: str, width: int, layers: int, heads: int, head_width: int, seed: int) -> None:
    tokenizer = make_tokenizer()
    torch.manual_seed(seed)
    config = Qwen3Config(
        vocab_size=len(tokenizer),
        hidden_size=width,
        intermediate_size=3 * width,
        num_hidden_layers=layers,
        num_attention_heads=heads,
        num_key_value_heads=heads,
        head_dim=head_width,
        max_position_embeddings=4096,
        rope_parameters={"rope_type": "default", "rope_theta": 500.0},  # contexts are short, and so are its waves
        tie_word_embeddings=True,
        initializer_range=0.06,
        bos_token_id=None,
        eos_token_id=tokenizer.eos_token_id,
    )
    model = Qwen3ForCausalLM(config)
    with _config_last(Path(folder)) as part:
        model.save_pretrained(part)
        tokenizer.save_pretrained(part)
    print(f"wrote {folder}: {model.num_parameters():,} parameters, {len(tokenizer)} tokens")


def remove_tags(trained: str, original: str, folder: str) -> None:
    """Write the model of `original` with the weights of `trained`, without the rows that the tags have there."""
    before = AutoModelForCausalLM.from_pretrained(original)
    state = AutoModelForCausalLM.from_pretrained(trained, dtype=before.dtype).state_dict()
    rows = before.config.vocab_size
    for name, weight in before.state_dict().items():
        if state[name].shape[1:] != weight.shape[1:]:
            there, here = tuple(state[name].shape), tuple(weight.shape)
            raise SystemExit(f"{name} has shape {there} in {trained} and {here} in {original}: not of one model")
        before.state_dict()[name].copy_(state[name][:rows] if len(state[name]) > len(weight) else state[name])
    with _config_last(Path(folder)) as part:
        before.save_pretrained(part)
        for file in Path(original).glob("*"):
            if not (part / file.name).exists() and file.suffix != ".safetensors":
                shutil.copy(file, part)
    print(f"wrote {folder}: {rows} rows, without tags")


@contextmanager
def _config_last(folder: Path) -> Iterator[Path]:
    """A place to write a checkpoint into, whose files then move to `folder`: one that has a config.json is whole."""
    part = folder.with_name(f"{folder.name}.part")
    shutil.rmtree(part, ignore_errors=True)
    part.mkdir(parents=True)
    yield part
    folder.mkdir(exist_ok=True)
    for file in sorted(part.iterdir(), key=lambda file: file.name == "config.json"):
        file.replace(folder / file.name)
    part.rmdir()


def make_tokenizer() -> PreTrainedTokenizerFast:
    vocabulary = {word: number for number, word in enumerate(["<unk>", *_words()])}
    core = Tokenizer(models.WordLevel(vocab=vocabulary, unk_token="<unk>"))
    core.pre_tokenizer = pre_tokenizers.Split(Regex(WORD), behavior="isolated")
    core.decoder = decoders.Fuse()
    tokenizer = PreTrainedTokenizerFast(
        tokenizer_object=core,
        eos_token="<|im_end|>",
        pad_token="<|im_end|>",
        unk_token="<unk>",
        extra_special_tokens=["<|im_start|>"],
    )
    tokenizer.chat_template = CHAT_TEMPLATE
    return tokenizer


def _words() -> list[str]:
    """Of all tasks in both forms, of prompts and answers, and of the tags' names, from which their rows are made."""
    texts = ["user\nassistant\n", PARALLEL_SUFFIX, SEQUENTIAL_SUFFIX]
    for task, difficulty in (("sat", MAX_VARIABLES), ("sat", (2, 5)), ("mixed", (2, 6)), ("copying", (4, 20))):
        for problem in problems(task, 40 if task == "sat" else NUM_READ, 0, difficulty):
            row = problem.row("")
            texts += [row["question"] + PARALLEL_SUFFIX, problem.sequential, problem.parallel]
            texts.append(response_text("", row["deepseek_attempt"]))
    pieces = {piece for text in texts for part in re.split("|".join(TAGS), text) for piece in re.findall(WORD, part)}
    return sorted(pieces | {tag.strip("<>") for tag in TAGS})


if __name__ == "__main__":
    main()
