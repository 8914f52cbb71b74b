"""zeropoint.quantize: a model becomes a program whose results are those of its operators, one by one."""

import copy
import importlib.util
import pickle
import threading
import warnings
from pathlib import Path

import pytest
import torch
from torch import nn
from torch.nn import functional as F
from torch.utils._pytree import tree_leaves

import zeropoint as zp
from zeropoint import QuantizationError, UncalibratedError
from zeropoint.analysis import sqnr
from zeropoint.engine import ProgramModule
from zeropoint.graph import CaptureError, prepare_program
from zeropoint.quantization import QConfigMapping, convert, fuse_modules, get_default_qconfig, prepare, quantize_dynamic

_spec = importlib.util.spec_from_file_location("graph_networks", Path(__file__).with_name("networks.py"))
networks = importlib.util.module_from_spec(_spec)
_spec.loader.exec_module(networks)
NETWORKS = [networks.Residual, networks.Dense, networks.Encoder]
build, call = networks.build, networks.call


def same(a, b):
    a, b = tree_leaves(a), tree_leaves(b)
    return len(a) == len(b) and all(torch.equal(x, y) for x, y in zip(a, b, strict=True))


def quantized(network, **options):
    model = build(network)
    return model, zp.quantize(model, [network.batch() for _ in range(6)], **options)


@pytest.mark.parametrize("network", NETWORKS)
def test_static(network):
    model, program = quantized(network)
    assert isinstance(program, ProgramModule)
    assert program.engine == "native"
    for n in (4, 1, 5, 4):  # other batches than the captured one, and back
        batch = network.batch(n)
        expected, got = call(model, batch), call(program, batch)
        for e, g in zip(tree_leaves(expected), tree_leaves(got), strict=True):
            assert g.shape == e.shape
            assert sqnr(e, g) > 22
        assert same(got, program.program.interpret(tree_leaves(batch)))
        assert same(got, call(program, batch))
        other = network.batch(n)  # the first run of a shape makes its plan, the next one follows it
        assert same(call(program, other), program.program.interpret(tree_leaves(other)))


def test_structure_of_results_and_arguments():
    _, program = quantized(networks.Residual)
    assert set(program(networks.Residual.batch())) == {"logits", "features"}
    with pytest.raises(QuantizationError, match="captured with arguments"):
        program(torch.zeros(1, 3, 24, 24), torch.zeros(1))
    with pytest.raises(QuantizationError, match="input 0 must be a tensor, got str"):
        program("image")


def test_everything_that_can_is_int8():
    _, program = quantized(networks.Residual)
    assert [c for c in program.program.coverage if c[2] != "int8"] == []
    operators = [i.operator for i in program.program.body]
    # Batch norms and activations are part of the convolutions; a ReLU6 of a sum that is also a result is not.
    assert operators.count("zeropoint::conv2d") == 4
    assert operators.count("zeropoint::lookup") == 1
    assert "int8; engine: native" in program.report()


def test_what_stays_float_is_listed():
    _, program = quantized(networks.Encoder)
    reasons = {operator: why for _, operator, why in program.program.coverage if why != "int8"}
    assert reasons["aten.layer_norm.default"] == "no int8 form"
    assert "aten.linear.default" not in reasons
    assert "float: " in program.report()


@pytest.mark.parametrize("isa", zp.backend.available_isas())
@pytest.mark.parametrize("threads", [1, 2])
def test_same_bits_everywhere(isa, threads):
    _, program = quantized(networks.Residual)
    batch = networks.Residual.batch()
    expected = program(batch)
    before = torch.get_num_threads()
    try:
        torch.set_num_threads(threads)
        with zp.backend.use_isa(isa):
            assert same(program(batch), expected)
            halves = [program(part) for part in batch.split(2)]
            assert same({k: torch.cat([h[k] for h in halves]) for k in expected}, expected)
    finally:
        torch.set_num_threads(before)
    assert same(program(batch), expected)


