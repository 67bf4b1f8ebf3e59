"""What names an artifact: digests of its settings, which hold one of its code, and of the contents
of its inputs."""

from collections.abc import Mapping
from typing import Any

from opd.core.files import digest


def identity(stage: str, cfg: Mapping[str, Any], inputs: Mapping[str, str]) -> str:
    """Digest that names an artifact: stage, settings, and a digest of each input's contents.

    What is under ``execution`` changes how a stage runs and not what it makes: it does not count.
    """
    return digest({"stage": stage, "cfg": _made_by(cfg), "inputs": dict(inputs)})


def adopted_identity(stage: str, cfg: Mapping[str, Any], outputs: Mapping[str, str]) -> str:
    """The same for what was adopted as the work of this stage: stage, settings without the code,
    which did not make it, and content. Never that of something a stage has made."""
    settings = {key: value for key, value in _made_by(cfg).items() if key != "code"}
    return digest({"adopted": stage, "cfg": settings, "outputs": dict(outputs)})


def settings_digest(stage: str, cfg: Mapping[str, Any]) -> str:
    """Digest of what a stage is told to make: ``settings`` in digest.json."""
    return digest([stage, _made_by(cfg)])


def _made_by(cfg: Mapping[str, Any]) -> dict[str, Any]:
    return {key: value for key, value in cfg.items() if key != "execution"}
