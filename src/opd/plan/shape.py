"""The shape of a language model, and what follows from it: its parameters, what a layer keeps of a
token for the backward pass, and the size of keys and values."""

from collections.abc import Mapping, Sequence
from typing import Any, NamedTuple

# Architectures that are such decoders, by transformers' name.
KINDS = ("llama", "mistral", "qwen2", "qwen3")


class Shape(NamedTuple):
    """A decoder of layers of attention and a gated MLP (Qwen2, Qwen3, Llama), in elements.

    query and key: heads x their width. tied: whether the head is the embeddings; biased: whether
    queries, keys and values have biases; normed: the width by which they are normalised, else 0.
    """

    layers: int
    hidden: int
    intermediate: int
    query: int
    key: int
    vocabulary: int
    tied: bool
    biased: bool = False
    normed: int = 0

    @property
    def embeddings(self) -> int:
        """Parameters of the embeddings and of a head of its own."""
        return self.vocabulary * self.hidden * (1 if self.tied else 2)

    @property
    def layer(self) -> int:
        """Parameters of one layer."""
        attention = 2 * self.hidden * (self.query + self.key) + 2 * self.normed
        biases = (self.query + 2 * self.key) * self.biased
        return attention + biases + 3 * self.hidden * self.intermediate + 2 * self.hidden

    @property
    def parameters(self) -> int:
        return self.embeddings + self.layers * self.layer + self.hidden

    def adapter(self, r: int, target_modules: Sequence[str] | str) -> int:
        """Parameters of an adapter of rank r, of all matrices of the layers ("all-linear") or of
        those that are named (``opd.training.adapter``)."""
        ends = {
            **{"q_proj": self.query, "k_proj": self.key, "v_proj": self.key, "o_proj": self.query},
            **dict.fromkeys(("gate_proj", "up_proj", "down_proj"), self.intermediate),
        }
        if not isinstance(target_modules, str):
            named = {target.rpartition(".")[2] for target in target_modules}
            ends = {name: width for name, width in ends.items() if name in named}
        return self.layers * r * sum(self.hidden + width for width in ends.values())

    def saved(self, narrow: bool, stream: int, masked: bool = True) -> int:
        """Bytes that a layer keeps of one token for the backward pass, but for the mask.

        narrow: computed in bfloat16, else in float32; stream: bytes of an element between layers.
        Read from what autograd saves of the layers of transformers 5.17 (tests/bench/README.md):
        the two norms and the inputs of the projections (hidden), the MLP (intermediate), queries,
        keys and values before and after they are turned, and the output of attention. With a mask,
        keys and values are repeated for all queries.
        """
        width = 2 if narrow else 4
        inputs = (26 if stream == 4 else 16) if narrow else 24
        norm = (6 if narrow else 8) if self.normed else 0
        repeated = width if masked else 0
        of_key = norm + (0 if masked else 2 * width)
        of_query = 2 * width + norm + 2 * repeated
        mlp = 4 * width * self.intermediate
        return inputs * self.hidden + mlp + of_query * self.query + of_key * self.key

    def cached(self, width: int) -> int:
        """Bytes of a token's keys and values in all layers, at ``width`` bytes an element."""
        return 2 * width * self.layers * self.key


def from_config(config: Mapping[str, Any]) -> Shape | None:
    """The shape of a model by its config.json; None where it is no such decoder."""
    kind = config.get("model_type")
    if kind not in KINDS:
        return None
    heads = config["num_attention_heads"]
    width = config.get("head_dim") or config["hidden_size"] // heads
    return Shape(
        config["num_hidden_layers"],
        config["hidden_size"],
        config["intermediate_size"],
        heads * width,
        (config.get("num_key_value_heads") or heads) * width,
        config["vocab_size"],
        config.get("tie_word_embeddings", True),
        kind == "qwen2" or bool(config.get("attention_bias")),
        width if kind == "qwen3" else 0,
    )
