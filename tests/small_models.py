"""Small models of random weights, as folders that transformers, a server and a trainer take."""

from pathlib import Path


def make_tokenizer():
    """Byte-level, with a chat template of its own; its last four tokens are end, user, assistant, system."""
    from tokenizers import Tokenizer, decoders, models, pre_tokenizers
    from transformers import PreTrainedTokenizerFast

    names = [*sorted(pre_tokenizers.ByteLevel.alphabet()), "<|end|>", "<|user|>", "<|assistant|>", "<|system|>"]
    vocabulary = {name: number for number, name in enumerate(names)}
    tokenizer = Tokenizer(models.BPE(vocab=vocabulary, merges=[]))
    tokenizer.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False)
    tokenizer.decoder = decoders.ByteLevel()
    fast = PreTrainedTokenizerFast(tokenizer_object=tokenizer, eos_token="<|end|>", pad_token="<|end|>")
    fast.chat_template = (
        "{% for m in messages %}<|{{ m['role'] }}|>{{ m['content'] }}<|end|>{% endfor %}"
        "{% if add_generation_prompt %}<|assistant|>{% endif %}"
    )
    return fast


def make_llama(folder: Path) -> None:
    """Two layers of Llama. Needs transformers."""
    import torch
    from transformers import LlamaConfig, LlamaForCausalLM

    fast = make_tokenizer()
    torch.manual_seed(0)
    end = fast.eos_token_id
    model = LlamaForCausalLM(
        LlamaConfig(
            vocab_size=len(fast),
            hidden_size=32,
            intermediate_size=64,
            num_hidden_layers=2,
            num_attention_heads=2,
            num_key_value_heads=1,
            max_position_embeddings=4_096,
            bos_token_id=end,
            eos_token_id=end,
            pad_token_id=end,
        )
    )
    with torch.no_grad():  # every token has a tenth of a chance to be the last, at the temperature of 0.3
        model.model.embed_tokens.weight[:, 0] = 0.1
        model.lm_head.weight[:, 0] = 0.0
        model.lm_head.weight[end, 0] = 0.27
    model.generation_config.do_sample = True
    model.save_pretrained(folder)
    fast.save_pretrained(folder)
