"""Reads files that ``torch.save`` wrote with quantized tensors and packed parameters in them.

Needs none of torch's quantized dtypes, and runs no code of the file's choosing: a pickle may name only what
stands in the tables here; old quantized modules come out as :class:`OldModule`, packed parameters as
:class:`PackedObject`, quantized tensors as :class:`zeropoint.QTensor`.
"""

from __future__ import annotations

import pickle
import zipfile
from collections import OrderedDict
from pathlib import Path
from typing import Any

import torch
from torch import nn

from zeropoint.errors import QuantizationError
from zeropoint.tensor import QDtype, QScheme, QTensor, as_qdtype, as_qscheme, is_qdtype

__all__ = ["OldModule", "PackedObject", "read"]

_STORAGES: dict[str, torch.dtype] = {
    "DoubleStorage": torch.float64, "FloatStorage": torch.float32, "HalfStorage": torch.float16,
    "BFloat16Storage": torch.bfloat16, "LongStorage": torch.int64, "IntStorage": torch.int32, "ShortStorage": torch.int16,
    "CharStorage": torch.int8, "ByteStorage": torch.uint8, "BoolStorage": torch.bool, "QInt8Storage": torch.int8,
    "QUInt8Storage": torch.uint8, "QInt32Storage": torch.int32, "QUInt4x2Storage": torch.uint8,
}  # fmt: skip
_QDTYPES = {
    "QInt8Storage": "qint8",
    "QUInt8Storage": "quint8",
    "QInt32Storage": "qint32",
    "QUInt4x2Storage": "quint4x2",
}
# Modules of torch's quantization, wherever it kept them over the years.
_OLD_PACKAGES = (
    "torch.ao.", "torch.quantization", "torch.nn.quantized", "torch.nn.intrinsic", "torch.nn.qat", "torch.nn.quantizable",
)  # fmt: skip


class PackedObject:
    """A TorchBind object of the file: the name of its class and its state."""

    name = ""
    state: Any = None

    def __setstate__(self, state: Any) -> None:
        self.state, self.name = state

    def __repr__(self) -> str:
        return f"PackedObject({self.name})"


class OldModule:
    """A module of torch's quantization from the file: where its class was, and its state."""

    qualified_name = ""
    state: Any = None

    def __setstate__(self, state: Any) -> None:
        self.state = state

    @property
    def class_name(self) -> str:
        return self.qualified_name.rpartition(".")[2]

    def __repr__(self) -> str:
        return f"OldModule({self.qualified_name})"


class _Storage:
    __slots__ = ("data", "kind")

    def __init__(self, data: torch.Tensor, kind: str) -> None:
        self.data, self.kind = data, kind


class _StorageKind:
    __slots__ = ("name",)

    def __init__(self, name: str) -> None:
        self.name = name


def _strided(storage: Any, offset: Any, size: Any, stride: Any) -> torch.Tensor:
    if not isinstance(storage, _Storage):
        raise QuantizationError("checkpoint: a tensor without a storage")
    size, stride, offset = tuple(map(int, size)), tuple(map(int, stride)), int(offset)
    last = offset + sum((n - 1) * s for n, s in zip(size, stride, strict=True)) if all(size) else offset
    if (
        offset < 0
        or any(n < 0 for n in size)
        or any(s < 0 for s in stride)
        or (all(size) and last >= storage.data.numel())
    ):
        raise QuantizationError(f"checkpoint: a tensor of size {size} and stride {stride} lies outside its storage")
    return torch.as_strided(storage.data, size, stride, offset).clone()


def _rebuild_tensor(storage: Any, offset: Any, size: Any, stride: Any, *rest: Any) -> torch.Tensor:
    return _strided(storage, offset, size, stride)


def _rebuild_parameter(data: torch.Tensor, requires_grad: Any = False, *rest: Any) -> Any:
    return (
        data
        if isinstance(data, QTensor)
        else nn.Parameter(data, requires_grad=bool(requires_grad) and data.is_floating_point())
    )


