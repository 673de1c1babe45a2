"""Topology updates that ride on the optimizer: ordinary loops, unusual ones, and other people's models."""

from __future__ import annotations

import copy

import pytest
import torch
import torch.nn.functional as F
from torch import nn

import openwork as ow
from openwork.kernels import available


def mlp(width=24, dtype=torch.float64):
    torch.manual_seed(3)
    return nn.Sequential(nn.Linear(12, width), nn.Tanh(), nn.Linear(width, width), nn.Tanh(), nn.Linear(width, 9)).to(dtype)


def sparse(model, *, method="static", layout="unstructured", kernel="reference", sparsity=0.6, **options):
    return ow.sparsify(model, sparsity=sparsity, layout=layout, method=method, kernel=kernel, **options)


def batch(step, size=8, dtype=torch.float64):
    generator = torch.Generator().manual_seed(step)
    return torch.randn(size, 12, generator=generator).to(dtype), torch.randint(9, (size,), generator=generator)


def topology(sparsity):
    return {name: module.pattern.positions.sort(0).values for name, module in sparsity.layers.items()}


def same_topology(a, b):
    return all(torch.equal(a[name], b[name]) for name in a)


METHODS = {
    "SET": lambda: ow.methods.SET(interval=2, end=100),
    "RigL": lambda: ow.methods.RigL(interval=2, end=100),
    "DSB": lambda: ow.methods.DSB(interval=2, end=100),
    "DSB, gradient": lambda: ow.methods.DSB(interval=2, end=100, grow="gradient", norm="l2"),
    "DSB, l2": lambda: ow.methods.DSB(interval=2, end=100, norm="l2"),
}
every_method = pytest.mark.parametrize("make", METHODS.values(), ids=METHODS)
LAYOUTS = ["unstructured", "shuffled_block(4, 4)"]


def test_sparsity_is_met_over_all_layers():
    for budget in ("erk", "uniform", "erdos_renyi"):
        for sparsity in (0.5, 0.8, 0.95):
            model = nn.Sequential(nn.Conv2d(16, 64, 3), nn.Conv2d(64, 64, 3), nn.Linear(256, 128))
            made = sparse(model, sparsity=sparsity, budget=budget)
            total = sum(module.pattern.mask().numel() for module in made.layers.values())
            active = sum(module.pattern.nnz for module in made.layers.values())
            assert abs(active - (1 - sparsity) * total) <= len(made.layers) + 1
            assert made.report().sparsity == pytest.approx(sparsity, abs=1e-4)


def test_active_weights_keep_the_values_they_had():
    model = mlp()
    dense = copy.deepcopy(model)
    made = sparse(model, layout="block(3, 2)")
    for name, module in made.layers.items():
        assert torch.equal(module.dense_weight(), dense.get_submodule(name).weight * module.pattern.mask())
        assert torch.equal(module.bias, dense.get_submodule(name).bias)


def test_budgets_by_name_glob_and_function():
    made = sparse(mlp(), budget={"0": 0.5, "*": 0.25}, sparsity=0.75)
    rows = {row.layer: row for row in made.report().rows}
    assert [round(rows[name].asked, 6) for name in "024"] == [0.25] * 3, "later entries win"
    made = sparse(mlp(), budget=lambda shapes, sparsity, fixed: dict.fromkeys(shapes, 0.125))
    assert {row.asked for row in made.report().rows} == {0.125}
    made = sparse(mlp(), densities={"0": 1.0}, sparsity=0.5)
    rows = {row.layer: row for row in made.report().rows}
    assert rows["0"].got == 1.0
    assert made.report().sparsity == pytest.approx(0.5, abs=2e-3)


def test_a_layer_may_be_empty_or_full():
    for density, sparsity in ((0.0, 0.7), (1.0, 0.4)):
        for name, make in METHODS.items():
            for layout in LAYOUTS:
                model = mlp()
                made = sparse(model, densities={"2": density}, method=make(), layout=layout, sparsity=sparsity)
                optimizer = torch.optim.SGD(model.parameters(), lr=0.1, momentum=0.9)
                made.attach(optimizer)
                for step in range(5):
                    F.cross_entropy(model(batch(step)[0]), batch(step)[1]).backward()
                    optimizer.step()
                    optimizer.zero_grad()
                assert made.layers["2"].pattern.density == density, (name, layout)
                total = sum(module.pattern.mask().numel() for module in made.layers.values())
                active = sum(module.pattern.nnz for module in made.layers.values())
                assert made.report().sparsity == pytest.approx(1 - active / total)


