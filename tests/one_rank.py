"""One process of a distributed run on the CPU: ``one_rank.py RANK RANKS FOLDER``.  Exits with 0 if all is as it must be."""

import gc
import sys

import torch
from torch import distributed, nn

import openwork as ow
from openwork import resident


def sparse_model():
    torch.manual_seed(0)
    model = nn.Sequential(
        nn.Conv2d(8, 8, 3), nn.BatchNorm2d(8), nn.ReLU(), nn.Conv2d(8, 12, 3), nn.Flatten(), nn.Linear(48, 4, bias=False)
    )
    ow.sparsify(model, sparsity=0.5, layout="unstructured", method="static")
    return model


def images(rank):
    return torch.randn(16, 8, 6, 6, generator=torch.Generator().manual_seed(rank))


def loss(model, rank):
    return (model(images(rank)) ** 3 + 1).mean()


def check_gradients_are_the_mean_over_ranks(rank, ranks):
    """Three steps, against one model that takes the batches of all ranks one after the other."""
    model, twin = sparse_model(), sparse_model()
    parallel = nn.parallel.DistributedDataParallel(model)
    optimizers = [torch.optim.SGD(one.parameters(), lr=0.1, momentum=0.9) for one in (parallel, twin)]
    for _ in range(3):
        loss(parallel, rank).backward()
        for other in range(ranks):
            (loss(twin, other) / ranks).backward()
        for a, b in zip(model.parameters(), twin.parameters(), strict=True):
            torch.testing.assert_close(a.grad, b.grad)
        for optimizer in optimizers:
            optimizer.step()
            optimizer.zero_grad()
    for a, b in zip(model.parameters(), twin.parameters(), strict=True):
        torch.testing.assert_close(a, b)
    values = model[0].values.detach()
    everywhere = [torch.empty_like(values) for _ in range(ranks)]
    distributed.all_gather(everywhere, values)
    assert all(torch.equal(one, values) for one in everywhere)


def check_synchronised_norms_do_what_they_do_to_plain_tensors():
    """PyTorch has none for the CPU: they refuse to train, resident input or not, and evaluate as batch norm."""
    model = sparse_model()
    converted = nn.SyncBatchNorm.convert_sync_batchnorm(sparse_model())
    assert type(converted[1]) is nn.SyncBatchNorm
    for on in (True, False):
        with resident.resident(on):
            try:
                converted(images(0))
            except ValueError as error:
                assert "expected input tensor to be on GPU" in str(error)  # noqa: PT017  # no pytest in this process
            else:
                raise AssertionError("trained without synchronising")
    torch.testing.assert_close(converted.eval()(images(0)), model.eval()(images(0)))


def main(rank, ranks, folder):
    torch.set_num_threads(1)
    distributed.init_process_group("gloo", init_method=f"file://{folder}/meet", rank=rank, world_size=ranks)
    check_gradients_are_the_mean_over_ranks(rank, ranks)
    check_synchronised_norms_do_what_they_do_to_plain_tensors()
    gc.collect()  # what still holds the group would be destroyed after it
    distributed.barrier()
    distributed.destroy_process_group()


if __name__ == "__main__":
    main(int(sys.argv[1]), int(sys.argv[2]), sys.argv[3])
