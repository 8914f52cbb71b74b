"""``.zp`` files: what is written is what runs, and nothing that is damaged runs."""

import json
import struct
import subprocess
import sys
from pathlib import Path

import pytest
import torch
from safetensors.torch import load_file, save_file
from torch import nn

import zeropoint as zp
from zeropoint.engine import ProgramError
from zeropoint.quantization import (
    QuantWrapper,
    convert,
    get_default_qconfig,
    prepare,
    quantize_dynamic,
    quantize_weight_only,
)


class Small(nn.Module):
    def __init__(self):
        super().__init__()
        self.conv, self.line, self.head = nn.Conv2d(3, 5, 3, padding=1), nn.Conv2d(5, 5, 3, groups=5), nn.Linear(5, 4)
        self.norm = nn.LayerNorm(4)

    def forward(self, x, bias=None):
        y = torch.tanh(self.conv(x))
        y = torch.relu(self.line(y) + y[:, :, 1:-1, 1:-1])
        return {"out": self.norm(self.head(y.mean((2, 3)))) * 0.5, "shape": y}


@pytest.fixture(scope="module")
def program():
    torch.manual_seed(0)
    return zp.quantize(Small().eval(), [torch.randn(2, 3, 6, 6)])


@pytest.fixture
def path(program, tmp_path):
    program.save(tmp_path / "model.zp")
    return tmp_path / "model.zp"


def document(path):
    data = path.read_bytes()
    (length,) = struct.unpack("<Q", data[:8])
    return json.loads(json.loads(data[8 : 8 + length])["__metadata__"]["zeropoint.program"])


def rewrite(path, change):
    """The file with its document changed by ``change(document, tensors)``."""
    tensors, content = load_file(path), document(path)
    change(content, tensors)
    save_file(tensors, path, metadata={"zeropoint.program": json.dumps(content)})


def test_comes_back(program, path):
    loaded = zp.load(path)
    x = torch.randn(3, 3, 6, 6)
    expected = program(x)
    assert loaded.engine == "native"
    assert all(torch.equal(loaded(x)[k], expected[k]) for k in expected)
    assert all(torch.equal(loaded(x=x)[k], expected[k]) for k in expected)
    assert loaded.report() == program.report()
    again = path.with_name("again.zp")
    zp.save(loaded, again)
    assert again.read_bytes() == path.read_bytes()


def test_is_plain_safetensors(path):
    assert all(isinstance(t, torch.Tensor) for t in load_file(path).values())
    assert document(path)["version"] == 1


def test_dynamic_and_scalars_come_back(tmp_path):
    model = nn.Sequential(nn.Linear(40, 16), nn.ELU(0.5), nn.Linear(16, 4)).eval()
    program = zp.quantize(model, dynamic=True, example=torch.randn(2, 40))
    program.save(tmp_path / "dynamic.zp")
    x = torch.randn(5, 40)
    assert torch.equal(zp.load(tmp_path / "dynamic.zp")(x), program(x))


def set_operator(name):
    def change(content, tensors):
        content["body"][0][0] = name

    return change


def first(content, operator):
    return next(i for i in content["body"] if i[0] == operator)


def forged_pack(content, tensors):
    """A packed weight of the file's own making instead of one that the prologue packs."""
    packed = content["prologue"].pop(0)[2][0]
    tensors[str(packed)] = torch.zeros(4096, dtype=torch.uint8)


def other_weight(content, tensors):
    packed = [i[2][0] for i in content["prologue"] if i[0] == "zeropoint::conv2d_pack"]
    first(content, "zeropoint::conv2d")[1][2] = {"value": packed[1]}


def wrong_result_count(content, tensors):
    next(i for i in content["body"] if i[0].startswith("zeropoint"))[2].append(None)


DAMAGE = {
    "calls a function with effects": (set_operator("aten::from_file"), "no operator that programs call"),
    "calls itself": (set_operator("zeropoint::program_bytes"), "no operator that programs call"),
    "writes in place": (set_operator("aten::add_.Tensor"), "no operator that programs call"),
    "python": (set_operator("builtins::eval"), "no operator that programs call"),
    "dunder": (set_operator("aten::__class__"), "no operator that programs call"),
    "forged packed weight": (forged_pack, "not packed by the prologue"),
    "packed from another weight": (other_weight, "another weight"),
    "version": (lambda c, t: c.update(version=2), "version is 2"),
    "no body": (lambda c, t: c.pop("body"), "body is no list"),
    "count": (lambda c, t: c.update(count=1 << 40), "count is"),
    "output": (lambda c, t: c.update(outputs=[10**6]), "is no value"),
    "input twice": (lambda c, t: c["inputs"].append(c["inputs"][0]), "defined twice"),
    "missing tensor": (lambda c, t: t.pop(next(iter(t))), "defined before it is used"),
    "tensor name": (lambda c, t: t.update(abc=torch.zeros(1)), "not by a number"),
    "argument": (
        lambda c, t: first(c, "zeropoint::conv2d")[1].__delitem__(slice(10, None)),
        "takes 25 arguments, got 10",
    ),
    "kind": (lambda c, t: first(c, "zeropoint::conv2d")[1].__setitem__(6, 3), "argument stride is no"),
    "huge": (lambda c, t: first(c, "zeropoint::conv2d")[1].__setitem__(7, [1 << 40, 0]), "out of range"),
    "own result": (lambda c, t: c["body"][0][1].__setitem__(0, {"value": c["body"][0][2][0]}), "before it is used"),
    "in_spec": (lambda c, t: c.update(in_spec=c["out_spec"]), "leaves"),
    "results": (wrong_result_count, "too many results"),
}


