"""A transformers model built from a config, sparsified, trained a little on made-up text, and turned dense again."""

import torch
from transformers import BertConfig, BertForSequenceClassification

import openwork as ow


def main(steps: int = 30) -> tuple[float, float]:
    torch.manual_seed(0)
    config = BertConfig(
        vocab_size=100, hidden_size=64, num_hidden_layers=2, num_attention_heads=4, intermediate_size=256, num_labels=2
    )
    model = BertForSequenceClassification(config)
    sparsity = ow.sparsify(
        model, sparsity=0.8, layout="out_vector(8)", method=ow.methods.RigL(interval=10, end=20), exclude=["classifier"]
    )
    optimizer = torch.optim.AdamW(model.parameters(), lr=2e-3)
    sparsity.attach(optimizer)
    print(sparsity.report())

    # The label says whether token 7 is in the sentence.
    tokens = torch.randint(8, 100, (64, 12))
    labels = torch.arange(64) % 2
    tokens[labels == 1, 3] = 7
    losses = []
    for _ in range(steps):
        loss = model(input_ids=tokens, labels=labels).loss
        loss.backward()
        optimizer.step()
        optimizer.zero_grad()
        losses.append(loss.item())
    print(f"loss {losses[0]:.3f} -> {losses[-1]:.3f}")

    model.eval()
    with torch.no_grad():
        sparse = model(input_ids=tokens).logits
        dense = ow.densify(model)(input_ids=tokens).logits
    print(f"densified: logits differ by {float((sparse - dense).abs().max()):.1e} at most")
    return losses[0], losses[-1]


if __name__ == "__main__":
    main()
