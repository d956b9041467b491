"""Writes the folder that transformers (`GPT2LMHeadModel`) and weaverant's embedded engine both read."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import numpy as np
import torch
from gpt2 import Shape, Weights

SPECIAL = ("<|pad|>", "<|unknown|>", "<|system|>", "<|user|>", "<|assistant|>", "<|tool|>", "<|end|>")
CHARACTERS = "\n" + "".join(map(chr, range(32, 127)))
VOCABULARY = {token: number for number, token in enumerate((*SPECIAL, *CHARACTERS))}
END = "<|end|>"
CHAT = (
    "{% for message in messages %}<|{{ message.role }}|>{{ message.content }}<|end|>{% endfor %}"
    "{% if add_generation_prompt %}<|assistant|>{% endif %}"
)


def save(folder: Path, weights: Weights, shape: Shape) -> None:
    """The weights as float16 safetensors, the shape and the tokenizer. Replaces what was there."""
    folder.mkdir(parents=True, exist_ok=True)
    (folder / "model.safetensors").write_bytes(_safetensors(weights))
    _write(folder / "config.json", _config(shape))
    _write(folder / "tokenizer.json", _tokenizer())
    _write(folder / "tokenizer_config.json", _tokenizer_config(shape))
    drawn = {"do_sample": True, "temperature": 1.0, "eos_token_id": VOCABULARY[END], "pad_token_id": 0}
    _write(folder / "generation_config.json", drawn)


def _safetensors(weights: Weights) -> bytes:
    """The format: 8 bytes of header length, a JSON header, raw tensors; here in order of name, float16."""
    header: dict[str, Any] = {"__metadata__": {"format": "pt"}}
    body = bytearray()
    for name in sorted(weights):
        tensor = weights[name].detach().to(torch.float16).numpy().astype("<f2")
        start = len(body)
        body += np.ascontiguousarray(tensor).tobytes()
        header[name] = {"dtype": "F16", "shape": list(tensor.shape), "data_offsets": [start, len(body)]}
    text = json.dumps(header, separators=(",", ":")).encode()
    text += b" " * (-len(text) % 8)
    return len(text).to_bytes(8, "little") + text + bytes(body)


def _config(shape: Shape) -> dict[str, Any]:
    end = VOCABULARY[END]
    return {
        "architectures": ["GPT2LMHeadModel"],
        "model_type": "gpt2",
        "dtype": "float32",
        "vocab_size": shape.vocabulary,
        "n_positions": shape.positions,
        "n_embd": shape.width,
        "n_layer": shape.layers,
        "n_head": shape.heads,
        "activation_function": "gelu_new",
        "layer_norm_epsilon": 1e-5,
        "attn_pdrop": 0.0,
        "embd_pdrop": 0.0,
        "resid_pdrop": 0.0,
        "tie_word_embeddings": True,
        "bos_token_id": end,
        "eos_token_id": end,
        "pad_token_id": VOCABULARY["<|pad|>"],
    }


def _tokenizer() -> dict[str, Any]:
    """A tokenizer of single characters: byte pair encoding without a single merge."""
    flags = {"single_word": False, "lstrip": False, "rstrip": False, "normalized": False, "special": True}
    return {
        "version": "1.0",
        "truncation": None,
        "padding": None,
        "added_tokens": [{"id": VOCABULARY[token], "content": token, **flags} for token in SPECIAL],
        "normalizer": None,
        "pre_tokenizer": None,
        "post_processor": None,
        "decoder": {"type": "Fuse"},
        "model": {
            "type": "BPE",
            "dropout": None,
            "unk_token": "<|unknown|>",
            "continuing_subword_prefix": None,
            "end_of_word_suffix": None,
            "fuse_unk": False,
            "byte_fallback": False,
            "ignore_merges": False,
            "vocab": VOCABULARY,
            "merges": [],
        },
    }


def _tokenizer_config(shape: Shape) -> dict[str, Any]:
    return {
        "tokenizer_class": "PreTrainedTokenizerFast",
        "model_max_length": shape.positions,
        "clean_up_tokenization_spaces": False,
        "eos_token": END,
        "bos_token": END,
        "pad_token": "<|pad|>",
        "unk_token": "<|unknown|>",
        "chat_template": CHAT,
    }


def _write(path: Path, value: dict[str, Any]) -> None:
    path.write_text(json.dumps(value, indent=1) + "\n")
