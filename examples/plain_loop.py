"""Sparsify a model in two lines and train it in a plain loop, on digits."""

import torch
import torch.nn.functional as F

import openwork as ow
from openwork.data import BatchLoader, Digits
from openwork.models import DigitsNet


def main(epochs: int = 5) -> float:
    torch.manual_seed(0)
    source = Digits()
    train = BatchLoader(source.load("train"), source, 64, train=True)
    test = BatchLoader(source.load("test"), source, 360, train=False)

    model = DigitsNet()
    method = ow.methods.DSB(interval=20, total_steps=epochs * len(train))
    sparsity = ow.sparsify(model, sparsity=0.9, layout=ow.layouts.ShuffledBlock(16, 16), method=method)
    optimizer = torch.optim.SGD(model.parameters(), lr=0.05, momentum=0.9, weight_decay=5e-4)
    sparsity.attach(optimizer)
    print(sparsity.report())

    for _ in range(epochs):
        for x, y, _ in train:
            F.cross_entropy(model(x), y).backward()
            optimizer.step()
            optimizer.zero_grad()

    model.eval()
    x, y, _ = next(iter(test))
    accuracy = float((model(x).argmax(1) == y).float().mean())
    print(f"test accuracy {accuracy:.3f} with {sum(layer.pattern.nnz for layer in sparsity.layers.values()):,} active weights")
    return accuracy


if __name__ == "__main__":
    main()
