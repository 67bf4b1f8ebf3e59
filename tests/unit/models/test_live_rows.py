"""Sampling without the rows that have ended gives what sampling with them gives."""

from typing import Any

import pytest

torch = pytest.importorskip("torch")

from peft import LoraConfig, get_peft_model  # noqa: E402
from transformers import Qwen3Config, Qwen3ForCausalLM  # noqa: E402

from opd.models.live_rows import live_rows  # noqa: E402

pytestmark = pytest.mark.unit
STOPS, PAD, LONGEST = {3, 7}, 5, 40


def model(adapter: bool) -> Any:
    """Random weights over 13 tokens, in float64: sums of any order are as good as equal."""
    shape = {"hidden_size": 16, "intermediate_size": 16, "head_dim": 8, "num_hidden_layers": 2}
    heads = {"num_attention_heads": 2, "num_key_value_heads": 1, "vocab_size": 13}
    torch.manual_seed(0)
    made: Any = Qwen3ForCausalLM(Qwen3Config(**shape, **heads)).double().eval()
    if not adapter:
        return made
    return get_peft_model(made, LoraConfig(target_modules="all-linear", init_lora_weights=False))


def sampled(model: Any, seed: int) -> tuple[Any, list[int]]:
    """Responses [16, T] to prompts of 1 to 4 tokens, and how many rows were read for each token
    after the first."""
    prompts = torch.randint(8, 13, (16, 4), generator=torch.Generator().manual_seed(seed))
    mask = (torch.arange(4) >= torch.arange(16).unsqueeze(1) % 4).long()
    read: list[int] = []
    embedded = model.get_input_embeddings().register_forward_pre_hook(
        lambda _, args: read.append(len(args[0]))
    )
    torch.manual_seed(seed)
    tokens = model.generate(
        input_ids=prompts, attention_mask=mask, do_sample=True, top_k=0, max_new_tokens=LONGEST,
        eos_token_id=sorted(STOPS), pad_token_id=PAD,
    )  # fmt: skip
    embedded.remove()
    return tokens[:, 4:], read[1:]


@pytest.mark.parametrize("adapter", [False, True])
def test_the_responses_are_the_same_and_less_is_read(adapter: bool) -> None:
    student = model(adapter)
    whole, all_rows = zip(*(sampled(student, seed) for seed in (1, 2)), strict=True)
    with live_rows(student, STOPS):
        live, rows = zip(*(sampled(student, seed) for seed in (1, 2)), strict=True)
    for tokens, same, read in zip(whole, live, rows, strict=True):
        assert torch.equal(tokens, same)
        ends = torch.isin(tokens, torch.tensor(sorted(STOPS))).cumsum(1)
        left = (ends == 0).sum(0).tolist()
        assert len({*left}) > 5 and left[-1] < 4  # lengths differ
        # PAD is a token like others while a row goes on.
        assert ((tokens == PAD) & (ends == 0)).any()
        for going, count in zip(left, read, strict=False):
            assert count == going or 7 / 8 * count < going <= count
    assert sum(map(sum, rows)) < 0.6 * sum(map(sum, all_rows))
    # Nothing of it stays.
    assert torch.equal(sampled(student, 1)[0], whole[0]) and sampled(student, 1)[1] == all_rows[0]


def test_without_a_cache_all_rows_are_read() -> None:
    student = model(adapter=False)
    student.generation_config.use_cache = False
    whole, all_rows = sampled(student, 1)
    with live_rows(student, STOPS):
        live, rows = sampled(student, 1)
    assert torch.equal(whole, live) and rows == all_rows
