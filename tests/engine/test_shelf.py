"""Where packed weights lie."""

import re
import sys
from pathlib import Path

import pytest
import torch
from torch import nn

import zeropoint as zp
from zeropoint import ops
from zeropoint.engine.shelf import Shelf

_ENABLED = Path("/sys/kernel/mm/transparent_hugepage/enabled")


def asked_for_huge_pages(address):
    """Whether the mapping that holds the address was marked so ("hg"); the kernel decides whether it gives them."""
    inside = False
    for line in Path("/proc/self/smaps").read_text().splitlines():
        if bounds := re.match(r"([0-9a-f]+)-([0-9a-f]+) ", line):
            inside = int(bounds[1], 16) <= address < int(bounds[2], 16)
        elif inside and line.startswith("VmFlags:"):
            return "hg" in line.split()
    raise AssertionError("no mapping holds this address")


huge_pages = pytest.mark.skipif(
    sys.platform != "linux" or not _ENABLED.exists(), reason="a kernel without transparent huge pages"
)


def test_few_weights_stay_where_they_are():
    packed = torch.ones(100, dtype=torch.uint8)
    assert Shelf(100).put(packed) is packed


def test_a_large_weight_stays_where_it_is():
    shelf, packed = Shelf(20 << 20), torch.ones(8 << 20, dtype=torch.uint8)
    assert shelf.put(packed) is packed
    assert shelf.put(packed[:100]) is not packed


def test_many_weights_are_copied_side_by_side():
    shelf = Shelf(4 << 20)
    packed = [torch.randint(0, 256, (n,), dtype=torch.uint8) for n in (100, 64, 1, 2 << 20, 0)]
    placed = [shelf.put(p) for p in packed]
    assert all(torch.equal(a, b) for a, b in zip(placed, packed, strict=True))
    assert len({p.untyped_storage().data_ptr() for p in placed}) == 1
    assert [p.storage_offset() for p in placed[:4]] == [0, 128, 192, 256]


def test_what_does_not_fit_gets_another_shelf():
    shelf = Shelf(4 << 20)
    packed = [torch.full((n,), n % 251, dtype=torch.uint8) for n in (3 << 20, 2 << 20, 5 << 20)]
    placed = [shelf.put(p) for p in packed]
    assert all(torch.equal(a, b) for a, b in zip(placed, packed, strict=True))
    assert len({p.untyped_storage().data_ptr() for p in placed}) == 3


@huge_pages
def test_large_packed_weights_ask_for_huge_pages():
    packed = ops.linear_pack(torch.zeros(4096, 4096, dtype=torch.int8), None)
    assert asked_for_huge_pages(packed.data_ptr() + (8 << 20))


@huge_pages
def test_a_program_keeps_its_weights_in_huge_pages():
    model = nn.Sequential(*(nn.Linear(512, 512) for _ in range(32))).eval()
    x = torch.randn(2, 512)
    program = zp.quantize(model, dynamic=True, example=x)
    assert program.engine == "native"
    names = [i.results[0] for i in program.program.prologue]
    storages = {program._prepared[n].untyped_storage().data_ptr() for n in names}
    assert len(names) == 32
    assert len(storages) < 4
    assert asked_for_huge_pages(program._prepared[names[16]].data_ptr())
    assert torch.equal(program(x), program.program.interpret([x])[0])