def _rebuild_qtensor(storage: Any, offset: Any, size: Any, stride: Any, qparams: Any, *rest: Any) -> QTensor:
    scheme, qdtype = as_qscheme(qparams[0]), as_qdtype(_QDTYPES.get(storage.kind, storage.kind))
    if qdtype is QDtype.quint4x2:
        rows, columns = map(int, size)
        packed = storage.data[: rows * columns // 2 + rows * columns % 2]
        data = torch.stack([packed & 15, packed >> 4], 1).flatten()[: rows * columns].reshape(rows, columns)
    else:
        data = _strided(storage, offset, size, stride)
    if scheme in (QScheme.PER_TENSOR_AFFINE, QScheme.PER_TENSOR_SYMMETRIC):
        return QTensor(data, float(qparams[1]), int(qparams[2]), qdtype)
    scales, zero_points, axis = qparams[1].detach().float(), qparams[2].detach(), int(qparams[3])
    if not 0 <= axis < data.dim() or scales.numel() != data.shape[axis] or zero_points.numel() != data.shape[axis]:
        raise QuantizationError(f"checkpoint: qparams of axis {axis} do not fit a tensor of size {tuple(data.shape)}")
    # torch writes float zero points under per_channel_affine too: what they are stored as decides.
    if not zero_points.is_floating_point() or bool(
        (zero_points == zero_points.round()).all() and qdtype is QDtype.qint8
    ):
        zero_points = zero_points.to(torch.int32)
    return QTensor(data, scales, zero_points, qdtype, axis)


_FUNCTIONS: dict[str, Any] = {
    "torch._utils._rebuild_tensor_v2": _rebuild_tensor,
    "torch._utils._rebuild_parameter": _rebuild_parameter,
    "torch._utils._rebuild_qtensor": _rebuild_qtensor,
    "collections.OrderedDict": OrderedDict,
    "__builtin__.set": set,
    "builtins.set": set,
    "torch.Size": torch.Size,
    "torch.device": torch.device,
}


class _Unpickler(pickle.Unpickler):
    def __init__(self, file: Any, archive: zipfile.ZipFile, root: str, classes: dict[str, type]) -> None:
        super().__init__(file, encoding="utf-8")
        self._archive, self._root, self._classes = archive, root, classes
        self._storages: dict[str, _Storage] = {}
        self._modules: dict[str, type] = {}

    def find_class(self, module: str, name: str) -> Any:
        full = f"{module}.{name}"
        if full in self._classes:
            return self._classes[full]
        if full in _FUNCTIONS:
            return _FUNCTIONS[full]
        if module == "torch":
            if name in _STORAGES:
                return _StorageKind(name)
            if name == "ScriptObject":
                return PackedObject
            if is_qdtype(name):
                return as_qdtype(name)
            if name in QScheme._value2member_map_:
                return as_qscheme(name)
            if isinstance(getattr(torch, name, None), torch.dtype):
                return getattr(torch, name)
        if module.startswith(_OLD_PACKAGES):
            if full not in self._modules:
                self._modules[full] = type(name, (OldModule,), {"qualified_name": full})
            return self._modules[full]
        if module.startswith("torch.nn.modules."):
            found = getattr(nn, name, None)
            if isinstance(found, type) and issubclass(found, nn.Module) and found.__module__ == module:
                return found
        raise QuantizationError(
            f"checkpoint: the file names {full}, which is not loaded from files. If it is a class of yours, pass it: "
            f"classes={{'{full}': {name}}}"
        )

    def persistent_load(self, pid: Any) -> _Storage:
        if not (isinstance(pid, tuple) and len(pid) == 5 and pid[0] == "storage" and isinstance(pid[1], _StorageKind)):
            raise QuantizationError("checkpoint: an unknown kind of storage reference")
        _, kind, key, _, count = pid
        if key not in self._storages:
            dtype = _STORAGES[kind.name]
            raw = bytearray(self._archive.read(f"{self._root}/data/{key}"))
            if kind.name != "QUInt4x2Storage" and len(raw) < int(count) * dtype.itemsize:
                raise QuantizationError(
                    f"checkpoint: storage {key} has {len(raw)} bytes, {int(count)} values of {dtype} need more"
                )
            usable = len(raw) // dtype.itemsize * dtype.itemsize
            data = torch.frombuffer(raw[:usable], dtype=dtype) if usable else torch.empty(0, dtype=dtype)
            self._storages[key] = _Storage(data, kind.name)
        return self._storages[key]


def read(path: str | Path, classes: dict[str, type] | None = None) -> Any:
    """What a file of ``torch.save`` (zip format, torch 1.6 and later) holds.

    Args:
        classes: classes the file may name besides torch's own, by qualified name: those of the model's author.

    Raises:
        QuantizationError: not such a file, damaged, or it names something that is not loaded from files.
    """
    try:
        with zipfile.ZipFile(path) as archive:
            names = [n for n in archive.namelist() if n.endswith("/data.pkl")]
            if len(names) != 1 or any(n.endswith("/constants.pkl") for n in archive.namelist()):
                raise QuantizationError(
                    f"{path}: not a file of torch.save (a TorchScript archive has to be loaded by torch.jit)"
                )
            order = f"{names[0].rpartition('/')[0]}/byteorder"
            if order in archive.namelist() and archive.read(order) != b"little":
                raise QuantizationError(f"{path}: written on a big-endian machine")
            with archive.open(names[0]) as file:
                return _Unpickler(file, archive, names[0].rpartition("/")[0], classes or {}).load()
    except QuantizationError:
        raise
    except FileNotFoundError:
        raise QuantizationError(f"{path}: no such file") from None
    except Exception as error:  # a damaged file can fail anywhere in the pickle machine
        raise QuantizationError(
            f"{path}: cannot be read as a file of torch.save: {type(error).__name__}: {error}"
        ) from error