@pytest.mark.parametrize("network", [*NETWORKS, networks.Recurrent])
def test_dynamic(network):
    model = build(network)
    program = zp.quantize(model, dynamic=True, example=network.batch())
    assert program.engine == "native"
    for n in (3, 1, 4):
        batch = network.batch(n)
        expected, got = call(model, batch), call(program, batch)
        for e, g in zip(tree_leaves(expected), tree_leaves(got), strict=True):
            assert sqnr(e, g) > 25
        assert same(got, program.program.interpret(tree_leaves(batch)))
        other = network.batch(n)  # the first run of a shape makes its plan, the next one follows it
        assert same(call(program, other), program.program.interpret(tree_leaves(other)))
    assert any(why == "int8" for *_, why in program.program.coverage)
    assert not any("sym_size" in operator for _, operator, _ in program.program.coverage)


def test_dynamic_without_example_is_modules():
    model = nn.Sequential(nn.Linear(256, 64), nn.ReLU(), nn.Linear(64, 8))
    assert zp.quantize(model, dynamic=True)[0].group_size == 128


def test_a_converted_model_compiled_has_the_same_bits():
    torch.manual_seed(0)
    model = nn.Sequential(
        zp.quantization.QuantStub(), nn.Conv2d(3, 8, 3), nn.BatchNorm2d(8), nn.ReLU(), nn.Conv2d(8, 8, 1), nn.Hardswish(),
        nn.AdaptiveAvgPool2d(1), nn.Flatten(), nn.Linear(8, 4), zp.quantization.DeQuantStub(),
    ).eval()  # fmt: skip
    fuse_modules(model, [["1", "2", "3"]], inplace=True)
    model.qconfig = get_default_qconfig()
    prepare(model, inplace=True)
    model(torch.randn(4, 3, 10, 10))
    convert(model, inplace=True)
    program = zp.compile(model, torch.randn(2, 3, 10, 10))
    assert program.engine == "native"
    for n in (1, 2, 5):
        x = torch.randn(n, 3, 10, 10)
        assert torch.equal(program(x), model(x))


def test_a_dynamic_model_compiled_has_the_same_bits():
    model = quantize_dynamic(nn.Sequential(nn.Linear(64, 32), nn.ReLU(), nn.Linear(32, 8)), per_row=True)
    program, x = zp.compile(model, torch.randn(2, 64)), torch.randn(7, 64)
    assert program.engine == "native"
    assert torch.equal(program(x), model(x))


def test_calibration_in_pieces():
    model, batches = build(networks.Dense), [networks.Dense.batch() for _ in range(4)]
    prepared = prepare_program(model, batches[0])
    with pytest.raises(UncalibratedError, match="no calibration inputs"):
        prepared.convert()
    for batch in batches[:2]:
        prepared.feed([batch])
    resumed = pickle.loads(pickle.dumps(prepared.state_dict()))
    again = prepare_program(model, batches[0])
    again.load_state_dict(resumed)
    again.feed(batches[2:])
    x = networks.Dense.batch()
    assert torch.equal(again.convert()(x), zp.quantize(model, batches)(x))


class TwoLayers(nn.Module):
    def __init__(self):
        super().__init__()
        self.first, self.second = nn.Linear(16, 16), nn.Linear(16, 4)

    def forward(self, x):
        return self.second(torch.relu(self.first(x)))


@pytest.mark.parametrize(
    "mapping",
    [
        QConfigMapping().set_global(get_default_qconfig()).set_module_name("first", None),
        QConfigMapping().set_global(get_default_qconfig()).set_module_name_regex("fir.*", None),
        QConfigMapping().set_module_name("second", get_default_qconfig()),
    ],
)
def test_mixed_precision_by_name(mapping):
    program = zp.quantize(TwoLayers(), [torch.randn(8, 16)], qconfig=mapping)
    kinds = {name: why for name, operator, why in program.program.coverage if "linear" in operator}
    assert kinds == {"first": "its qconfig is None", "second": "int8"}
    assert program.engine == "native"


