"""Engine selection as programs for torch write it. Every name is accepted; the kernels are always zeropoint's."""

from __future__ import annotations

import sys
from types import ModuleType

from zeropoint.errors import QuantizationError

__all__ = ["engine", "supported_engines"]

supported_engines = ["zeropoint", "x86", "fbgemm", "onednn", "qnnpack"]
engine = "zeropoint"


class _Checked(ModuleType):
    """Assigning ``engine`` checks the name, as torch does."""

    def __setattr__(self, name: str, value: object) -> None:
        if name == "engine" and value not in supported_engines:
            raise QuantizationError(
                f"quantized engine {value} is not supported; use one of {', '.join(supported_engines)}"
            )
        super().__setattr__(name, value)


sys.modules[__name__].__class__ = _Checked
