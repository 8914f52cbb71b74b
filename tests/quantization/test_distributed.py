"""Two processes: observers see what both see, and QAT under DistributedDataParallel trains."""

from __future__ import annotations

import tempfile

import pytest
import torch
import torch.distributed as dist
import torch.multiprocessing as mp
from torch import nn

from zeropoint.quantization import (
    HistogramObserver,
    MinMaxObserver,
    MovingAverageMinMaxObserver,
    PerChannelMinMaxObserver,
    convert,
    get_default_qat_qconfig,
    prepare_qat,
    sync_observers,
)

KINDS = (MinMaxObserver, MovingAverageMinMaxObserver, PerChannelMinMaxObserver, HistogramObserver)


def batches(rank):
    generator = torch.Generator().manual_seed(rank)
    return [torch.randn(4, 6, generator=generator) * (1 + rank) for _ in range(3)]


def observe(rank, folder):
    dist.init_process_group("gloo", init_method=f"file://{folder}/rendezvous", rank=rank, world_size=2)
    found = []
    for kind in KINDS:
        observer = sync_observers(kind())
        for batch in batches(rank):
            observer(batch)
        found.append([t.clone() for t in observer.calculate_qparams()])
    model = nn.Sequential(nn.Linear(6, 8), nn.ReLU(), nn.Linear(8, 2)).train()
    torch.manual_seed(0)
    for parameter in model.parameters():
        nn.init.normal_(parameter)
    model.qconfig = get_default_qat_qconfig()
    prepared = sync_observers(prepare_qat(model))
    prepared(batches(rank)[0])  # makes what a first run makes, before DDP lists the buffers
    parallel = nn.parallel.DistributedDataParallel(prepared)
    optimizer = torch.optim.SGD(parallel.parameters(), 0.01)
    for batch in batches(rank):
        parallel(batch).square().mean().backward()
        optimizer.step()
        optimizer.zero_grad()
    prepared.eval()
    quantized = convert(prepared)
    torch.save((found, quantized.state_dict()), f"{folder}/{rank}.pt")
    dist.destroy_process_group()


@pytest.fixture(scope="module")
def results():
    with tempfile.TemporaryDirectory() as folder:
        mp.spawn(observe, (folder,), nprocs=2)
        return [torch.load(f"{folder}/{rank}.pt") for rank in (0, 1)]


@pytest.mark.parametrize("index", range(len(KINDS)))
def test_ranks_agree_and_cover_both(results, index):
    (scale, zero_point), (other_scale, other_zero_point) = (r[0][index] for r in results)
    assert torch.equal(scale, other_scale)
    assert torch.equal(zero_point, other_zero_point)
    if KINDS[index] is not MovingAverageMinMaxObserver:
        alone = KINDS[index]()
        for a, b in zip(batches(0), batches(1), strict=True):
            alone(torch.cat([a, b]) if KINDS[index] is not PerChannelMinMaxObserver else torch.cat([a, b], 1))
        assert torch.allclose(alone.calculate_qparams()[0], scale, rtol=1e-5)


def test_trained_models_are_the_same(results):
    first, second = (r[1] for r in results)
    assert first.keys() == second.keys()
    assert all(torch.equal(first[k], second[k]) for k in first)
