"""Stage ``init``: a model of the miniature world with random weights, and its tokenizer."""

from pathlib import Path
from typing import Any

from opd.data import grammar

CHARACTERS = "0123456789+-*=;#abcdefghijklmnopqrstuvwxyz .,:?()"
PAD, EOS, UNKNOWN, USER, ASSISTANT = "<pad>", "<eos>", "<unk>", "<user>", "<assistant>"
CHAT_TEMPLATE = (
    "{% for message in messages %}"
    "{% if message.role == 'user' %}<user>{{ message.content }}"
    "{% else %}<assistant>{{ message.content }}<eos>{% endif %}"
    "{% endfor %}"
    "{% if add_generation_prompt %}<assistant>{% endif %}"
)


def run(cfg: dict[str, Any], inputs: dict[str, Path], out: Path) -> dict[str, Any]:
    """Stage ``init``: a Qwen3 checkpoint with random weights and a tokenizer of single characters,
    or of the words of ``opd.data.words``.

    cfg: hidden, layers, heads, kv_heads, intermediate, seed, world. Models of any size share the
    tokenizer.
    """
    import torch
    from tokenizers import Regex, Tokenizer, decoders, models, pre_tokenizers
    from transformers import PreTrainedTokenizerFast, Qwen3Config, Qwen3ForCausalLM

    in_words = cfg.get("world", {}).get("grammar") == "words"
    special = [PAD, EOS, UNKNOWN, USER, ASSISTANT]
    tokens = [*special, *(grammar.vocabulary() if in_words else CHARACTERS)]
    vocabulary = {token: i for i, token in enumerate(tokens)}
    single = Tokenizer(models.WordLevel(vocabulary, unk_token=UNKNOWN))
    if in_words:  # decoded with spaces between them
        single.pre_tokenizer = pre_tokenizers.WhitespaceSplit()
    else:
        single.pre_tokenizer = pre_tokenizers.Split(Regex(r"[\s\S]"), "isolated")
        single.decoder = decoders.Fuse()
    tokenizer = PreTrainedTokenizerFast(
        tokenizer_object=single,
        pad_token=PAD,
        eos_token=EOS,
        unk_token=UNKNOWN,
        additional_special_tokens=[USER, ASSISTANT],
        clean_up_tokenization_spaces=False,
        chat_template=CHAT_TEMPLATE,
    )
    config = Qwen3Config(
        vocab_size=len(vocabulary),
        hidden_size=cfg["hidden"],
        num_hidden_layers=cfg["layers"],
        num_attention_heads=cfg["heads"],
        num_key_value_heads=cfg["kv_heads"],
        head_dim=cfg["hidden"] // cfg["heads"],
        intermediate_size=cfg["intermediate"],
        max_position_embeddings=512,
        initializer_range=cfg.get("initializer", 0.1),
        tie_word_embeddings=True,
        pad_token_id=tokenizer.pad_token_id,
        bos_token_id=None,
        eos_token_id=tokenizer.eos_token_id,
        dtype=torch.float32,
    )
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(cfg["seed"])
        model = Qwen3ForCausalLM(config)
    model.save_pretrained(out)
    tokenizer.save_pretrained(out)
    return {"parameters": sum(p.numel() for p in model.parameters())}
