"""Options of chat templates that do nothing, templates that know the date, and ends of turns."""

from typing import Any

import pytest

pytest.importorskip("torch")

from opd.core.errors import UserError
from opd.models import chat

PLAIN = (
    "{% for m in messages %}<|{{ m.role }}|>{{ m.content }}<eos>{% endfor %}"
    "{% if add_generation_prompt %}<|assistant|>{% endif %}"
)
# As Qwen3's: thinking unless it is told not to.
SWITCH = (
    PLAIN + "{% if enable_thinking is defined and enable_thinking is false %}<think>{% endif %}"
)
EFFORT = "{% if effort is not defined %}{% set effort = 'medium' %}{% endif %}{{ effort }}" + PLAIN
# As Llama 3.2's.
DATED = (
    "{% if not date_string is defined %}{% set date_string = strftime_now('%d %b %Y') %}{% endif %}"
    "{{ date_string }}" + PLAIN
)
SYSTEM_ONLY = (
    "{% for m in messages %}{% if m.role == 'system' and loud %}!{% endif %}{{ m.content }}"
    "{% endfor %}"
)
READ_FOR_NOTHING = "{% set x = verbose %}" + PLAIN


@pytest.fixture(scope="module")
def tokenizer(tmp_path_factory: pytest.TempPathFactory) -> Any:
    from transformers import AutoTokenizer

    from opd.models import init

    out = tmp_path_factory.mktemp("chat")
    shape = {"hidden": 8, "layers": 1, "heads": 1, "kv_heads": 1, "intermediate": 8, "seed": 0}
    init.run(shape, {}, out)
    return AutoTokenizer.from_pretrained(out)


@pytest.mark.parametrize(
    ("template", "options"),
    [
        (SWITCH, {"enable_thinking": False}),
        (SWITCH, {"enable_thinking": True}),  # the default, said
        (SWITCH, {"enable_thinking": None}),
        (EFFORT, {"effort": "medium"}),
        (EFFORT, {"effort": "high"}),
        (SYSTEM_ONLY, {"loud": False}),
        (DATED, {"date_string": "26 Jul 2024"}),
        (PLAIN, {}),
    ],
)
def test_options_that_do_something_are_legal(
    tokenizer: Any, template: str, options: dict[str, Any]
) -> None:
    tokenizer.chat_template = template
    chat.require_options(tokenizer, options)


@pytest.mark.parametrize(
    ("template", "options", "line"),
    [
        (
            SWITCH,
            {"enable_thinkng": False},
            r"'enable_thinkng' .*what .* reads \(enable_thinking\)",
        ),
        (
            PLAIN,
            {"enable_thinking": False},
            r"'enable_thinking' changes no prompt.* reads \(none\)",
        ),
        (SWITCH, {"enable_thinking": False, "effort": "high"}, "'effort' changes no prompt"),
        (READ_FOR_NOTHING, {"verbose": True}, "'verbose' changes no prompt, whatever its value"),
        (
            DATED,
            {},
            r"the chat template writes the date .*a variable that it reads \(date_string\)",
        ),
        (
            "{{ strftime_now('%Y') }}" + PLAIN,
            {},
            r"the chat template writes the date .* reads \(none\)",
        ),
    ],
)
def test_options_that_do_nothing_and_dates_are_refused(
    tokenizer: Any, template: str, options: dict[str, Any], line: str
) -> None:
    tokenizer.chat_template = template
    with pytest.raises(UserError, match=rf"chat_template: {line}"):
        chat.require_options(tokenizer, options)


def test_the_token_that_ends_a_turn(tokenizer: Any) -> None:
    for template, expected in (
        (PLAIN, tokenizer.eos_token_id),
        (PLAIN.replace("<eos>", "<user>"), tokenizer.convert_tokens_to_ids("<user>")),
        (PLAIN.replace("<eos>", ""), None),
        (PLAIN.replace("<eos>", "<|im_end|>"), None),  # unknown to this tokenizer
    ):
        tokenizer.chat_template = template
        assert chat.turn_end(tokenizer, {}) == expected
