"""An engine with the interface of vLLM that ``opd.models.vllm_engine`` uses: tokens are a function
of the request's seed. FAKE_VLLM=SIGNAL:N has its process get a signal once N requests are
finished."""

import os
import signal
from types import SimpleNamespace
from typing import Any

from vllm.sampling_params import SamplingParams

__all__ = ["LLM", "SamplingParams"]


class LLM:
    def __init__(self, **_: Any) -> None:
        self.llm_engine = Engine()


class Engine:
    def __init__(self) -> None:
        self.requests: list[tuple[str, Any]] = []
        name, _, number = os.environ.get("FAKE_VLLM", "").partition(":")
        self.signal, self.left = name, int(number or -1)

    def add_request(self, name: str, _: Any, parameters: Any) -> None:
        self.requests.append((name, parameters))

    def has_unfinished_requests(self) -> bool:
        return bool(self.requests)

    def step(self) -> list[Any]:
        if self.left == 0:
            os.kill(os.getpid(), getattr(signal, self.signal))
        self.left -= 1
        name, parameters = self.requests.pop(0)
        tokens = [6 + (parameters.seed >> i) % 10 for i in range(parameters.max_tokens)]
        output = SimpleNamespace(token_ids=tokens)
        return [SimpleNamespace(request_id=name, finished=True, outputs=[output])]