@pytest.mark.parametrize("kind", [nn.Linear, torch.ops.aten.linear.default])
def test_mixed_precision_by_type(kind):
    mapping = QConfigMapping().set_global(get_default_qconfig()).set_object_type(kind, None)
    program = zp.quantize(TwoLayers(), [torch.randn(8, 16)], qconfig=mapping)
    assert not any(why == "int8" for *_, why in program.program.coverage)


class Branches(nn.Module):
    """What torch.export cannot follow: the path depends on the data."""

    def __init__(self):
        super().__init__()
        self.linear = nn.Linear(8, 8)

    def forward(self, x):
        return self.linear(x) if x.sum() > 0 else self.linear(-x)


def test_models_without_a_graph_run_module_by_module():
    with pytest.warns(UserWarning, match="module by module: capture"):
        model = zp.quantize(Branches(), [torch.rand(4, 8)])
    assert model.engine.startswith("capture: torch.export failed")
    assert sqnr(model.module.linear(torch.rand(2, 8)).dequantize(), model(torch.rand(2, 8))) < 100
    with pytest.warns(UserWarning, match="module by module"):
        zp.quantize(Branches(), dynamic=True, example=torch.rand(4, 8))(torch.rand(2, 8))
    with pytest.raises(CaptureError):
        prepare_program(Branches(), torch.rand(4, 8))


def test_unbatched_convolutions_stay_float():
    program = zp.quantize(nn.Conv2d(3, 4, 3), [torch.randn(3, 8, 8)])
    assert "4 dimensions" in program.report()
    assert program(torch.randn(3, 8, 8)).shape == (4, 6, 6)


def test_models_that_change_their_state_or_inputs():
    class Counts(nn.Module):
        def __init__(self):
            super().__init__()
            self.linear = nn.Linear(4, 4)
            self.register_buffer("calls", torch.zeros(()))

        def forward(self, x):
            self.calls += 1
            return self.linear(x)

    class Writes(nn.Module):
        def __init__(self):
            super().__init__()
            self.linear = nn.Linear(4, 4)

        def forward(self, x):
            x[:, 0] = 0
            return self.linear(x)

    for model in (Counts(), Writes()):
        with pytest.raises(CaptureError, match="writes to its state or inputs"):
            prepare_program(model, torch.randn(2, 4))


def test_writes_to_parts_are_followed():
    class Parts(nn.Module):
        def __init__(self):
            super().__init__()
            self.linear = nn.Linear(4, 4)

        def forward(self, x):
            y = self.linear(x)
            before = y[:, 1:]
            y[:, 0] = 0
            y.relu_()
            return y, before

    model, x = Parts().eval(), torch.randn(5, 4)
    program = zp.quantize(model, [torch.randn(32, 4)])
    for e, g in zip(model(x), program(x), strict=True):
        assert sqnr(e, g) > 25


def test_as_a_module():
    model, program = quantized(networks.Residual)
    batch = networks.Residual.batch()
    expected = program(batch)
    assert same(copy.deepcopy(program)(batch), expected)
    assert same(pickle.loads(pickle.dumps(program))(batch), expected)
    other = zp.quantize(model, [networks.Residual.batch() * 3])
    assert not same(other(batch), expected)
    fresh = copy.deepcopy(program)
    for buffer in fresh.buffers():
        buffer.zero_()
    fresh.load_state_dict(program.state_dict())
    assert same(fresh(batch), expected)
    batch.requires_grad_()
    assert same(program(batch), expected)


def test_export_and_compile():
    _, program = quantized(networks.Residual)
    batch = networks.Residual.batch()
    expected = program(batch)
    exported = torch.export.export(program, (batch,))
    assert same(exported.module()(batch), expected)
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        assert same(torch.compile(program, backend="aot_eager", fullgraph=True)(batch), expected)


