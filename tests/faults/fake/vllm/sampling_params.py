"""What a request asks for."""

from types import SimpleNamespace


class SamplingParams(SimpleNamespace):
    pass


class RequestOutputKind:
    FINAL_ONLY = 2
