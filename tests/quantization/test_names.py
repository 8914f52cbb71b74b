"""The names of torch 1.3's quantization documents, from where torch had them."""

from __future__ import annotations

import importlib
import inspect
import json
from pathlib import Path

import pytest

NAMES = {
    "quantization": """
        quantize prepare convert default_eval_fn QuantStub DeQuantStub QuantWrapper add_quant_dequant fuse_modules
        propagate_qconfig propagate_qconfig_ propagate_qconfig_helper add_observer add_observer_ _observer_forward_hook
        swap_module get_observer_dict Observer ObserverBase MinMaxObserver MovingAverageMinMaxObserver
        PerChannelMinMaxObserver MovingAveragePerChannelMinMaxObserver HistogramObserver RecordingObserver
        PlaceholderObserver NoopObserver FixedQParamsObserver default_observer default_weight_observer
        default_debug_observer default_histogram_observer default_per_channel_weight_observer
        default_placeholder_observer QConfig QConfigDynamic default_qconfig default_debug_qconfig
        default_per_channel_qconfig default_qat_qconfig get_default_qconfig get_default_qat_qconfig FakeQuantize
        default_fake_quant default_weight_fake_quant default_per_channel_weight_fake_quant disable_fake_quant
        enable_fake_quant disable_observer enable_observer fuse_conv_bn fuse_conv_bn_relu _fuse_modules
        fuse_known_modules DEFAULT_MODULE_MAPPING get_default_static_quant_module_mappings
    """,
    "quantization.observer": "MinMaxObserver ObserverBase default_observer _PartialWrapper get_observer_state_dict",
    "quantization.fake_quantize": "FakeQuantize FakeQuantizeBase default_fake_quant",
    "quantization.qconfig": "QConfig default_qconfig get_default_qconfig qconfig_equals",
    "quantization.quantize": "prepare convert swap_module propagate_qconfig_",
    "quantization.stubs": "QuantStub DeQuantStub QuantWrapper",
    "quantization.fuse_modules": "fuse_modules fuse_known_modules",
    "nn.quantized": """
        Quantize DeQuantize Conv2d Linear ReLU ReLU6 MaxPool2d FloatFunctional QFunctional ELU Hardswish LeakyReLU Sigmoid
    """,
    "nn.quantized.functional": """
        relu linear conv2d max_pool2d avg_pool2d adaptive_avg_pool2d interpolate upsample upsample_nearest
        upsample_bilinear clamp hardtanh hardswish elu celu leaky_relu threshold add add_relu mul
    """,
    "nn.intrinsic": "ConvBn2d ConvBnReLU2d ConvReLU2d LinearReLU BNReLU2d ConvBn1d ConvReLU1d ConvReLU3d LinearBn1d",
    "nn.intrinsic.quantized": "ConvReLU2d LinearReLU",
    "": """
        quantize_per_tensor quantize_per_channel dequantize fake_quantize_per_tensor_affine
        fake_quantize_per_channel_affine quint8 qint8 qint32 per_tensor_affine per_tensor_symmetric per_channel_affine
        per_channel_symmetric choose_qparams QTensor backend
    """,
}


@pytest.mark.parametrize(("module", "name"), [(m, n) for m, names in NAMES.items() for n in names.split()])
def test_importable(module, name):
    assert hasattr(importlib.import_module("zeropoint." + module if module else "zeropoint"), name)


# Every public name of torch.ao's eager packages in torch 2.13; TorchScript mode's functions are left out.
TORCH_NAMES = json.loads(Path(__file__).with_name("torch_names.json").read_text())


@pytest.mark.parametrize("module", TORCH_NAMES)
def test_every_name_of_torch_is_there(module):
    mine = importlib.import_module(f"zeropoint.{module}")
    assert [name for name in TORCH_NAMES[module] if not hasattr(mine, name)] == []


