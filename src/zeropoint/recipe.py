"""Recipes: Python files that say how to load, calibrate and score a model, and what is made of them.

A recipe defines

* ``load()``: the float model in eval mode and a tuple of example inputs;
* ``calibration()``: an iterable of inputs (a tensor, or a tuple of arguments);
* optionally ``evaluation()``: inputs to compare float and int8 on (by default the calibration's);
* optionally ``evaluate(model)``: a dict of metrics.

The model carries ``QuantStub``/``DeQuantStub`` where quantized computation begins and ends; a model
without any is wrapped as a whole.
"""

from __future__ import annotations

import importlib.util
import json
import sys
import warnings
from collections.abc import Callable, Iterable, Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from safetensors import SafetensorError, safe_open
from safetensors.torch import save_file
from torch import nn

from zeropoint.errors import QuantizationError
from zeropoint.quantization import QuantStub, QuantWrapper, convert, fuse_modules, get_default_qconfig, prepare
from zeropoint.quantization.one_call import as_arguments

__all__ = ["Recipe", "load_quantized", "read_recipe", "save_quantized"]

_FORMAT = "zeropoint.eager"
_VERSION = 1


@dataclass
class Recipe:
    """A recipe's functions, checked."""

    path: Path
    load: Callable[[], tuple[nn.Module, Any]]
    calibration: Callable[[], Iterable[Any]]
    evaluation: Callable[[], Iterable[Any]]
    evaluate: Callable[[Any], dict[str, float]] | None

    def plain_model(self) -> tuple[nn.Module, tuple[Any, ...]]:
        """The model in eval mode as the recipe has it, and example arguments."""
        loaded = self.load()
        if not (isinstance(loaded, tuple) and len(loaded) == 2 and isinstance(loaded[0], nn.Module)):
            raise QuantizationError(f"{self.path}: load() must return (nn.Module, example inputs)")
        model, example = loaded
        return model.eval(), as_arguments(example)

    def float_model(self) -> tuple[nn.Module, tuple[Any, ...]]:
        """The model, wrapped if it has no stubs, and example arguments."""
        model, example = self.plain_model()
        if not any(isinstance(m, QuantStub) for m in model.modules()):
            model = QuantWrapper(model)
        return model.eval(), example

    def calibration_inputs(self) -> Iterator[tuple[Any, ...]]:
        return (as_arguments(i) for i in self.calibration())

    def evaluation_inputs(self) -> Iterator[tuple[Any, ...]]:
        return (as_arguments(i) for i in self.evaluation())


def read_recipe(path: str | Path) -> Recipe:
    """Imports a recipe file; its folder can be imported from.

    Raises:
        QuantizationError: no such file, or ``load`` or ``calibration`` is missing.
    """
    path = Path(path).resolve()
    if not path.is_file():
        raise QuantizationError(f"recipe: no such file: {path}")
    spec = importlib.util.spec_from_file_location(f"zeropoint_recipe_{path.parent.name}_{path.stem}", path)
    assert spec is not None
    assert spec.loader is not None
    module = importlib.util.module_from_spec(spec)
    before = set(sys.modules)
    sys.path.insert(0, str(path.parent))
    try:
        spec.loader.exec_module(module)
    finally:
        sys.path.remove(str(path.parent))
        # Modules beside the recipe are the recipe's own: another recipe may have a model.py too.
        for name, loaded in list(sys.modules.items()):
            file = getattr(loaded, "__file__", None)
            if name not in before and file and Path(file).parent == path.parent:
                del sys.modules[name]
    missing = [name for name in ("load", "calibration") if not callable(getattr(module, name, None))]
    if missing:
        raise QuantizationError(f"{path}: a recipe must define {' and '.join(name + '()' for name in missing)}")
    return Recipe(
        path,
        module.load,
        module.calibration,
        getattr(module, "evaluation", module.calibration),
        getattr(module, "evaluate", None),
    )


def save_quantized(model: nn.Module, fused: list[list[str]], path: str | Path) -> None:
    """Writes a converted model's state as safetensors; the metadata tells how to build the structure."""
    state = {name: value.contiguous() for name, value in model.state_dict().items()}
    metadata = {"format": _FORMAT, "version": str(_VERSION), "fused": json.dumps(fused)}
    save_file(state, str(path), metadata)


def load_quantized(recipe: Recipe | str | Path, path: str | Path) -> nn.Module:
    """The quantized model of a recipe from a file of :func:`save_quantized`, without calibration.

    Raises:
        QuantizationError: the file is not such a file, damaged, or belongs to another model.
    """
    recipe = recipe if isinstance(recipe, Recipe) else read_recipe(recipe)
    try:
        with safe_open(str(path), framework="pt") as file:
            metadata = file.metadata() or {}
            state = {name: file.get_tensor(name) for name in file.keys()}  # noqa: SIM118
    except (SafetensorError, OSError) as error:
        raise QuantizationError(f"{path}: cannot be read as a quantized model: {error}") from error
    if metadata.get("format") != _FORMAT or metadata.get("version") != str(_VERSION):
        raise QuantizationError(
            f"{path}: not a model of format {_FORMAT} version {_VERSION}, but {metadata.get('format')} {metadata.get('version')}"
        )
    model, _ = recipe.float_model()
    try:
        fused = json.loads(metadata.get("fused", "[]"))
    except json.JSONDecodeError as error:
        raise QuantizationError(f"{path}: damaged metadata: {error}") from error
    if fused:
        fuse_modules(model, fused, inplace=True)
    model.qconfig = get_default_qconfig()  # type: ignore[assignment]
    prepare(model, inplace=True)
    with warnings.catch_warnings():
        warnings.filterwarnings("ignore", message="convert: these modules were never calibrated")
        convert(model, inplace=True)
    try:
        model.load_state_dict(state)
    except RuntimeError as error:
        raise QuantizationError(f"{path}: does not fit the model of {recipe.path}: {error}") from error
    return model
