"""The real network on real photographs, by the recipe that `make demo` runs."""

from __future__ import annotations

from pathlib import Path

import pytest
import torch

from zeropoint import backend
from zeropoint.analysis import agreement, coverage, sqnr
from zeropoint.quantization.one_call import fuse_and_convert
from zeropoint.recipe import load_quantized, read_recipe, save_quantized

RECIPE = Path(__file__).parents[2] / "examples" / "mobilenet_v2" / "recipe.py"


@pytest.fixture(scope="module")
def result(tmp_path_factory):
    recipe = read_recipe(RECIPE)
    original, _ = recipe.float_model()
    model, example = recipe.float_model()
    model, fused = fuse_and_convert(model, example, lambda m: [m(*a) for a in recipe.calibration_inputs()])
    path = tmp_path_factory.mktemp("mobilenet") / "model.safetensors"
    save_quantized(model, fused, path)
    return recipe, original, model, path


def logits(model, recipe):
    with torch.inference_mode():
        return torch.cat([model(*a) for a in recipe.evaluation_inputs()])


def test_close_to_float(result):
    recipe, original, model, path = result
    reference, outputs = logits(original, recipe), logits(model, recipe)
    assert sqnr(reference, outputs) > 12.0
    assert agreement(reference, outputs) >= 0.80  # 20 photographs: one is 0.05
    assert recipe.evaluate(model)["top-1"] >= 0.85
    float_bytes = sum(t.numel() * t.element_size() for t in original.state_dict().values())
    assert path.stat().st_size < 0.27 * float_bytes
    assert all(layer.kind == "int8" for layer in coverage(model))
    assert backend.fallbacks() == {}


def test_same_bits_from_the_file_and_on_every_instruction_set(result):
    recipe, _, model, path = result
    (x,) = next(recipe.evaluation_inputs())
    loaded = load_quantized(recipe, path)
    with torch.inference_mode():
        expected = model(x)
        assert torch.equal(loaded(x), expected)
        for isa in backend.available_isas():
            with backend.use_isa(isa):
                assert torch.equal(model(x), expected)