# Arguments that torch has and that mean nothing here, or have another form.
_OTHER_SIGNATURES = {("nn.quantized.dynamic", "Conv1d"): "reduce_range is an argument of forward"}


@pytest.mark.filterwarnings("ignore")
@pytest.mark.parametrize("module", [m for m in TORCH_NAMES if m != "nn.quantized.reference"])
def test_arguments_are_torchs_in_order(module):
    theirs = pytest.importorskip(f"torch.ao.{module}")
    mine = importlib.import_module(f"zeropoint.{module}")
    different = {}
    for name in TORCH_NAMES[module]:
        try:
            expected = list(inspect.signature(getattr(theirs, name)).parameters)
            actual = list(inspect.signature(getattr(mine, name)).parameters)
        except (TypeError, ValueError, AttributeError):
            continue
        if "args" in expected or (module, name) in _OTHER_SIGNATURES:
            continue
        if actual[: len(expected)] != expected:
            different[name] = (expected, actual)
    assert different == {}


SIGNATURES = {
    ("quantization", "prepare"): [
        "model",
        "inplace",
        "allow_list",
        "observer_non_leaf_module_list",
        "prepare_custom_config_dict",
    ],
    ("quantization", "convert"): [
        "module",
        "mapping",
        "inplace",
        "remove_qconfig",
        "is_reference",
        "convert_custom_config_dict",
        "use_precomputed_fake_quant",
    ],
    ("quantization", "quantize"): ["model", "run_fn", "run_args", "mapping", "inplace"],
    ("quantization", "fuse_modules"): ["model", "modules_to_fuse", "inplace", "fuser_func", "fuse_custom_config_dict"],
    ("quantization", "swap_module"): ["mod", "mapping", "custom_module_class_mapping", "use_precomputed_fake_quant"],
    ("quantization", "MinMaxObserver"): [
        "dtype",
        "qscheme",
        "reduce_range",
        "quant_min",
        "quant_max",
        "factory_kwargs",
        "eps",
        "is_dynamic",
        "kwargs",
    ],
    ("quantization", "HistogramObserver"): [
        "bins",
        "dtype",
        "qscheme",
        "reduce_range",
        "quant_min",
        "quant_max",
        "factory_kwargs",
        "eps",
        "is_dynamic",
        "kwargs",
    ],
    ("quantization", "PerChannelMinMaxObserver"): [
        "ch_axis",
        "dtype",
        "qscheme",
        "reduce_range",
        "quant_min",
        "quant_max",
        "factory_kwargs",
        "eps",
        "is_dynamic",
        "kwargs",
    ],
    ("quantization", "FakeQuantize"): ["observer", "quant_min", "quant_max", "is_dynamic", "observer_kwargs"],
    ("quantization", "get_default_qconfig"): ["backend", "version"],
    ("nn.quantized", "Linear"): ["in_features", "out_features", "bias_", "dtype"],
    ("nn.quantized", "Conv2d"): [
        "in_channels",
        "out_channels",
        "kernel_size",
        "stride",
        "padding",
        "dilation",
        "groups",
        "bias",
        "padding_mode",
        "device",
        "dtype",
    ],
    ("nn.quantized", "Quantize"): ["scale", "zero_point", "dtype", "factory_kwargs"],
    ("nn.quantized.functional", "linear"): ["input", "weight", "bias", "scale", "zero_point"],
    ("nn.quantized.functional", "conv2d"): [
        "input",
        "weight",
        "bias",
        "stride",
        "padding",
        "dilation",
        "groups",
        "padding_mode",
        "scale",
        "zero_point",
        "dtype",
    ],
}


@pytest.mark.parametrize(("module", "name"), SIGNATURES)
def test_signature(module, name):
    """Torch's arguments, in torch's order; further ones may follow."""
    parameters = list(inspect.signature(getattr(importlib.import_module("zeropoint." + module), name)).parameters)
    expected = SIGNATURES[module, name]
    assert parameters[: len(expected)] == expected
