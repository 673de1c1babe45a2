"""Methods and layouts side by side on digits: any layout goes with any method."""

import torch
import torch.nn.functional as F

import openwork as ow
from openwork.data import BatchLoader, Digits
from openwork.models import MLP
from openwork.train import OneCycle

COMBINATIONS = [
    ("unstructured", "static"),
    ("unstructured", "set"),
    ("unstructured", "rigl"),
    ("out_vector(8)", "rigl"),
    ("block(8, 8)", "dsb"),
    ("shuffled_block(8, 8)", "dsb"),
    ("shuffled_block(8, 8)", "dsb(lift='mean')"),
]


def accuracy(layout: str, method: str, epochs: int) -> float:
    torch.manual_seed(0)
    source = Digits(pad=0)
    train = BatchLoader(source.load("train"), source, 64, train=True)
    model = MLP(64, (256, 256))
    sparsity = ow.sparsify(model, sparsity=0.9, layout=layout, method=method, exclude=["classifier"])
    if sparsity.method.total_steps is None:
        sparsity.method.total_steps = epochs * len(train)
    optimizer = torch.optim.SGD(model.parameters(), lr=0.1, momentum=0.9)
    sparsity.attach(optimizer)
    for epoch in range(epochs):
        for step, (x, y, _) in enumerate(train):
            optimizer.param_groups[0]["lr"] = 0.1 * OneCycle().factor(epoch + step / len(train), epochs)
            F.cross_entropy(model(x), y).backward()
            optimizer.step()
            optimizer.zero_grad()
    model.eval()
    x, y, _ = next(iter(BatchLoader(source.load("test"), source, 360, train=False)))
    return float((model(x).argmax(1) == y).float().mean())


def main(epochs: int = 20) -> dict[tuple[str, str], float]:
    results = {}
    for layout, method in COMBINATIONS:
        results[layout, method] = accuracy(layout, method, epochs)
        print(f"{layout:22} {method:18} test accuracy {results[layout, method]:.3f}")
    return results


if __name__ == "__main__":
    main()