def test_the_report_prints_every_layer():
    model = nn.Sequential(nn.Conv2d(3, 8, 3), nn.Conv2d(8, 8, 3, groups=8), nn.Linear(64, 40))
    report = sparse(model, layout="shuffled_block(4, 4)").report()
    assert [row.layer for row in report.rows] == ["0", "1", "2"]
    text = str(report)
    for word in ("8x3x3x3", "40x64", "ShuffledBlock", "reference", "depthwise"):
        assert word in text
    row = report.rows[2]
    module = model[2]
    index = sum(getattr(module, name).numel() for name in ("rows", "offsets", "cols")) * 4
    assert (row.nnz, row.dense_bytes, row.stored_bytes) == (module.pattern.nnz, 40 * 64 * 4, module.values.numel() * 4 + index)
    assert row.got == module.pattern.density


def test_kernels_are_chosen_by_name():
    for kernel in available():
        made = sparse(mlp(dtype=torch.float32), kernel=kernel)
        assert {row.kernel for row in made.report().rows} == {kernel}


def loop(model, optimizer, steps, accumulate=1, clip=None):
    """An ordinary loop; batches of 8 in ``accumulate`` equal parts."""
    for step in steps:
        x, y = batch(step)
        for part in range(accumulate):
            own = slice(part * 8 // accumulate, (part + 1) * 8 // accumulate)
            (F.cross_entropy(model(x[own]), y[own]) / accumulate).backward()
        if clip is not None:
            nn.utils.clip_grad_norm_(model.parameters(), clip)
        optimizer.step()
        optimizer.zero_grad()


def run(make, layout="unstructured", **options):
    model = mlp()
    made = sparse(model, method=make(), layout=layout, **options)
    optimizer = torch.optim.SGD(model.parameters(), lr=0.1, momentum=0.9, weight_decay=1e-3)
    made.attach(optimizer)
    return model, made, optimizer


@every_method
@pytest.mark.parametrize("layout", LAYOUTS)
def test_accumulated_batches_decide_as_one_big_batch(make, layout):
    topologies = []
    for accumulate in (1, 2, 4):
        model, made, optimizer = run(make, layout)
        if "l2" not in repr(make()) and accumulate > 1:
            before = topology(made)
        loop(model, optimizer, range(9), accumulate)
        topologies.append(topology(made))
    assert same_topology(topologies[0], topologies[1])
    assert same_topology(topologies[0], topologies[2])
    assert not same_topology(before if accumulate == 1 else topologies[0], topology(run(make, layout)[1]))


def test_step_counts_are_optimizer_steps():
    model, made, optimizer = run(METHODS["RigL"])
    loop(model, optimizer, range(4), accumulate=4)
    assert (made.step_count, made.last_update_step) == (4, 2)
    loop(model, optimizer, range(4, 5))
    assert (made.step_count, made.last_update_step) == (5, 4)


def test_a_step_that_replaces_leaves_every_weight():
    model, made, optimizer = run(METHODS["RigL"])
    loop(model, optimizer, range(2))
    values = {name: p.detach().clone() for name, p in model.named_parameters() if name.endswith("bias")}
    momentum = {name: optimizer.state[p]["momentum_buffer"].clone() for name, p in model.named_parameters() if name in values}
    loop(model, optimizer, range(2, 3))
    assert made.last_update_step == 2
    for name, p in model.named_parameters():
        if name in values:
            assert torch.equal(p, values[name])
            assert torch.equal(optimizer.state[p]["momentum_buffer"], momentum[name])


def test_clipping_changes_no_decision_and_lr_schedules_run():
    model, made, optimizer = run(METHODS["RigL"])
    scheduler = torch.optim.lr_scheduler.CosineAnnealingLR(optimizer, 10)
    for step in range(5):
        loop(model, optimizer, [step], clip=0.1)
        scheduler.step()
    assert made.step_count == 5
    assert optimizer.param_groups[0]["lr"] < 0.1
    assert all(change.grown for change in made.last_update.values())


def test_parameter_groups_may_split_the_model():
    model = mlp()
    made = sparse(model, method=METHODS["SET"]())
    decayed = [p for name, p in model.named_parameters() if name.endswith("values")]
    others = [p for name, p in model.named_parameters() if not name.endswith("values")]
    optimizer = torch.optim.AdamW(
        [{"params": decayed, "weight_decay": 0.1}, {"params": others, "weight_decay": 0.0, "lr": 1e-4}]
    )
    made.attach(optimizer)
    loop(model, optimizer, range(5))
    assert (made.last_update_step, set(made.last_update)) == (4, {"0", "2", "4"})
    assert [group["weight_decay"] for group in optimizer.param_groups] == [0.1, 0.0]


@every_method
@pytest.mark.parametrize("by_keyword", [False, True])
def test_closures(make, by_keyword):
    plain, made, optimizer = run(make)
    loop(plain, optimizer, range(7))
    model, same, other = run(make)
    for step in range(7):
        x, y = batch(step)

        def closure(x=x, y=y):
            other.zero_grad()
            loss = F.cross_entropy(model(x), y)
            loss.backward()
            return loss

        loss = other.step(closure=closure) if by_keyword else other.step(closure)
        assert loss.requires_grad
    assert same.step_count == 7
    assert same_topology(topology(made), topology(same))
    for a, b in zip(plain.parameters(), model.parameters(), strict=True):
        assert torch.equal(a, b)


@every_method
def test_a_step_that_a_loss_scaler_skips(make):
    """An overflow: the gradients are not finite, the optimizer is not called, and the batch must not decide anything."""
    plain, made, optimizer = run(make)
    loop(plain, optimizer, range(7))
    model, same, other = run(make)
    for step in range(7):
        if step in (2, 3, 4):
            (F.cross_entropy(model(batch(99)[0]), batch(99)[1]) * float("inf")).backward()
            assert not all(torch.isfinite(p.grad).all() for p in model.parameters())
            other.zero_grad()
        loop(model, other, [step])
    assert same.step_count == 7
    assert same_topology(topology(made), topology(same))


def test_gradscaler():
    model, made, optimizer = run(METHODS["RigL"])
    scaler = torch.amp.GradScaler("cpu", init_scale=2.0**10)
    for step in range(5):
        x, y = batch(step)
        loss = F.cross_entropy(model(x), y) * (float("inf") if step == 1 else 1.0)
        scaler.scale(loss).backward()
        scaler.unscale_(optimizer)
        scaler.step(optimizer)
        scaler.update()
        optimizer.zero_grad()
    assert (made.step_count, made.last_update_step) == (4, 2)
    assert scaler.get_scale() == 2.0**9


@every_method
def test_evaluating_between_steps_decides_nothing(make):
    plain, made, optimizer = run(make)
    loop(plain, optimizer, range(7))
    model, same, other = run(make)
    for step in range(7):
        model.eval()
        with torch.no_grad():
            model(batch(50 + step)[0])
        with torch.inference_mode():
            model(batch(60 + step)[0])
        model.train()
        loop(model, other, [step])
    assert same_topology(topology(made), topology(same))


def test_a_step_without_any_backward_pass():
    _, made, optimizer = run(METHODS["RigL"])
    before = topology(made)
    for _ in range(5):
        optimizer.step()
    assert made.step_count == 5
    assert same_topology(before, topology(made))


def test_a_layer_that_is_not_used_keeps_its_topology():
    model = nn.ModuleDict({"used": nn.Linear(12, 12), "idle": nn.Linear(12, 12)}).double()
    made = sparse(model, method=METHODS["DSB"](), layout="shuffled_block(2, 2)")
    optimizer = torch.optim.SGD(model.parameters(), lr=0.1)
    made.attach(optimizer)
    before = topology(made)
    for step in range(3):
        model["used"](batch(step)[0]).square().sum().backward()
        optimizer.step()
    after = topology(made)
    assert torch.equal(before["idle"], after["idle"])
    assert not torch.equal(before["used"], after["used"])
    assert set(made.last_update) == {"used"}


def test_nothing_is_collected_between_topology_steps():
    model, made, optimizer = run(METHODS["RigL"])
    armed = []
    for step in range(6):
        armed.append([module.collector is not None for module in made.layers.values()])
        loop(model, optimizer, [step])
        assert all(module.collector is None or module.collector.empty for module in made.layers.values())
    assert armed == [[step in (2, 4)] * 3 for step in range(6)]


def test_autocast_trains():
    model = mlp(dtype=torch.float32)
    made = sparse(model, method=METHODS["DSB, gradient"]())
    optimizer = torch.optim.AdamW(model.parameters())
    made.attach(optimizer)
    for step in range(5):
        x, y = batch(step, dtype=torch.float32)
        with torch.autocast("cpu", dtype=torch.bfloat16):
            loss = F.cross_entropy(model(x).float(), y)
        loss.backward()
        optimizer.step()
        optimizer.zero_grad()
    assert made.last_update_step == 4
    assert all(torch.isfinite(p).all() for p in model.parameters())


def test_training_learns():
    torch.manual_seed(0)
    teacher = torch.randn(12, 9)
    model = mlp(width=48, dtype=torch.float32)
    made = sparse(model, method=ow.methods.RigL(interval=10, total_steps=200), sparsity=0.7, kernel=available()[-1])
    optimizer = torch.optim.Adam(model.parameters(), lr=0.01)
    made.attach(optimizer)
    for _ in range(200):
        x = torch.randn(64, 12)
        F.cross_entropy(model(x), (x @ teacher).argmax(1)).backward()
        optimizer.step()
        optimizer.zero_grad()
    x = torch.randn(1000, 12)
    assert (model(x).argmax(1) == (x @ teacher).argmax(1)).float().mean() > 0.75


def test_checkpointed_activations_decide_as_without():
    from torch.utils.checkpoint import checkpoint

    topologies = []
    for wrapped in (False, True):
        model, made, optimizer = run(METHODS["RigL"])
        for step in range(5):
            x, y = batch(step)
            out = checkpoint(model, x, use_reentrant=False) if wrapped else model(x)
            F.cross_entropy(out, y).backward()
            optimizer.step()
            optimizer.zero_grad()
        topologies.append(topology(made))
    assert same_topology(*topologies)


# Where the graph breaks to collect evidence, torch itself looks at the .grad of an activation.
@pytest.mark.filterwarnings("ignore:The .grad attribute of a Tensor that is not a leaf")
def test_a_compiled_model_trains_and_its_topology_moves():
    for kernel in available():
        results = []
        for compiled in (False, True):
            torch._dynamo.reset()
            model = mlp(dtype=torch.float32)
            made = sparse(model, method=METHODS["DSB"](), layout="shuffled_block(4, 4)", kernel=kernel)
            optimizer = torch.optim.SGD(model.parameters(), lr=0.1, momentum=0.9)
            made.attach(optimizer)
            called = torch.compile(model, backend="aot_eager") if compiled else model
            for step in range(30):
                x, y = batch(step, dtype=torch.float32)
                F.cross_entropy(called(x), y).backward()
                optimizer.step()
                optimizer.zero_grad()
            assert made.last_update_step == 28
            results.append((topology(made), [p.detach().clone() for p in model.parameters()]))
        assert same_topology(results[0][0], results[1][0])
        for a, b in zip(results[0][1], results[1][1], strict=True):
            torch.testing.assert_close(a, b)


def test_topology_updates_do_not_recompile():
    torch._dynamo.reset()
    torch._dynamo.utils.counters.clear()
    model = mlp(dtype=torch.float32)
    made = sparse(model, method=METHODS["SET"](), kernel=available()[-1])
    optimizer = torch.optim.SGD(model.parameters(), lr=0.1)
    made.attach(optimizer)
    compiled = torch.compile(model, backend="aot_eager", fullgraph=True)
    graphs = []
    for step in range(12):
        x, y = batch(step, dtype=torch.float32)
        F.cross_entropy(compiled(x), y).backward()
        optimizer.step()
        optimizer.zero_grad()
        graphs.append(torch._dynamo.utils.counters["stats"]["unique_graphs"])
    assert made.last_update_step == 10
    assert graphs[-1] == graphs[0] == 1


@pytest.mark.parametrize("norm_first", [False, True])
def test_transformer_encoder_layers_train_and_evaluate(norm_first):
    layer = nn.TransformerEncoderLayer(16, 4, 32, dropout=0.0, batch_first=True, norm_first=norm_first)
    model = nn.TransformerEncoder(layer, 2, enable_nested_tensor=False)
    made = sparse(model, method=METHODS["RigL"](), layout="block(2, 2)")
    assert set(made.layers) == {f"layers.{i}.linear{j}" for i in (0, 1) for j in (1, 2)}
    optimizer = torch.optim.AdamW(model.parameters())
    made.attach(optimizer)
    x = torch.randn(3, 5, 16)
    for _ in range(5):
        model(x).square().mean().backward()
        optimizer.step()
        optimizer.zero_grad()
    assert made.last_update_step == 4
    trained = model(x).detach()
    model.eval()
    with torch.no_grad():  # where torch has a fused path that would compute densely, and a warning would say so
        evaluated = model(x)
    torch.testing.assert_close(evaluated, trained)
    ow.densify(model)
    with torch.no_grad():
        torch.testing.assert_close(model(x), trained)


@pytest.mark.filterwarnings("ignore:The .grad attribute of a Tensor that is not a leaf")
def test_a_compiled_model_of_transformers():
    torch._dynamo.reset()
    model, inputs = vit()
    made = sparse(model, method=METHODS["RigL"](), kernel=available()[-1])
    optimizer = torch.optim.AdamW(model.parameters())
    made.attach(optimizer)
    compiled = torch.compile(model, backend="aot_eager")
    for _ in range(4):
        torch.testing.assert_close(compiled(**inputs).loss, model(**inputs).loss)
        compiled(**inputs).loss.backward()
        optimizer.step()
        optimizer.zero_grad()
    assert made.last_update_step == 2


def test_multihead_attention_stays_as_it_is():
    class Attention(nn.Module):
        def __init__(self):
            super().__init__()
            self.before = nn.Linear(16, 16)
            self.attention = nn.MultiheadAttention(16, 4, batch_first=True)

        def forward(self, x):
            x = self.before(x)
            return self.attention(x, x, x)[0]

    model = Attention()
    made = sparse(model)
    assert list(made.layers) == ["before"]
    x = torch.randn(2, 3, 16)
    trained = model(x)
    model.eval()
    with torch.no_grad():
        torch.testing.assert_close(model(x), trained)


def bert():
    transformers = pytest.importorskip("transformers")
    config = transformers.BertConfig(
        vocab_size=50, hidden_size=16, num_hidden_layers=2, num_attention_heads=2, intermediate_size=32,
        max_position_embeddings=20, hidden_dropout_prob=0.0, attention_probs_dropout_prob=0.0, num_labels=3,
    )  # fmt: skip
    model = transformers.BertForSequenceClassification(config)
    return model, {"input_ids": torch.arange(24).view(2, 12), "labels": torch.tensor([0, 2])}


def vit():
    transformers = pytest.importorskip("transformers")
    config = transformers.ViTConfig(
        hidden_size=16, num_hidden_layers=2, num_attention_heads=2, intermediate_size=32, image_size=8, patch_size=4,
        hidden_dropout_prob=0.0, attention_probs_dropout_prob=0.0, num_labels=3,
    )  # fmt: skip
    model = transformers.ViTForImageClassification(config)
    return model, {"pixel_values": torch.randn(2, 3, 8, 8), "labels": torch.tensor([0, 2])}


def llama():
    transformers = pytest.importorskip("transformers")
    config = transformers.LlamaConfig(
        vocab_size=50, hidden_size=16, num_hidden_layers=2, num_attention_heads=2, num_key_value_heads=1, intermediate_size=32,
        max_position_embeddings=20, tie_word_embeddings=True,
    )  # fmt: skip
    ids = torch.arange(24).view(2, 12)
    return transformers.LlamaForCausalLM(config), {"input_ids": ids, "labels": ids}


@pytest.mark.parametrize("build", [bert, vit, llama])
@pytest.mark.parametrize("method", ["SET", "RigL", "DSB"])
def test_models_of_transformers(build, method):
    model, inputs = build()
    made = sparse(model, method=METHODS[method](), layout="shuffled_block(4, 4)", kernel=available()[-1])
    assert len(made.layers) >= 8
    if build is llama:
        assert "tied" in {row.layer: row.kernel for row in made.report().rows}["lm_head"]
    optimizer = torch.optim.AdamW(model.parameters(), lr=1e-2)
    made.attach(optimizer)
    model.train()
    losses = []
    for _ in range(9):
        loss = model(**inputs).loss
        loss.backward()
        optimizer.step()
        optimizer.zero_grad()
        losses.append(loss.item())
    assert made.last_update_step == 8
    assert losses[-1] < losses[0]
    model.eval()
    with torch.no_grad():
        logits = model(**inputs).logits
        ow.densify(model)
        torch.testing.assert_close(model(**inputs).logits, logits, rtol=1e-4, atol=1e-5)


def test_state_dicts_hold_no_dense_weight():
    model = mlp(width=64, dtype=torch.float32)
    made = sparse(model, sparsity=0.9)
    held = sum(t.numel() * t.element_size() for t in model.state_dict().values())
    dense = sum(module.pattern.mask().numel() * 4 for module in made.layers.values())
    assert held < 0.45 * dense
    assert not any("weight" in key for key in model.state_dict())


def test_many_layers_share_one_random_state_and_differ():
    model = nn.Sequential(*(nn.Linear(20, 20) for _ in range(4)))
    made = sparse(model, budget="uniform")
    masks = [module.pattern.mask() for module in made.layers.values()]
    assert not any(torch.equal(masks[0], other) for other in masks[1:])
