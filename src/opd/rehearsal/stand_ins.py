"""What stands in for models and datasets that a rehearsal does not fetch.

A model is two narrow layers of its architecture. It has learnt nothing but the form of an answer,
so that some of its responses are right by chance, some are wrong and some are cut off. A dataset is
a few rows of the same columns.
"""

import json
import random
import re
import string
from collections.abc import Mapping, Sequence
from itertools import islice
from pathlib import Path
from typing import Any

from opd.core.code import package_file
from opd.core.errors import UserError
from opd.core.schema import load_yaml
from opd.data import loaders, templates
from opd.data.layouts import LAYOUTS, Layout, choose

FAMILIES: list[dict[str, Any]] = load_yaml(
    package_file(__file__, "stand_ins.yaml").read_text(encoding="utf-8")
)
ROWS = 40
SHARED = 2  # questions
REPEATS = 2  # rows of each question, where a dataset repeats its questions
REPEATED = ("open-thoughts/OpenThoughts3-1.2M",)
ANSWERS, CHOICES, TRUTHS = ("0", "1"), ("A", "B"), ("True", "False")
# Words before an answer, and how many of them.
FILLERS, WORDS = ("so ", "then ", "now "), (0, 0, 0, 1, 2, 200, 200)
# What a response is made of: a token each, so that little has to be learnt.
PIECES = (
    *FILLERS,
    *(f"\\boxed{{{answer}}}" for answer in (*ANSWERS, *CHOICES)),
    *(f"\nAnswer: {answer}" for answer in (*CHOICES, *TRUTHS)),
    *(said for entry in FAMILIES for said in entry.get("says", ())),
)
WIDTH = {False: 64, True: 96}  # hidden size, by whether the model is a large one
LARGE = 3.0  # billions of parameters
STEPS, BATCH, LONGEST = 200, 8, 32  # of its training: steps, rows of a step, tokens of a row
NOISE = 0.02  # of the spread of a matrix
SHARD = "-00000-of-00001.parquet"  # how the hub ends the names of a split's files


# Models


def family(name: str) -> dict[str, Any]:
    """The entry of stand_ins.yaml for a model's id. Raises ``UserError`` where there is none."""
    for entry in FAMILIES:
        if re.search(entry["ids"], name):
            return entry
    raise UserError(
        "nothing is known that could stand in for it",
        name,
        "fetch its config.json and tokenizer into a folder, and rehearse with that as its path",
    )


def model(name: str, folder: Path, taught: dict[str, Any], seed: int = 0) -> None:
    """Write the stand-in of a model of the hub (its id ``name``) into a folder. Models of one shape
    differ by noise on the weights of the first of them, which ``taught`` keeps."""
    entry = family(name)
    folder.mkdir(parents=True, exist_ok=True)
    if entry["type"] == "mpnet":
        _encoder(folder, seed)
        return
    _language_model(entry, name, folder, taught, seed)


def _tokenizer(special: Sequence[str], **named: Any) -> Any:
    """A token for each byte and each piece of a response, and the special ones."""
    from tokenizers import AddedToken, Tokenizer, decoders, models, pre_tokenizers
    from transformers import PreTrainedTokenizerFast

    letters = sorted(pre_tokenizers.ByteLevel.alphabet())
    tokenizer = Tokenizer(models.BPE({letter: i for i, letter in enumerate(letters)}, []))
    tokenizer.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False)
    tokenizer.decoder = decoders.ByteLevel()
    tokenizer.add_special_tokens(
        [AddedToken(token, special=True, normalized=False) for token in special]
    )
    tokenizer.add_tokens([AddedToken(piece, normalized=False) for piece in PIECES])
    return PreTrainedTokenizerFast(tokenizer_object=tokenizer, **named)


