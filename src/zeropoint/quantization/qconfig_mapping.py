"""QConfigs by module name, name pattern or type, as one object."""

from __future__ import annotations

import re
from collections import OrderedDict
from typing import Any

from torch import nn

from zeropoint.errors import QuantizationError
from zeropoint.quantization.qconfig import QConfigAny, get_default_qat_qconfig, get_default_qconfig

__all__ = ["QConfigMapping", "get_default_qat_qconfig_mapping", "get_default_qconfig_mapping"]

_GLOBAL, _TYPE, _REGEX, _NAME, _ORDER = (
    "", "object_type", "module_name_regex", "module_name", "module_name_object_type_order",
)  # fmt: skip


class QConfigMapping:
    """Which qconfig a module gets. What is set later in this list wins: global, type, pattern, name.

    ``assign`` gives the modules of a model their qconfigs, for the eager ``prepare``.
    """

    def __init__(self) -> None:
        self.global_qconfig: QConfigAny = None
        self.object_type_qconfigs: OrderedDict[Any, QConfigAny] = OrderedDict()
        self.module_name_regex_qconfigs: OrderedDict[str, QConfigAny] = OrderedDict()
        self.module_name_qconfigs: OrderedDict[str, QConfigAny] = OrderedDict()
        self.module_name_object_type_order_qconfigs: OrderedDict[tuple[str, Any, int], QConfigAny] = OrderedDict()

    def set_global(self, global_qconfig: QConfigAny) -> QConfigMapping:
        self.global_qconfig = global_qconfig
        return self

    def set_object_type(self, object_type: Any, qconfig: QConfigAny) -> QConfigMapping:
        self.object_type_qconfigs[object_type] = qconfig
        return self

    def set_module_name_regex(self, module_name_regex: str, qconfig: QConfigAny) -> QConfigMapping:
        self.module_name_regex_qconfigs[module_name_regex] = qconfig
        return self

    def set_module_name(self, module_name: str, qconfig: QConfigAny) -> QConfigMapping:
        self.module_name_qconfigs[module_name] = qconfig
        return self

    def set_module_name_object_type_order(
        self, module_name: str, object_type: Any, index: int, qconfig: QConfigAny
    ) -> QConfigMapping:
        self.module_name_object_type_order_qconfigs[(module_name, object_type, index)] = qconfig
        return self

    def assign(self, model: nn.Module) -> nn.Module:
        """Sets ``qconfig`` on every module of ``model``, in place."""
        for name, module in model.named_modules():
            qconfig = self.object_type_qconfigs.get(type(module), self.global_qconfig)
            for pattern, value in self.module_name_regex_qconfigs.items():
                if re.match(pattern, name):
                    qconfig = value
                    break
            parts = name.split(".") if name else []
            for depth in range(1, len(parts) + 1):
                prefix = ".".join(parts[:depth])
                if prefix in self.module_name_qconfigs:
                    qconfig = self.module_name_qconfigs[prefix]
            module.qconfig = qconfig
        return model

    def to_dict(self) -> dict[str, Any]:
        return {
            _GLOBAL: self.global_qconfig,
            _TYPE: list(self.object_type_qconfigs.items()),
            _REGEX: list(self.module_name_regex_qconfigs.items()),
            _NAME: list(self.module_name_qconfigs.items()),
            _ORDER: [(*k, v) for k, v in self.module_name_object_type_order_qconfigs.items()],
        }

    @classmethod
    def from_dict(cls, qconfig_dict: dict[str, Any]) -> QConfigMapping:
        """From :meth:`to_dict`'s form.

        Raises:
            QuantizationError: an unknown key.
        """
        unknown = set(qconfig_dict) - {_GLOBAL, _TYPE, _REGEX, _NAME, _ORDER}
        if unknown:
            raise QuantizationError(f"QConfigMapping.from_dict: unknown keys {sorted(unknown)}")
        result = cls()
        if _GLOBAL in qconfig_dict:
            result.set_global(qconfig_dict[_GLOBAL])
        for key, value in qconfig_dict.get(_TYPE, []):
            result.set_object_type(key, value)
        for key, value in qconfig_dict.get(_REGEX, []):
            result.set_module_name_regex(key, value)
        for key, value in qconfig_dict.get(_NAME, []):
            result.set_module_name(key, value)
        for name, kind, index, value in qconfig_dict.get(_ORDER, []):
            result.set_module_name_object_type_order(name, kind, index, value)
        return result

    def __repr__(self) -> str:
        lines = [f" {name}\n  {value}" for name, value in self.__dict__.items()]
        return f"{type(self).__name__} (\n" + "\n".join(lines) + "\n)"


def get_default_qconfig_mapping(backend: str = "x86", version: int = 0) -> QConfigMapping:
    """Post-training: :func:`get_default_qconfig` everywhere."""
    return QConfigMapping().set_global(get_default_qconfig(backend, version))


def get_default_qat_qconfig_mapping(backend: str = "x86", version: int = 1) -> QConfigMapping:
    """Quantization-aware training: :func:`get_default_qat_qconfig` everywhere."""
    return QConfigMapping().set_global(get_default_qat_qconfig(backend, version))
