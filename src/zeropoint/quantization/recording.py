"""What ``prepare`` hangs on a model, besides observers, so that nothing of it is lost in ``convert``.

* Modules that will be swapped get ordinary tensors; what comes in as float, because no observer stands
  before it, is observed (``input_observer``), so that the quantized module can quantize it by itself.
* All other modules get a frame: torch functions that their ``forward`` calls on tensors of the quantized
  part (:class:`~zeropoint.tensor.ObservedTensor`) are observed by call site.
* Modules without a qconfig get a frame too, so that their functions are seen to run in float.
"""

from __future__ import annotations

from typing import Any

import torch
from torch import nn

from zeropoint.nn import quantized as nnq
from zeropoint.nn.quantized.modules.call_site import CallSite, CallSites
from zeropoint.nn.quantized.modules.weighted import FloatInput, observer_qparams
from zeropoint.quantization.fake_quantize import FakeQuantizeBase
from zeropoint.quantization.observer import (
    FixedQParamsObserver,
    UniformQuantizationObserverBase,
    is_activation_post_process,
    sync_observers,
)
from zeropoint.quantization.stubs import DeQuantStub, QuantStub
from zeropoint.tensor import ObservedTensor, unmark
from zeropoint.tensor._callsite import SITES, enter, leave
from zeropoint.tensor._site_forms import has_integer_form

__all__ = [
    "CallSiteRecorder",
    "finish_call_sites",
    "follow_forwards",
    "has_integer_form",
    "is_recording_hook",
    "quantizes",
    "set_float_input",
]

INPUT_OBSERVER = "input_observer"

# Their forward calls nothing, or only what keeps qparams.
_TRANSPARENT = (
    nn.Sequential, nn.ModuleList, nn.ModuleDict, nn.Identity, nn.Dropout, nn.Dropout1d, nn.Dropout2d, nn.Dropout3d, nn.ReLU,
    nn.ReLU6, nn.Hardtanh, nn.MaxPool1d, nn.MaxPool2d, nn.MaxPool3d, nn.AvgPool1d, nn.AvgPool2d, nn.AvgPool3d,
    nn.AdaptiveAvgPool1d, nn.AdaptiveAvgPool2d, nn.AdaptiveAvgPool3d, nn.Flatten, nn.Unflatten, nn.PixelShuffle,
    nn.PixelUnshuffle, nn.ChannelShuffle, nnq.FloatFunctional,
)  # fmt: skip


def quantizes(observer: Any) -> bool:
    """Whether an ``activation_post_process`` leads to a quantized tensor: not so placeholders and recorders."""
    if isinstance(observer, FakeQuantizeBase):
        return not getattr(observer, "is_dynamic", False)
    return isinstance(observer, (UniformQuantizationObserverBase, FixedQParamsObserver)) and not observer.is_dynamic


def _new_observer(module: Any, device: torch.device) -> nn.Module:
    """An activation observer by the module's qconfig, synchronized as its others are (sync_observers)."""
    observer: nn.Module = module.qconfig.activation().to(device)
    group = getattr(module, "_group", None)
    return observer if group is None else sync_observers(observer, group)


class CallSiteRecorder(nn.ModuleDict):
    """The observers of one module's call sites, made as the calls come."""

    def __init__(self, qconfig: Any, group: Any = None) -> None:
        super().__init__()
        self.qconfig, self._group = qconfig, group

    def observer(self, key: str, device: torch.device) -> nn.Module:
        if key not in self:
            self[key] = _new_observer(self, device)
        return self[key]

    def ensure(self, state_dict: dict[str, Any], prefix: str) -> None:
        """Makes the observers that a state_dict has."""
        for key in state_dict:
            if key.startswith(prefix):
                self.observer(key[len(prefix) :].partition(".")[0], state_dict[key].device)


def _record(module: nn.Module, key: str, value: torch.Tensor) -> tuple[torch.Tensor, nn.Module]:
    recorder: Any = module._modules.get(SITES)
    if recorder is None:
        recorder = CallSiteRecorder(module.qconfig, getattr(module, "_group", None))
        module.add_module(SITES, recorder)
    observer = recorder.observer(key, value.device)
    return observer(value), observer


def _enter_recording(module: nn.Module, args: Any) -> None:
    enter(module, args, _record)


def _take_ordinary(module: nn.Module, args: Any, kwargs: Any) -> Any:
    """Pre-hook of modules to be swapped: ordinary tensors in, float inputs observed."""
    first = next((a for a in (*args, *kwargs.values()) if isinstance(a, torch.Tensor)), None)
    if (
        first is not None
        and not isinstance(first, ObservedTensor)
        and first.is_floating_point()
        and not isinstance(module, (QuantStub, DeQuantStub))
        and not torch.compiler.is_compiling()
        and quantizes(getattr(module, "activation_post_process", None))
    ):
        observer = module._modules.get(INPUT_OBSERVER)
        if observer is None:
            observer = _new_observer(module, first.device)
            module.add_module(INPUT_OBSERVER, observer)
        observed = observer(first)
        args = tuple(observed if a is first else a for a in args)
        kwargs = {k: observed if a is first else a for k, a in kwargs.items()}
    return unmark(args), unmark(kwargs)