def _language_model(
    entry: Mapping[str, Any], name: str, folder: Path, taught: dict[str, Any], seed: int
) -> None:
    import torch
    import trl
    from transformers import AutoConfig, AutoModelForCausalLM, GenerationConfig

    template = Path(trl.__file__).parent / "chat_templates" / f"{entry['template']}.jinja"
    tokenizer = _tokenizer(
        entry["special"],
        eos_token=entry["ends"][0],
        pad_token=entry["pad"],
        **({"bos_token": entry["begins"]} if "begins" in entry else {}),
    )
    tokenizer.chat_template = template.read_text(encoding="utf-8")
    size = re.search(r"(\d+(?:\.\d+)?)B", name)
    width = WIDTH[bool(size and float(size[1]) > LARGE)]
    wide = bool(entry.get("wide") and re.search(entry["wide"], name))
    settings: dict[str, Any] = {
        "vocab_size": 16 * (-(-len(tokenizer) // 16) + 1 + wide),
        "hidden_size": width,
        "intermediate_size": 2 * width,
        "num_hidden_layers": 2,
        "num_attention_heads": 4,
        "num_key_value_heads": 2,
        "head_dim": 32,
        "max_position_embeddings": 65536,
        "tie_word_embeddings": entry["tied"],
    }
    if entry["type"].endswith("_moe"):
        settings |= {"num_experts": 4, "num_experts_per_tok": 2, "moe_intermediate_size": width}
    if entry["type"] == "qwen2":  # its heads are what the width leaves
        settings.pop("head_dim")
        settings |= {"hidden_size": 2 * width, "intermediate_size": 2 * width}
    torch.manual_seed(seed)
    config = AutoConfig.for_model(entry["type"], **settings)
    made = AutoModelForCausalLM.from_config(config)
    shape = f"{entry['type']} {entry['tied']} {entry['ends'][0]} {sorted(settings.items())}"
    if shape in taught:
        made.load_state_dict(taught[shape])
        with torch.no_grad():
            for weights in made.parameters():
                weights += (
                    NOISE * weights.std() * torch.randn_like(weights) if weights.dim() > 1 else 0
                )
    else:
        _teach(made, tokenizer, entry["ends"][0], seed, entry.get("says", ()))
        taught[shape] = {key: value.clone() for key, value in made.state_dict().items()}
    ends = [tokenizer.convert_tokens_to_ids(token) for token in entry["ends"]]
    made.generation_config = GenerationConfig(
        eos_token_id=ends if len(ends) > 1 else ends[0],
        pad_token_id=tokenizer.pad_token_id,
        bos_token_id=tokenizer.bos_token_id,
    )
    made.to(torch.bfloat16).save_pretrained(folder)
    tokenizer.save_pretrained(folder)


def own_model(source: Path, folder: Path, seed: int = 0) -> None:
    """Write the stand-in of a checkpoint that lies in a folder: its configuration with two narrow
    layers, and its own tokenizer."""
    import torch
    from transformers import AutoConfig, AutoModelForCausalLM, GenerationConfig

    from opd.models.checkpoints import read_tokenizer

    config = AutoConfig.from_pretrained(source)
    narrow: dict[str, Any] = {
        "hidden_size": 64,
        "intermediate_size": 128,
        "num_hidden_layers": 2,
        "head_dim": 32,
    }
    narrow |= {"num_attention_heads": 4, "num_key_value_heads": 2, "layer_types": None}
    for key, value in narrow.items():
        if getattr(config, key, None) is not None:
            setattr(config, key, value)
    tokenizer = read_tokenizer(source)
    torch.manual_seed(seed)
    made = AutoModelForCausalLM.from_config(config)
    if (source / "generation_config.json").is_file():
        made.generation_config = GenerationConfig.from_pretrained(source)
    if tokenizer.chat_template:
        _teach(made, tokenizer, tokenizer.eos_token, seed)
    made.to(torch.bfloat16).save_pretrained(folder)
    tokenizer.save_pretrained(folder)


def first_rows(source: Path, path: Path) -> None:
    """Write the first rows of a data file of one's own to another of the same kind. Raises
    ``UserError`` as ``opd.data.loaders.read_file`` does."""
    import pyarrow as pa
    import pyarrow.parquet as pq
    from pyarrow import csv

    path.parent.mkdir(parents=True, exist_ok=True)
    if source.suffix == ".parquet":  # of which the loader reads no more columns than it knows
        try:
            with pq.ParquetFile(source) as file:
                first = pa.Table.from_batches(islice(file.iter_batches(ROWS), 1), file.schema_arrow)
        except (pa.ArrowException, OSError) as error:
            raise loaders.not_parquet(source, 0, error) from error
        pq.write_table(first, path)
        return
    rows = [*islice(loaders.read_file(source, {}), ROWS)]
    if source.suffix == ".csv":
        csv.write_csv(pa.Table.from_pylist(rows), path)
    else:
        lines = "".join(f"{json.dumps(row)}\n" for row in rows)
        path.write_text(json.dumps(rows) if source.suffix == ".json" else lines, encoding="utf-8")


def response(prompt: str, dice: random.Random, thinks: bool) -> str:
    """A response that has the form of an answer, whatever was asked; after some thinking where the
    prompt has begun it, or the model ``thinks`` and the prompt does not say that it need not."""
    begun = prompt.rstrip().endswith("<think>")
    told_not_to = prompt.rstrip().endswith("</think>")
    thought = f"{_words(dice)}</think>" if begun or (thinks and not told_not_to) else ""
    (boxed,) = dice.choices((*ANSWERS, *CHOICES), (6, 3, 1, 1))
    (stated,) = dice.choices((*CHOICES, *TRUTHS), (3, 2, 3, 2))
    answered = f"\\boxed{{{boxed}}}\nAnswer: {stated}"
    return ("<think>" if thought and not begun else "") + thought + _words(dice) + answered


def _words(dice: random.Random) -> str:
    return "".join(dice.choices(FILLERS, k=dice.choice(WORDS)))


def _teach(model: Any, tokenizer: Any, end: str, seed: int, says: Sequence[str] = ()) -> None:
    """Train a model on what it says, or on responses of that form, after any prompt, with and
    without thinking."""
    import torch

    torch.set_num_threads(1)  # several wait for each other longer than they work on such a model
    dice = random.Random(seed)
    thinks = "enable_thinking" in tokenizer.chat_template
    optimizer = torch.optim.AdamW(model.parameters(), lr=4e-3)
    falling = torch.optim.lr_scheduler.LinearLR(optimizer, 1.0, 0.0, STEPS)
    model.train()
    for step in range(STEPS):
        texts, starts = [], []
        tokens = dice.choice((4, 8, 16)) if step % 4 else 300  # of the prompt, at its end
        for _ in range(BATCH):
            chat = [{"role": "user", "content": _question(dice, dice.randrange(10**6))}]
            prompt = tokenizer.apply_chat_template(
                chat,
                tokenize=False,
                add_generation_prompt=True,
                enable_thinking=dice.random() < 0.5,
            )
            ids = tokenizer(prompt, add_special_tokens=False)["input_ids"][-tokens:]
            starts.append(len(ids))
            text = (dice.choice(says) if says else response(prompt, dice, thinks)) + end
            answer = tokenizer(text, add_special_tokens=False)["input_ids"]
            texts.append(ids + answer[:LONGEST])
        longest = max(map(len, texts))
        ids = torch.tensor(
            [text + [tokenizer.pad_token_id] * (longest - len(text)) for text in texts]
        )
        labels = torch.full_like(ids, -100)
        for row, (text, start) in enumerate(zip(texts, starts, strict=True)):
            labels[row, start : len(text)] = ids[row, start : len(text)]
        model(input_ids=ids, labels=labels).loss.backward()
        optimizer.step()
        falling.step()
        optimizer.zero_grad()
    model.eval()


def _encoder(folder: Path, seed: int) -> None:
    import tempfile

    import torch
    from sentence_transformers import SentenceTransformer, models
    from transformers import MPNetConfig, MPNetModel

    torch.manual_seed(seed)
    tokenizer = _tokenizer(
        ["<s>", "</s>", "<pad>", "<mask>", "<unk>"],
        **{"bos_token": "<s>", "eos_token": "</s>", "cls_token": "<s>", "sep_token": "</s>"},
        **{"pad_token": "<pad>", "mask_token": "<mask>", "unk_token": "<unk>"},
        model_max_length=512,
    )
    config = MPNetConfig(
        vocab_size=len(tokenizer),
        hidden_size=64,
        intermediate_size=128,
        num_hidden_layers=2,
        num_attention_heads=4,
        max_position_embeddings=514,
        pad_token_id=tokenizer.pad_token_id,
    )
    with tempfile.TemporaryDirectory() as whole:
        MPNetModel(config).save_pretrained(whole)
        tokenizer.save_pretrained(whole)
        transformer = models.Transformer(whole, max_seq_length=384)
        pooled = [transformer, models.Pooling(64, "mean")]
        dice = random.Random(seed)
        texts = [_question(dice, number) for number in range(64)]
        mean = SentenceTransformer(modules=pooled, device="cpu").encode(texts).mean(0)
        # Questions that share most of their letters: what they have in common goes.
        centred = models.Dense(64, 64, activation_function=torch.nn.Identity())
        with torch.no_grad():
            centred.linear.weight.copy_(torch.eye(64))
            centred.linear.bias.copy_(-torch.from_numpy(mean))
        parts = [*pooled, centred, models.Normalize()]
        SentenceTransformer(modules=parts, device="cpu").save(str(folder))


# Datasets


def dataset(name: str, source: Mapping[str, Any], folder: Path) -> None:
    """Write the stand-in of a dataset of the hub: the config (one or several) and the split that a
    recipe (``source``) reads, beside those that are there. Raises ``UserError`` for a dataset whose
    columns are not known."""
    import pyarrow as pa
    import pyarrow.parquet as pq

    if name not in LAYOUTS and not (source.get("question") or source.get("layout")):
        raise UserError(
            "its columns are not known, so no rows can stand in for it",
            name,
            "name its columns in the config (question, answer)",
        )
    layout = choose({**source, "hub": name})
    file = source.get("file") or layout.file
    configs = source.get("config") or [c for c in layout.configs if c] or ["default"]
    for config in [configs] if isinstance(configs, str) else configs:
        inner = file or f"{config}/{source.get('split', 'train')}{SHARD}"
        path = folder / inner
        path.parent.mkdir(parents=True, exist_ok=True)
        pq.write_table(pa.Table.from_pylist(_rows(layout, name, f"{name}/{inner}")), path)
    parts: dict[str, dict[str, str]] = {}
    for path in sorted(folder.rglob(f"*{SHARD}")):
        split = path.name.removesuffix(SHARD)
        parts.setdefault(path.parent.name, {})[split] = path.relative_to(folder).as_posix()
    about = [
        {"config_name": config, "data_files": [{"split": s, "path": p} for s, p in splits.items()]}
        for config, splits in parts.items()
    ]
    # By this ``datasets`` finds configurations and splits.
    text = json.dumps({"configs": about} if about else {})
    (folder / "README.md").write_text(f"---\n{text}\n---\n", encoding="utf-8")


def _rows(layout: Layout, name: str, seed: str) -> list[dict[str, Any]]:
    dice = random.Random(seed)
    times = REPEATS if name in REPEATED else 1
    messages = name in LAYOUTS and layout.prompt == ("prompt",)
    rows = []
    for number in range(ROWS // times):
        question = _question(dice, number)
        rows += [_row(layout, dice, question, number, messages) for _ in range(times)]
    return rows


def _question(dice: random.Random, number: int) -> str:
    """A question; the first ones are those of every dataset, as there are duplicates among real
    ones, too."""
    dice = random.Random(number) if number < SHARED else dice
    first, second = dice.randint(2, 99), dice.randint(2, 99)
    return f"No. {number}: is {first} times {second} larger than {dice.randint(4, 9999)}, and why?"


def _row(
    layout: Layout, dice: random.Random, question: str, number: int, messages: bool
) -> dict[str, Any]:
    """A row with the columns that a layout names, and no more; with ``messages`` its prompt is one,
    in the template of DAPO."""
    row: dict[str, Any] = {}
    column = layout.question[0]
    if messages:
        content = templates.apply("dapo", question)
        row["prompt"] = [{"role": "user", "content": content}]
        row["extra_info"] = {"index": str(number)}
    elif "{" in column:
        for part in re.findall(r"\{(\w[^{}]*)\}", column):
            if part == "choices" and not layout.wrong:
                row[part] = [f"choice {letter}" for letter in string.ascii_uppercase[:4]]
            elif part != "choices":
                row[part] = question
    else:
        _put(row, column, question)
    answer = dice.choice(ANSWERS)
    if layout.answer:
        worked = f"We see it at once: \\boxed{{{answer}}}"
        value: Any = {
            "boxed": worked,
            "letter": dice.randrange(2),
            "item": [answer],
            "choice": f"choice {number}",
        }.get(layout.take, answer)
        if column.startswith("{passage}"):
            value = dice.random() < 0.5
        _put(row, layout.answer, value)
    for other, text in enumerate(layout.wrong):
        row[text] = f"choice {number}-{other}"
    for solution in (layout.solution, *layout.fallback.values()):
        if solution and solution not in row:
            row[solution] = f"We see it at once: \\boxed{{{answer}}}"
    for column in layout.difficulty[:1]:
        _put(row, column, float(dice.randint(1, 9)))
    return row | dict(layout.where)


def _put(row: dict[str, Any], column: str, value: Any) -> None:
    """Set a column that may be dotted; messages hold a text as what a user asks."""
    head, _, rest = column.partition(".")
    if rest:
        inner = row.setdefault(head, {})
        _put(inner, rest, value)
    elif column == "conversations":
        row[column] = [{"from": "human", "value": value}, {"from": "gpt", "value": "I see."}]
    else:
        row[column] = value