def test_many_threads_at_once():
    _, program = quantized(networks.Residual)
    batches = [networks.Residual.batch(n) for n in (1, 2, 3, 4)]
    expected = [program(b) for b in batches]
    wrong = []

    def work(i):
        for j in range(20):
            k = (i + j) % len(batches)
            if not same(program(batches[k]), expected[k]):
                wrong.append(k)

    threads = [threading.Thread(target=work, args=(i,)) for i in range(6)]
    for t in threads:
        t.start()
    for t in threads:
        t.join()
    assert not wrong


def test_results_are_the_callers():
    _, program = quantized(networks.Dense)
    a = program(networks.Dense.batch())
    kept = a.clone()
    program(networks.Dense.batch())
    assert torch.equal(a, kept)


class Fixed(nn.Module):
    """Gives what does not depend on its input."""

    def __init__(self):
        super().__init__()
        self.layer, self.norm = nn.Linear(4, 4), nn.LayerNorm(4)
        self.register_buffer("kept", torch.ones(3))

    def forward(self, x):
        return self.norm(self.layer(x)), torch.arange(4) + 1, self.kept, self.kept.to("cpu", torch.int64)


def test_fixed_results_are_the_callers():
    model = Fixed().eval()
    program = zp.quantize(model, [torch.randn(2, 4)])
    expected = [t.clone() for t in program(torch.zeros(2, 4))]
    for t in program(torch.zeros(2, 4)):
        t.add_(1)
    assert same(expected, program(torch.zeros(2, 4)))
    assert torch.equal(model.kept, torch.ones(3))


@pytest.mark.parametrize(
    "options",
    [{"calibration": [torch.ones(2, 32)]}, {"dynamic": True, "example": torch.ones(2, 32)}],
    ids=["static", "dynamic"],
)
def test_a_program_does_not_follow_its_model(options):
    """Which may be trained on."""
    model = nn.Sequential(nn.Linear(32, 32), nn.LayerNorm(32), nn.Linear(32, 32)).eval()
    program, x = zp.quantize(model, **options), torch.randn(3, 32)
    before = program(x)
    with torch.no_grad():
        for p in model.parameters():
            p.mul_(3)
    assert torch.equal(before, program(x))


class Contexts(nn.Module):
    """Parts that run without gradients, or where autocast is off."""

    def __init__(self):
        super().__init__()
        self.layer = nn.Linear(8, 8)
        self.register_buffer("shift", torch.randn(8))

    def forward(self, x):
        with torch.autocast("cpu", enabled=False):
            y = self.layer(x) * 2
            z = y + 1
        with torch.no_grad():
            w = z.sin() + self.shift
            with torch.autocast("cpu", enabled=False):
                v = w.cos()
            w = w.clone()
            w.add_(1)
        return y + w + v, self.layer(v)


class Autocast(nn.Module):
    def __init__(self):
        super().__init__()
        self.layer = nn.Linear(8, 8)

    def forward(self, x):
        with torch.autocast("cpu", dtype=torch.bfloat16):
            return self.layer(x)


def test_parts_without_gradients_belong_to_the_program():
    torch.manual_seed(0)
    model, x = Contexts().eval(), torch.randn(6, 8)
    program = zp.quantize(model, [torch.randn(6, 8) for _ in range(4)])
    assert program.engine == "native"
    assert all(sqnr(a, b) > 25 for a, b in zip(model(x), program(x), strict=True))
    with pytest.raises(CaptureError, match=r"a part that runs apart.*wrap_with_autocast.*bfloat16"):
        prepare_program(Autocast().eval(), x)


