"""Tiny tokenizers and models with random weights, made on the spot: the tests download nothing."""

from __future__ import annotations

import torch
from tokenizers import Tokenizer, decoders, models, pre_tokenizers
from transformers import (
    LlamaConfig,
    LlamaForCausalLM,
    PreTrainedTokenizerFast,
    Qwen2Config,
    Qwen2ForCausalLM,
    Qwen3Config,
    Qwen3ForCausalLM,
)

from mvtrain.engine.float64 import float64_norms
from mvtrain.layout import TAGS, TagIds

CHATML = (
    "{% for message in messages %}{{ '<|im_start|>' + message['role'] + '\n' + message['content'] + '<|im_end|>\n' }}"
    "{% endfor %}{% if add_generation_prompt %}{{ '<|im_start|>assistant\n' }}{% endif %}"
)

FAMILIES = {
    "qwen2": (Qwen2Config, Qwen2ForCausalLM),
    "qwen3": (Qwen3Config, Qwen3ForCausalLM),
    "llama": (LlamaConfig, LlamaForCausalLM),
}


def tiny_tokenizer(with_tags: bool = True) -> PreTrainedTokenizerFast:
    """A byte-level tokenizer (one token a byte) with ChatML's special tokens, and the tags if asked for."""
    alphabet = sorted(pre_tokenizers.ByteLevel.alphabet())
    core = Tokenizer(models.BPE(vocab={byte: i for i, byte in enumerate(alphabet)}, merges=[]))
    core.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False)
    core.decoder = decoders.ByteLevel()
    tokenizer = PreTrainedTokenizerFast(
        tokenizer_object=core,
        eos_token="<|im_end|>",
        pad_token="<|im_end|>",
        additional_special_tokens=["<|im_start|>", *(TAGS if with_tags else ())],
    )
    tokenizer.chat_template = CHATML
    return tokenizer


def tiny_tags() -> TagIds:
    return TagIds.from_tokenizer(tiny_tokenizer())


def tiny_model(
    family: str = "qwen2",
    *,
    vocab_size: int | None = None,
    tied: bool = False,
    dtype: torch.dtype = torch.float32,
    seed: int = 0,
    **config,
) -> torch.nn.Module:
    """Two layers, four query heads, two key heads, width 32. `vocab_size` defaults to the tagged tokenizer's."""
    torch.manual_seed(seed)
    config_class, model_class = FAMILIES[family]
    settings = {
        "vocab_size": vocab_size or len(tiny_tokenizer()),
        "hidden_size": 32,
        "intermediate_size": 64,
        "num_hidden_layers": 2,
        "num_attention_heads": 4,
        "num_key_value_heads": 2,
        "head_dim": 8,
        "max_position_embeddings": 4096,
        "tie_word_embeddings": tied,
        "eos_token_id": tiny_tokenizer().eos_token_id,
    }
    model = model_class(config_class(**{**settings, **config})).to(dtype).eval()
    # Random initialisation is so small that a wrong mask would hardly show; larger weights make attention matter.
    with torch.no_grad():
        for parameter in model.parameters():
            if parameter.dim() == 2:
                parameter.mul_(8)
    if dtype == torch.float64:
        float64_norms(model).__enter__()  # to stay: see there
    return model
