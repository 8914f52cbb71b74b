"""fuse_modules, and finding by itself what can be fused."""

from __future__ import annotations

import copy
from collections.abc import Callable
from typing import Any

import torch
from torch import nn
from torch.overrides import TorchFunctionMode
from torch.utils._pytree import tree_leaves

from zeropoint.errors import QuantizationError
from zeropoint.quantization.fuser_method_mappings import _FUSERS, fuse_conv_bn, fuse_conv_bn_relu, get_fuser_method

__all__ = [
    "_fuse_modules",
    "find_fusable_modules",
    "fuse_conv_bn",
    "fuse_conv_bn_relu",
    "fuse_known_modules",
    "fuse_modules",
    "fuse_modules_qat",
    "get_fuser_method",
]


def fuse_known_modules(
    mod_list: list[nn.Module], is_qat: bool, additional_fuser_method_mapping: dict[Any, Any] | None = None
) -> list[nn.Module]:
    """The fused module, followed by an Identity for each further one.

    Forward pre-hooks of the first and forward hooks of the last move to the fused module.
    """
    fuse = get_fuser_method([type(m) for m in mod_list], additional_fuser_method_mapping)
    # Taken off first: folding copies modules, hooks and all.
    pre_hooks, hooks = list(mod_list[0]._forward_pre_hooks.values()), list(mod_list[-1]._forward_hooks.values())
    mod_list[0]._forward_pre_hooks.clear()
    mod_list[-1]._forward_hooks.clear()
    fused = fuse(is_qat, *mod_list)
    for pre_hook in pre_hooks:
        fused.register_forward_pre_hook(pre_hook)
    for hook in hooks:
        fused.register_forward_hook(hook)
    identities: list[nn.Module] = [nn.Identity() for _ in mod_list[1:]]
    for identity in identities:
        identity.training = mod_list[0].training
    return [fused, *identities]


def _get_module(model: nn.Module, name: str) -> nn.Module:
    try:
        return model.get_submodule(name)
    except AttributeError:
        raise QuantizationError(f"fuse_modules: the model has no submodule {name!r}") from None


def _set_module(model: nn.Module, name: str, module: nn.Module) -> None:
    parent, _, child = name.rpartition(".")
    setattr(model.get_submodule(parent), child, module)


def _fuse_modules(
    model: nn.Module,
    modules_to_fuse: Any,
    is_qat: bool,
    inplace: bool = False,
    fuser_func: Callable[..., Any] = fuse_known_modules,
    fuse_custom_config_dict: dict[str, Any] | None = None,
) -> nn.Module:
    if not inplace:
        model = copy.deepcopy(model)
    groups = [modules_to_fuse] if modules_to_fuse and isinstance(modules_to_fuse[0], str) else modules_to_fuse
    additional = (fuse_custom_config_dict or {}).get("additional_fuser_method_mapping", {})
    for names in groups:
        modules = [_get_module(model, name) for name in names]
        for name, module in zip(names, fuser_func(modules, is_qat, additional), strict=True):
            _set_module(model, name, module)
    return model


def fuse_modules(
    model: nn.Module,
    modules_to_fuse: Any,
    inplace: bool = False,
    fuser_func: Callable[..., Any] = fuse_known_modules,
    fuse_custom_config_dict: dict[str, Any] | None = None,
) -> nn.Module:
    """Fuses modules of a model: conv-bn, conv-bn-relu, conv-relu, linear-relu, linear-bn, bn-relu.

    Args:
        modules_to_fuse: names of modules to fuse, or a list of such lists.
        inplace: change the model itself rather than a copy.
        fuser_func: takes a list of modules and gives as many, the first the fused one.

    Modules in train mode are left with their batch norm for training, as in torch; in eval mode it is
    folded into the weights.

    Raises:
        QuantizationError: an unknown name or a sequence that does not fuse.
    """
    return _fuse_modules(model, modules_to_fuse, False, inplace, fuser_func, fuse_custom_config_dict)