class BroadcastSum(nn.Module):
    """Adds one value per channel to an image, as global context does, and one row to many."""

    def __init__(self):
        super().__init__()
        self.image, self.context, self.last = nn.Conv2d(3, 8, 3, padding=1), nn.Conv2d(3, 8, 1), nn.Conv2d(8, 4, 1)

    def forward(self, x):
        context = self.context(F.adaptive_avg_pool2d(x, 1))
        return self.last(F.relu(self.image(x) + context)), self.last(context + self.image(x[:, :, :, :1]))


def test_sums_that_broadcast():
    torch.manual_seed(0)
    model, x = BroadcastSum().eval(), torch.randn(2, 3, 9, 9) + 1
    program = zp.quantize(model, [torch.randn(2, 3, 9, 9) + 1 for _ in range(4)])
    assert [i.operator for i in program.program.body].count("zeropoint::add") == 2
    assert all(sqnr(a, b) > 25 for a, b in zip(model(x), program(x), strict=True))


class Sizes(nn.Module):
    """Computes with its sizes as networks for images and sound do."""

    def __init__(self):
        super().__init__()
        self.patches = nn.Conv2d(3, 8, 4, stride=4)

    def forward(self, x):
        x = self.patches(x)
        least = min(x.shape[2], x.shape[3])
        return x[:, :, :least, :least], x * x.shape[3] ** 2


def test_powers_and_bounds_of_sizes():
    torch.manual_seed(0)
    model = Sizes().eval()
    program = zp.quantize(model, [torch.randn(2, 3, 16, 24) for _ in range(4)])
    assert program.engine == "native"
    for shape in ((1, 3, 16, 24), (3, 3, 32, 40)):
        x = torch.randn(shape)
        assert all(sqnr(a, b) > 25 for a, b in zip(model(x), program(x), strict=True))


def test_views_and_inputs_as_results():
    class Views(nn.Module):
        def __init__(self):
            super().__init__()
            self.linear, self.fixed = nn.Linear(8, 8), nn.Parameter(torch.randn(3))

        def forward(self, x):
            y = self.linear(x)
            return x, y.view(-1, 2, 4)[:, 1], y.transpose(0, 1), self.fixed, x[:, 2:]

    model = Views()
    program = zp.quantize(model, [torch.randn(4, 8)])
    first = program(torch.randn(5, 8))
    kept = [t.clone() for t in first]
    x = torch.randn(5, 8)
    for e, g in zip(model(x), program(x), strict=True):
        assert sqnr(e, g) > 25
    assert same(first, kept)


def test_profile_and_memory():
    _, program = quantized(networks.Residual)
    rows = program.profile(networks.Residual.batch(), repeats=3)
    assert {"layer", "operator", "ms", "share"} == set(rows[0])
    assert abs(sum(r["share"] for r in rows) - 1) < 0.05
    assert any(r["layer"] == "stem" for r in rows)
    small = program.planned_bytes()
    # Intermediate values share memory: less than all of them together.
    everything = sum(v.numel() for v in _intermediates(program, networks.Residual.batch()))
    assert 0 < small < everything


def _intermediates(program, batch):
    from zeropoint.engine.program import _call, bind

    values = dict(program.program.prepared())
    values.update(zip(program.program.inputs, [batch], strict=True))
    results = []
    for instruction in program.program.body:
        _call(instruction, bind(instruction), values)
        results += [values[r] for r in instruction.results if r is not None and isinstance(values[r], torch.Tensor)]
    return results


def test_scalars_become_tensors():
    class Scalars(nn.Module):
        def __init__(self):
            super().__init__()
            self.linear = nn.Linear(8, 8)

        def forward(self, x):
            y = self.linear(x)
            y = (2 - y) * 0.5 + 1 - y / 3
            y = y.clamp(-2, 2) ** 2 + (y.abs() + 1) ** 0.5 + (y.abs() + 1) ** 1.5 + F.hardtanh(y) + F.relu6(y)
            return torch.where(y > 0.5, y, -y).masked_fill(y == 0, 3.0)

    program, x = zp.quantize(Scalars(), [torch.randn(4, 8)]), torch.randn(5, 8)
    assert program.engine == "native"
    assert torch.equal(program(x), program.program.interpret([x])[0])


