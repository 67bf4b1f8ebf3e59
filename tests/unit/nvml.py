"""A stand-in for the module pynvml: a machine with as many devices as a test says."""

import sys
from types import SimpleNamespace
from typing import Any


class Machine:
    """What ``opd.gpu`` asks of pynvml. ``says`` maps the name of a question to one answer per
    device, or to a list of answers, one per time asked; a question without an answer fails."""

    class NVMLError(Exception):
        pass

    def __init__(self, devices: int, **says: Any) -> None:
        self.devices = devices
        self.says = {"Name": [f"Fake {i}".encode() for i in range(devices)], **says}
        self.asked: dict[tuple[str, int], int] = {}
        sys.modules["pynvml"] = self  # type: ignore[assignment]

    def nvmlInit(self) -> None:
        if self.devices < 0:
            raise self.NVMLError("no driver")

    def nvmlDeviceGetCount(self) -> int:
        return self.devices

    def nvmlDeviceGetHandleByIndex(self, index: int) -> int:
        if index >= self.devices:
            raise self.NVMLError("no such device")
        return index

    def nvmlDeviceGetHandleByUUID(self, uuid: str) -> int:
        names = [self.nvmlDeviceGetUUID(i) for i in range(self.devices)]
        if uuid not in names:
            raise self.NVMLError("no such device")
        return names.index(uuid)

    def nvmlDeviceGetUUID(self, device: int) -> str:
        return f"GPU-{'abcdefgh'[device]}"

    def __getattr__(self, name: str) -> Any:
        question = name.removeprefix("nvmlDeviceGet")

        def answer(device: int) -> Any:
            if question not in self.says:
                raise self.NVMLError("not supported")
            said = self.says[question][device]
            if isinstance(said, list):
                time = self.asked.get((question, device), 0)
                self.asked[question, device] = time + 1
                said = said[min(time, len(said) - 1)]
            return said

        return answer


def memory(used: int) -> SimpleNamespace:
    return SimpleNamespace(used=used, total=80 << 30)


def busy(percent: int) -> SimpleNamespace:
    return SimpleNamespace(gpu=percent, memory=0)