def fuse_modules_qat(
    model: nn.Module,
    modules_to_fuse: Any,
    inplace: bool = False,
    fuser_func: Callable[..., Any] = fuse_known_modules,
    fuse_custom_config_dict: dict[str, Any] | None = None,
) -> nn.Module:
    """:func:`fuse_modules` for quantization-aware training: batch norms stay, inside the fused modules."""
    return _fuse_modules(model, modules_to_fuse, True, inplace, fuser_func, fuse_custom_config_dict)


class _CountUses(TorchFunctionMode):
    """Counts how many torch functions compute a tensor from each tensor."""

    def __init__(self) -> None:
        super().__init__()
        self.uses: dict[int, int] = {}

    def __torch_function__(
        self, func: Any, types: Any, args: tuple[Any, ...] = (), kwargs: dict[str, Any] | None = None
    ) -> Any:
        result = func(*args, **(kwargs or {}))
        if any(isinstance(r, torch.Tensor) for r in tree_leaves(result)):  # not a question like dim()
            for value in tree_leaves((args, kwargs)):
                if isinstance(value, torch.Tensor):
                    self.uses[id(value)] = self.uses.get(id(value), 0) + 1
        return result


def find_fusable_modules(model: nn.Module, example_inputs: Any) -> list[list[str]]:
    """Finds what ``fuse_modules`` can fuse, by running the model once and following its tensors.

    A chain is fused only if each inner tensor goes to the next module and nowhere else, and each module
    is called once. The model is unchanged; it runs in eval mode and without gradients.

    Args:
        example_inputs: a tuple of arguments for the model, or one tensor.

    Returns:
        Lists of module names for ``fuse_modules``, in order of execution.
    """
    names = {module: name for name, module in model.named_modules()}
    calls: list[tuple[nn.Module, int, int]] = []
    keep: list[torch.Tensor] = []  # so that no id is reused
    counter = _CountUses()

    def record(module: nn.Module, inputs: tuple[Any, ...], output: Any) -> None:
        if len(inputs) == 1 and isinstance(inputs[0], torch.Tensor) and isinstance(output, torch.Tensor):
            calls.append((module, id(inputs[0]), id(output)))
            keep.extend((inputs[0], output))
        else:
            calls.append((module, 0, 0))

    leaves = [m for m in model.modules() if not any(m.children())]
    hooks = [m.register_forward_hook(record) for m in leaves]
    training = {m: m.training for m in model.modules()}
    inputs = example_inputs if isinstance(example_inputs, tuple) else (example_inputs,)
    try:
        model.eval()
        with torch.no_grad(), counter:
            model(*inputs)
    finally:
        for hook in hooks:
            hook.remove()
        for module, mode in training.items():
            module.training = mode
    called = [module for module, _, _ in calls]
    consumer: dict[int, tuple[nn.Module, int]] = {}
    for module, source, output in calls:
        if source:  # the first taker; after a module that changes in place its tensor goes on
            consumer.setdefault(source, (module, output))
    # Modules that change in place give back the tensor they took: its uses cannot be told apart.
    in_place = {module for module, source, output in calls if source and source == output}

    found: list[list[str]] = []
    taken: set[nn.Module] = set()
    for module, _, output in calls:
        if module in taken:
            continue
        chain, tensor = [module], output
        while tensor in consumer and counter.uses.get(tensor, 0) <= 1 + (consumer[tensor][0] in in_place):
            following, next_tensor = consumer[tensor]
            if following in chain:
                break
            chain.append(following)
            tensor = next_tensor
        for length in (3, 2):
            part = chain[:length]
            if (
                len(part) == length
                and tuple(type(m) for m in part) in _FUSERS
                and all(called.count(m) == 1 for m in part)
            ):
                found.append([names[m] for m in part])
                taken.update(part)
                break
    return found