def test_parameters_of_inner_modules_are_tensors_too():
    class Inner(nn.Module):
        def __init__(self):
            super().__init__()
            self.offset, self.linear = nn.Parameter(torch.randn(8)), nn.Linear(8, 8)

        def forward(self, x):
            return self.linear(x) + self.offset

    program, x = zp.quantize(nn.Sequential(Inner()), [torch.randn(4, 8)]), torch.randn(5, 8)
    assert program.engine == "native"
    assert torch.equal(program(x), program.program.interpret([x])[0])


def test_what_native_code_cannot_call_runs_from_python():
    class Elu(nn.Module):
        def __init__(self):
            super().__init__()
            self.linear = nn.Linear(8, 8)

        def forward(self, x):
            return F.elu(self.linear(x), 0.7)

    model, x = Elu(), torch.randn(5, 8)
    program = zp.quantize(model, [torch.randn(40, 8)])
    assert "Scalar" in program.engine
    assert sqnr(model(x), program(x)) > 25
    with pytest.raises(QuantizationError, match="Scalar"):
        program.profile(x)


@pytest.mark.parametrize(
    ("run", "message"),
    [
        (lambda: zp.quantize(nn.Linear(2, 2)), "dynamic=True"),
        (lambda: zp.quantize(nn.Linear(2, 2), [torch.zeros(1, 2)], dynamic=True), "dynamic=True"),
        (lambda: zp.quantize(nn.Linear(2, 2), []), "no inputs"),
        (lambda: zp.quantize(lambda x: x, [torch.zeros(1)]), "nn.Module"),
        (lambda: zp.quantize(nn.Linear(2, 2), [torch.zeros(1, 2)], example=torch.zeros(1, 2)), "example belongs"),
        (
            lambda: zp.quantize(nn.Linear(2, 2), [torch.zeros(1, 2)], qconfig=QConfigMapping(), eager=True),
            "QConfigMapping",
        ),
    ],
)
def test_errors(run, message):
    with pytest.raises(QuantizationError, match=message):
        run()


class PadsToWhole(nn.Module):
    """As networks on patches do, by what its input's sizes leave."""

    def __init__(self):
        super().__init__()
        self.first, self.second = nn.Conv2d(3, 8, 3, padding=1), nn.Conv2d(8, 4, 4, stride=4)

    def forward(self, x):
        x = F.relu(self.first(x))
        height, width = x.shape[-2:]
        return self.second(F.pad(x, (0, (4 - width % 4) % 4, 0, (4 - height % 4) % 4)))


def test_padding_by_what_sizes_leave():
    torch.manual_seed(0)
    model = PadsToWhole().eval()
    program = zp.quantize(model, [torch.randn(2, 3, 10, 13) for _ in range(4)])
    assert isinstance(program, ProgramModule)
    assert program.engine == "native"
    for size in ((10, 13), (8, 8), (9, 15), (21, 6)):
        x = torch.randn(3, 3, *size)
        assert program(x).shape == model(x).shape
        assert sqnr(model(x), program(x)) > 25


class DividesByLength(nn.Module):
    """As cosine attention does with its keys."""

    def __init__(self):
        super().__init__()
        self.keys = nn.Linear(16, 16)

    def forward(self, x):
        return F.normalize(self.keys(x), dim=-1)


def test_biases_of_zero_stay():
    torch.manual_seed(0)
    model = DividesByLength().eval()
    nn.init.zeros_(model.keys.bias)
    program = zp.quantize(model, [torch.randn(8, 16) + 1 for _ in range(4)])
    rows = torch.randn(4, 16) + 1
    rows[1] = 0
    assert torch.equal(program(rows)[1], torch.zeros(16))
    assert sqnr(model(rows), program(rows)) > 25