def _make_sites(module: nn.Module, state_dict: dict[str, Any], prefix: str, *rest: Any) -> None:
    """Load pre-hook: call sites and float inputs come with the state_dict, whatever was recorded here."""
    sites: Any = module._modules.get(SITES)
    own = prefix + SITES + "."
    if sites is None and any(key.startswith(own) for key in state_dict):
        converted = getattr(module, "qconfig", None) is None
        sites = CallSites() if converted else CallSiteRecorder(module.qconfig)
        module.add_module(SITES, sites)
    if sites is not None:
        sites.ensure(state_dict, own)
    if (
        any(key.startswith(prefix + INPUT_OBSERVER + ".") for key in state_dict)
        and INPUT_OBSERVER not in module._modules
    ):
        module.add_module(INPUT_OBSERVER, module.qconfig.activation())  # type: ignore[union-attr, operator]


_HOOKS = (enter, leave, _enter_recording, _take_ordinary)


def is_recording_hook(hook: Any) -> bool:
    return hook in _HOOKS


def _has(hooks: Any, hook: Any) -> bool:
    return any(h is hook for h in hooks.values())


def follow_forwards(model: nn.Module) -> None:
    """Hangs the hooks on a model that has its observers."""
    owned: set[nn.Module] = set()
    for module in model.modules():
        if module in owned or is_activation_post_process(module) or isinstance(module, CallSiteRecorder):
            owned.update(module.modules())
            continue
        observer = module._modules.get("activation_post_process")
        if isinstance(module, nnq.FloatFunctional):
            owned.update(module.modules())
        elif observer is not None or isinstance(module, (QuantStub, DeQuantStub)):
            owned.update(module.modules())
            if not _has(module._forward_pre_hooks, _take_ordinary):
                module.register_forward_pre_hook(_take_ordinary, prepend=True, with_kwargs=True)
                module.register_load_state_dict_pre_hook(_make_sites)
        elif type(module) not in _TRANSPARENT and not (
            _has(module._forward_pre_hooks, _enter_recording) or _has(module._forward_pre_hooks, enter)
        ):
            qconfig: Any = getattr(module, "qconfig", None)
            records = qconfig is not None and quantizes(qconfig.activation())
            module.register_forward_pre_hook(_enter_recording if records else enter, prepend=True)
            module.register_forward_hook(leave, always_call=True)
            module.register_load_state_dict_pre_hook(_make_sites)


def set_float_input(mod: nn.Module, new: nn.Module) -> None:
    """Gives a swapped module the qparams of the float input that its predecessor saw, if any."""
    observer: Any = mod._modules.get(INPUT_OBSERVER)
    if observer is not None and isinstance(new, FloatInput):
        scale, zero_point, dtype, calibrated = observer_qparams(observer)
        if calibrated:
            new.set_input(scale, zero_point, dtype)


def finish_call_sites(model: nn.Module, keep_frames: bool) -> None:
    """Turns recorded call sites into their qparams.

    Frames stay where any module has call sites, or if ``keep_frames``: a state_dict may bring some later.
    """
    recorders = [m for m in model.modules() if isinstance(m._modules.get(SITES), CallSiteRecorder)]
    for module in recorders:
        sites = CallSites()
        recorder: Any = module._modules[SITES]
        for key, observer in recorder.items():
            site = CallSite()
            site.set_output(*observer_qparams(observer))
            sites[key] = site
        setattr(module, SITES, sites)
    keep_frames = keep_frames or any(isinstance(m, CallSites) for m in model.modules())
    for module in model.modules():
        pre_hooks, hooks = module._forward_pre_hooks, module._forward_hooks
        for key, hook in list(pre_hooks.items()):
            if hook is _enter_recording and keep_frames:
                pre_hooks[key] = enter
            elif hook in (_take_ordinary, _enter_recording) or (hook is enter and not keep_frames):
                _drop(module, pre_hooks, key)
        for key, hook in list(hooks.items()):
            if hook is leave and not keep_frames:
                _drop(module, hooks, key)


def _drop(module: nn.Module, hooks: Any, key: int) -> None:
    hooks.pop(key)
    for flags in (
        module._forward_pre_hooks_with_kwargs,
        module._forward_hooks_with_kwargs,
        module._forward_hooks_always_called,
    ):
        flags.pop(key, None)
