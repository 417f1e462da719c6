"""Tiny models of real architectures with seeded random weights, and a tiny tokenizer, all made offline."""

from __future__ import annotations

from functools import cache
from typing import Any

import torch
from tokenizers import Tokenizer, decoders, models, pre_tokenizers, processors, trainers
from transformers import AutoModelForCausalLM, PreTrainedTokenizerFast
from transformers.models.gemma2 import Gemma2Config
from transformers.models.gpt2 import GPT2Config
from transformers.models.gpt_neox import GPTNeoXConfig
from transformers.models.llama import LlamaConfig
from transformers.models.qwen2 import Qwen2Config

from margincast.models import LoadedModel
from margincast.models.load import disable_dropout, keep_softcap

VOCABULARY = 400
CONTEXT = 96
CHAT_TEMPLATE = (
    "{% for message in messages %}<|{{ message['role'] }}|>{{ message['content'] }}</s>\n{% endfor %}"
    "{% if add_generation_prompt %}<|assistant|>{% endif %}"
)
SENTENCES = (
    "Is the statement number something you would say?\n Yes Yes Yes No No No",
    "The answer to the question is that the weather is good. What would you say to a friend?",
    "A long answer with good words, and another answer with other words. number number 0 1 2 3 4 5 6 7 8 9",
)

_SIZES: dict[str, Any] = {
    "vocab_size": VOCABULARY,
    "hidden_size": 24,
    "intermediate_size": 40,
    "num_hidden_layers": 2,
    "num_attention_heads": 4,
    "max_position_embeddings": CONTEXT,
}
_TOKENS: dict[str, Any] = {"bos_token_id": 1, "eos_token_id": 2, "pad_token_id": 0}
_CONFIGS: dict[str, Any] = {
    "llama": lambda: LlamaConfig(**_SIZES, **_TOKENS, num_key_value_heads=2, tie_word_embeddings=True),
    "gpt2": lambda: GPT2Config(vocab_size=VOCABULARY, n_embd=24, n_layer=2, n_head=4, n_positions=CONTEXT, **_TOKENS),
    "gpt_neox": lambda: GPTNeoXConfig(**_SIZES, **_TOKENS, tie_word_embeddings=False),
    "qwen2": lambda: Qwen2Config(**_SIZES, **_TOKENS, num_key_value_heads=2),
    "gemma2": lambda: Gemma2Config(
        **_SIZES, **_TOKENS, num_key_value_heads=2, head_dim=8, final_logit_softcapping=5.0, sliding_window=64
    ),
}
ARCHITECTURES = tuple(_CONFIGS)


def randomised(config: Any, seed: int = 0, dtype: torch.dtype = torch.float32) -> Any:
    """A model of `config` in evaluation mode; its norms and biases are random too, so that none of them is a no-op."""
    with torch.random.fork_rng():
        torch.manual_seed(seed)
        model = AutoModelForCausalLM.from_config(config)
        with torch.no_grad():
            for parameter in model.parameters():
                if parameter.ndim == 1:
                    parameter.add_(0.3 * torch.randn_like(parameter))
                else:
                    parameter.normal_(0.0, 0.3)
    disable_dropout(model)
    keep_softcap(model)
    return model.to(dtype).eval()


def tiny_model(architecture: str = "llama", seed: int = 0, dtype: torch.dtype = torch.float32) -> Any:
    return randomised(_CONFIGS[architecture](), seed, dtype)


@cache
def _bpe(bos: bool) -> str:
    tokenizer = Tokenizer(models.BPE())
    tokenizer.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False)
    tokenizer.decoder = decoders.ByteLevel()
    special = ["<pad>", "<s>", "</s>", "<|user|>", "<|assistant|>", "<|system|>"]
    alphabet = pre_tokenizers.ByteLevel.alphabet()
    trainer = trainers.BpeTrainer(
        vocab_size=VOCABULARY, special_tokens=special, initial_alphabet=alphabet, show_progress=False
    )
    tokenizer.train_from_iterator(SENTENCES * 20, trainer)
    if bos:
        tokenizer.post_processor = processors.TemplateProcessing(
            single="<s> $A", pair="<s> $A <s> $B", special_tokens=[("<s>", 1)]
        )
    return str(tokenizer.to_str())


def tiny_tokenizer(*, bos: bool = False, eos: str | None = "</s>", chat: bool = True) -> PreTrainedTokenizerFast:
    """A byte-level BPE in which " Yes" and " No" are one token each."""
    tokenizer = PreTrainedTokenizerFast(
        tokenizer_object=Tokenizer.from_str(_bpe(bos)), bos_token="<s>", eos_token=eos, pad_token="<pad>"
    )
    tokenizer.chat_template = CHAT_TEMPLATE if chat else None
    return tokenizer


def tiny_loaded(architecture: str = "llama", seed: int = 0) -> LoadedModel:
    name = f"tiny {architecture} {seed}"
    return LoadedModel(name, name, tiny_model(architecture, seed), tiny_tokenizer())