def test_arguments_with_defaults_may_be_missing(path):
    """Files that were written before an operator had its last arguments."""

    def change(content, tensors):
        packing = [i for i in content["prologue"] if i[0] == "zeropoint::conv2d_pack"]
        assert packing
        for instruction in packing:
            assert len(instruction[1]) == 5
            instruction[1].pop()  # the stride

    x = torch.randn(3, 3, 6, 6)
    before = zp.load(path)(x)
    rewrite(path, change)
    after = zp.load(path)(x)
    assert all(torch.equal(after[k], before[k]) for k in before)


@pytest.mark.parametrize("name", DAMAGE)
def test_damage_is_an_error_that_says_what(path, name):
    change, message = DAMAGE[name]
    rewrite(path, change)
    with pytest.raises(ProgramError, match=message):
        zp.load(path)


def test_other_files(tmp_path):
    with pytest.raises(FileNotFoundError, match="no such file"):
        zp.load(tmp_path / "nothing.zp")
    (tmp_path / "text.zp").write_text("hello")
    with pytest.raises(ProgramError, match="no safetensors file"):
        zp.load(tmp_path / "text.zp")
    save_file({"a": torch.zeros(1)}, tmp_path / "other.zp")
    with pytest.raises(ProgramError, match="without a zeropoint program"):
        zp.load(tmp_path / "other.zp")


def test_corrupted_files():
    """Each corrupted file is an error or runs; in a process of its own with bounded memory, so that a crash shows."""
    script = Path(__file__).with_name("corrupt.py")
    result = subprocess.run(
        [sys.executable, str(script), "--files", "400", "--seed", "1"],
        capture_output=True,
        text=True,
        timeout=500,
        check=False,
    )
    assert result.returncode == 0, result.stdout[-2000:] + result.stderr[-2000:]
    assert "400 files" in result.stdout


@pytest.mark.skipif(not Path("/proc/self/smaps").exists(), reason="mappings are read from Linux's /proc")
def test_what_was_packed_is_not_resident_twice(tmp_path):
    model = nn.Linear(4096, 1024).eval()
    program = zp.quantize(model, [torch.randn(2, 4096)])
    path = tmp_path / "large.zp"
    program.save(path)
    loaded = zp.load(path)
    lines = iter(Path("/proc/self/smaps").read_text().splitlines())
    resident = 0
    for line in lines:
        if line.endswith(str(path)):
            resident += next(int(rest.split()[1]) for rest in lines if rest.startswith("Rss:"))
    assert resident < 1024  # of 4096 kB
    for name, value in program.state_dict().items():
        assert torch.equal(loaded.state_dict()[name], value)
    x = torch.randn(3, 4096)
    assert torch.equal(loaded(x), program(x))


def test_saving_over_the_file_it_came_from(program, path):
    loaded = zp.load(path)
    before = {name: value.clone() for name, value in loaded.state_dict().items()}
    zp.quantize(nn.Linear(9, 3).eval(), [torch.randn(2, 9)]).save(path)  # another program in its place
    assert all(torch.equal(value, before[name]) for name, value in loaded.state_dict().items())
    loaded.save(path)
    x = torch.randn(1, 3, 6, 6)
    assert torch.equal(zp.load(path)(x)["out"], program(x)["out"])
    assert [p.name for p in path.parent.iterdir()] == [path.name]


def _converted(layer, x):
    model = QuantWrapper(layer).eval()
    model.qconfig = get_default_qconfig()
    prepared = prepare(model)
    prepared(x)
    return convert(prepared)


EAGER = {
    "convolutions": lambda: nn.Sequential(
        nn.Conv2d(3, 8, 3), nn.MaxPool2d(2), nn.BatchNorm2d(8), nn.ConvTranspose2d(8, 4, 3, stride=2)
    ),
    "linear": lambda: nn.Sequential(nn.Flatten(), nn.Linear(432, 8), nn.ReLU(), nn.Linear(8, 4)),
}


@pytest.mark.parametrize("name", EAGER)
def test_eager_models_that_have_run_are_packed_by_their_programs(name, tmp_path):
    torch.manual_seed(0)
    x = torch.randn(2, 3, 12, 12)
    eager = _converted(EAGER[name](), x)
    expected = eager(x)  # packs the weights for this CPU
    program = zp.compile(eager, x)
    assert len(program.program.prologue) >= 2
    program.save(tmp_path / "eager.zp")
    assert torch.equal(zp.load(tmp_path / "eager.zp")(x), expected)
    exported = torch.export.export(eager, (x,))
    assert sum("_pack" in str(node.target) for node in exported.graph.nodes) >= 2
    assert torch.equal(exported.module()(x), expected)


@pytest.mark.parametrize("convert_", [quantize_dynamic, quantize_weight_only])
def test_layers_that_have_run_are_packed_by_their_programs(convert_, tmp_path):
    torch.manual_seed(0)
    layers, x = convert_(nn.Sequential(nn.Linear(32, 8), nn.ReLU(), nn.Linear(8, 4)).eval()), torch.randn(5, 32)
    expected = layers(x)
    zp.compile(layers, x).save(tmp_path / "layers.zp")
    assert torch.equal(zp.load(tmp_path / "layers.zp")(x), expected)


def test_what_could_not_be_loaded_is_not_saved(tmp_path):
    class Model(nn.Module):
        def __init__(self):
            super().__init__()
            self.fc = nn.Linear(8, 4)

        def forward(self, x):
            return torch.linalg.matrix_exp(self.fc(x).unflatten(-1, (2, 2)))

    program = zp.quantize(Model().eval(), dynamic=True, example=torch.randn(3, 8))
    with pytest.raises(
        ProgramError, match=r"save: the file could not be loaded again: 'aten::.*matrix_exp.* is no operator"
    ):
        program.save(tmp_path / "fft.zp")
    assert not list(tmp_path.iterdir())
