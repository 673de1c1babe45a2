"""Forgetting events against a recount of whole histories; which examples stay, in what order, resumed and refused."""

import math
import random

import pytest
import torch
from torch.utils.data import DataLoader

from openwork.data import BatchLoader, DataEfficientSampler, Digits, ForgettingEvents, Images, expected_speedup


def recount(history):
    """(learning events, forgetting events, ever right, right at last) of one example's presentations in order."""
    learning = forgetting = 0
    before = False
    for now in history:
        learning += now and not before
        forgetting += before and not now
        before = now
    return learning, forgetting, any(history), before


def random_histories(count, epochs, seed):
    """Presentations by example; each has its own chance of being right, and some of 0 or 1."""
    rng = random.Random(seed)
    chances = [rng.choice([0.0, 1.0, rng.random()]) for _ in range(count)]
    return [[rng.random() < chance for _ in range(epochs)] for chance in chances]


def record_all(events, histories, batch, seed=0):
    """Present every example once an epoch, in a random order and in batches, the last of which may be small."""
    rng = random.Random(seed)
    for epoch in range(len(histories[0])):
        order = list(range(len(histories)))
        rng.shuffle(order)
        for start in range(0, len(order), batch):
            ids = order[start : start + batch]
            events.record_correct(torch.tensor(ids), torch.tensor([histories[i][epoch] for i in ids]))


@pytest.mark.parametrize(("count", "epochs", "batch"), [(1, 3, 1), (8, 5, 8), (37, 12, 5), (201, 9, 64)])
def test_events_against_a_recount_of_random_histories(count, epochs, batch):
    histories = random_histories(count, epochs, seed=count)
    events = ForgettingEvents(count)
    record_all(events, histories, batch)
    expected = [recount(history) for history in histories]
    assert events.learning.tolist() == [learning for learning, *_ in expected]
    assert events.forgetting.tolist() == [forgetting for _, forgetting, *_ in expected]
    assert events.learned.tolist() == [learned for *_, learned, _ in expected]
    assert events.right.tolist() == [last for *_, last in expected]
    assert events.n_unforgettable == sum(learned and not forgetting for _, forgetting, learned, _ in expected)
    assert events.n_never_learned == sum(not learned for *_, learned, _ in expected)
    assert events.difficulty.tolist() == [forgetting if learned else math.inf for _, forgetting, learned, _ in expected]
    counts = [forgetting for _, forgetting, learned, _ in expected if learned]
    assert events.histogram.tolist() == [counts.count(times) for times in range(256)]


def test_examples_that_a_batch_leaves_out_stay_as_they_were():
    histories = random_histories(50, 6, seed=1)
    events, rng, seen = ForgettingEvents(50), random.Random(2), [[] for _ in range(50)]
    for epoch in range(6):
        ids = rng.sample(range(50), 20)
        for i in ids:
            seen[i].append(histories[i][epoch])
        events.record_correct(torch.tensor(ids, dtype=torch.int32), torch.tensor([seen[i][-1] for i in ids]))
    expected = [recount(history) for history in seen]
    assert [(*row, bool(row[0])) for row in zip(events.learning.tolist(), events.forgetting.tolist(), strict=True)] == [
        (learning, forgetting, learned) for learning, forgetting, learned, _ in expected
    ]
    assert events.right.tolist() == [last for *_, last in expected]


def test_counts_stop_at_255_and_the_bit_goes_on():
    events = ForgettingEvents(3)
    for presentation in range(2 * 300 + 1):
        right = presentation % 2 == 0
        events.record_correct(torch.tensor([2, 0]), torch.tensor([right, False]))
        assert events.forgetting.tolist() == [0, 0, min(255, (presentation + 1) // 2)]
        assert events.right.tolist() == [False, False, right]
    assert events.learning.tolist() == [0, 0, 256]
    assert events.difficulty.tolist() == [math.inf, math.inf, 255]
    assert events.histogram[255] == events.histogram.sum() == 1


def test_scores_are_right_where_the_target_has_the_largest():
    events = ForgettingEvents(4)
    scores = torch.tensor([[0.1, 0.9], [0.8, 0.2], [0.3, 0.7]], requires_grad=True)
    events.record(torch.tensor([3, 0, 1]), scores, torch.tensor([1, 1, 1]))
    assert events.right.tolist() == [False, True, False, True]
    events.record(torch.tensor([1, 3]), -scores[:2], torch.tensor([1, 1]))
    assert events.right.tolist() == [False, False, False, True]
    assert events.forgetting.tolist() == [0, 1, 0, 0]


def test_an_example_takes_a_byte_and_a_bit():
    state = ForgettingEvents(50_000).state_dict()
    assert sum(part.numel() * part.element_size() for part in state.values()) == 50_000 + 6_250


def test_events_resume_anywhere(tmp_path):
    histories = random_histories(21, 8, seed=4)
    whole, first = ForgettingEvents(21), ForgettingEvents(21)
    record_all(whole, histories, 4)
    record_all(first, [history[:3] for history in histories], 4)
    torch.save(first.state_dict(), tmp_path / "events.pt")
    resumed = ForgettingEvents(21)
    resumed.load_state_dict(torch.load(tmp_path / "events.pt", weights_only=True))
    # What was saved is a copy, not a view.
    first.record_correct(torch.arange(21), torch.zeros(21, dtype=torch.bool))
    record_all(resumed, [history[3:] for history in histories], 4)
    assert torch.equal(resumed.learning, whole.learning)
    assert torch.equal(resumed.forgetting, whole.forgetting)
    assert torch.equal(resumed.right, whole.right)


YES = torch.ones(2, dtype=torch.bool)


@pytest.mark.parametrize(
    ("ids", "correct", "message"),
    [
        (torch.tensor([0, 5]), YES, r"ids lie in 0\.\.5, allowed are 0\.\.4"),
        (torch.tensor([-1, 2]), YES, r"ids lie in -1\.\.2"),
        (torch.tensor([3, 3]), YES, "ids names example 3 twice"),
        (torch.tensor([0.0, 1.0]), YES, r"ids must be integers \[N\], got torch.float32"),
        (torch.tensor([[0, 1]]), YES, r"ids must be integers \[N\]"),
        (torch.tensor([0, 1, 2]), YES, r"correct must be bool \[3\] as ids are, got torch.bool \(2,\)"),
        (torch.tensor([0, 1]), torch.ones(2), r"correct must be bool \[2\]"),
    ],
)
def test_events_refuse_a_bad_batch_and_count_nothing(ids, correct, message):
    events = ForgettingEvents(5)
    with pytest.raises(ValueError, match=message):
        events.record_correct(ids, correct)
    assert events.n_never_learned == 5


def test_events_refuse_bad_sizes_shapes_and_states():
    for size in (0, -3, 2.0, True):
        with pytest.raises(ValueError, match=r"n_examples=.* must be a whole number of at least 1"):
            ForgettingEvents(size)
    events = ForgettingEvents(5)
    with pytest.raises(ValueError, match=r"scores and targets must have shapes .* got \(2,\) and \(2,\)"):
        events.record(torch.tensor([0, 1]), torch.zeros(2), torch.zeros(2))
    events.record_correct(torch.tensor([4]), torch.tensor([True]))
    before = events.state_dict()
    for bad, message in (
        ({}, r"counts of the state must be uint8 \(5,\) for 5 examples, got None"),
        ({"counts": torch.zeros(5, dtype=torch.uint8)}, "right of the state"),
        (ForgettingEvents(6).state_dict(), r"counts of the state must be .* got torch.uint8 \(6,\)"),
        ({"counts": torch.zeros(5), "right": before["right"]}, "got torch.float32"),
    ):
        with pytest.raises(ValueError, match=message):
            events.load_state_dict(bad)
    assert all(torch.equal(before[name], part) for name, part in events.state_dict().items())


NEVER = None


def events_with(counts):
    """Events in which example ``i`` was forgotten ``counts[i]`` times, or never learned."""
    events = ForgettingEvents(len(counts))
    for presentation in range(2 * max(count or 0 for count in counts) + 1):
        right = [count is not NEVER and (presentation % 2 == 0 or presentation > 2 * count) for count in counts]
        events.record_correct(torch.arange(len(counts)), torch.tensor(right))
    assert events.difficulty.tolist() == [math.inf if count is NEVER else count for count in counts]
    return events


COUNTS = [0, 2, NEVER, 1, 0, 3, NEVER, 1, 0, 2]


def kept(counts=COUNTS, **choice):
    sampler = DataEfficientSampler(events_with(counts), 1, **choice)
    ids = sorted(sampler.order(1).tolist())
    assert sampler.removed == len(counts) - len(ids)
    assert len(sampler) == len(ids)
    return ids


@pytest.mark.parametrize(
    ("choice", "expected"),
    [
        ({"threshold": 0}, [1, 2, 3, 5, 6, 7, 9]),
        ({"threshold": 1}, [1, 2, 5, 6, 9]),
        ({"threshold": 2}, [2, 5, 6]),
        ({"threshold": 254}, [2, 6]),
        ({"remove": 2}, [1, 2, 3, 5, 6, 7, 8, 9]),
        ({"remove": 4}, [1, 2, 5, 6, 7, 9]),
        ({"remove": 6}, [2, 5, 6, 9]),
        # Nine are asked for, but two of ten were never learned.
        ({"remove": 9}, [2, 6]),
        ({"threshold": 2, "at_least": 4}, [2, 5, 6, 9]),
        ({"remove": 9, "at_least": 10}, list(range(10))),
    ],
)
def test_which_examples_stay_by_hand(choice, expected):
    assert kept(**choice) == expected


def test_one_example_stays_even_where_all_are_easy():
    assert kept([0, 0, 1, 0], threshold=1) == [2]


def test_nothing_goes_where_nothing_was_learned():
    assert kept([NEVER] * 4, remove=3) == kept([NEVER] * 4, threshold=254) == [0, 1, 2, 3]


def test_the_choice_is_made_once_from_the_events_of_the_first_phase():
    events = events_with([0, 0, 1, NEVER])
    sampler = DataEfficientSampler(events, 2, threshold=0)
    for _ in range(2):
        assert sorted(sampler) == [0, 1, 2, 3]
        assert not sampler.selected
    # Everything counted until then matters: example 0 is forgotten in the last epoch.
    events.record_correct(torch.tensor([0]), torch.tensor([False]))
    assert sorted(sampler) == [0, 2, 3]
    events.record_correct(torch.arange(4), torch.tensor([True, False, True, True]))
    assert sorted(sampler) == [0, 2, 3]
    assert sampler.removed == 1


def test_epochs_and_seeds_differ_and_repeat_without_the_global_random_state():
    def orders(seed):
        sampler = DataEfficientSampler(events_with(COUNTS * 4), 2, threshold=0, seed=seed)
        return [list(sampler) for _ in range(4)]

    state = torch.get_rng_state()
    first = orders(0)
    assert torch.equal(state, torch.get_rng_state())
    assert [len(order) for order in first] == [40, 40, 28, 28]
    assert first[0] != first[1]
    assert first[2] != first[3]
    assert sorted(first[2]) == sorted(first[3])
    assert orders(0) == first
    assert orders(1)[0] != first[0]


@pytest.mark.parametrize("done", [0, 1, 9, 10, 13, 19, 20, 21, 26, 27, 33])
def test_a_resumed_sampler_continues_with_the_same_ids(done, tmp_path):
    def endless(sampler):
        while True:
            yield from sampler

    def sampler():
        return DataEfficientSampler(events_with(COUNTS), 2, threshold=0, seed=3)

    whole = endless(sampler())
    expected = [next(whole) for _ in range(40)]
    stopped = sampler()
    ids = endless(stopped)
    for _ in range(done):
        next(ids)
    torch.save(stopped.state_dict(), tmp_path / "sampler.pt")
    resumed = sampler()
    resumed.load_state_dict(torch.load(tmp_path / "sampler.pt", weights_only=True))
    if resumed.selected:
        # What stays comes from the state, whatever has been counted since.
        resumed.events.record_correct(torch.arange(10), torch.zeros(10, dtype=torch.bool))
    after = endless(resumed)
    assert [next(after) for _ in range(40 - done)] == expected[done:]


def test_in_a_data_loader_of_torch():
    events = ForgettingEvents(10)
    sampler = DataEfficientSampler(events, 2, remove=3)
    loader = DataLoader(range(10), batch_size=4, sampler=sampler)
    sizes = []
    for _ in range(3):
        for ids in loader:
            events.record_correct(ids, ids < 5)
            sizes.append(len(ids))
    assert sizes == [4, 4, 2, 4, 4, 2, 4, 3]
    assert sorted(i for ids in loader for i in ids.tolist()) == [3, 4, 5, 6, 7, 8, 9]
    assert len(loader) == 2


def test_an_epoch_that_was_broken_off_goes_on_unless_another_is_set():
    sampler = DataEfficientSampler(events_with(COUNTS), 2, threshold=0)
    ids = iter(sampler)
    first = [next(ids) for _ in range(4)]
    sampler.set_epoch(0)
    assert sorted(first + list(sampler)) == list(range(10))
    sampler.set_epoch(3)
    assert len(list(sampler)) == 7
    assert (sampler.epoch, sampler.position) == (4, 0)
    with pytest.raises(ValueError, match="epoch=-1 must be a whole number of at least 0"):
        sampler.set_epoch(-1)


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        ({"threshold": 0, "remove": 3}, "exactly one of threshold and remove must be given, got threshold=0, remove=3"),
        ({}, "exactly one of threshold and remove must be given"),
        ({"start": 0, "threshold": 0}, "start=0 must be a whole number of epochs, at least 1"),
        ({"start": 1.5, "threshold": 0}, "start=1.5 must be a whole number"),
        ({"threshold": -1}, "threshold=-1 must be a whole number from 0 to 254"),
        ({"threshold": 255}, "threshold=255 must be .* counts stop at 255"),
        ({"threshold": True}, "threshold=True must be"),
        ({"remove": 0}, "remove=0 must be a whole number of at least 1"),
        ({"remove": 10}, "remove=10 must be less than the number of training examples, 10"),
        ({"remove": 0.3}, "remove=0.3 must be a whole number"),
        ({"threshold": 0, "at_least": 0}, "at_least=0 must be a whole number from 1 to the number of training examples, 10"),
        ({"threshold": 0, "at_least": 11}, "at_least=11 must be"),
        ({"threshold": 0, "seed": "a"}, "seed='a' must be a whole number"),
    ],
)
def test_sampler_refuses_bad_arguments(arguments, message):
    with pytest.raises(ValueError, match=message):
        DataEfficientSampler(ForgettingEvents(10), **{"start": 1, **arguments})
    with pytest.raises(TypeError, match="events=10 must be a ForgettingEvents"):
        DataEfficientSampler(10, 1, threshold=0)


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"position": 7}, "position=7 of the state is outside an epoch of 7 examples"),
        ({"position": -1}, "position=-1 of the state is outside"),
        ({"epoch": -1}, "epoch and position of the state must be whole numbers of at least 0, got -1, 2"),
        ({"epoch": None}, "epoch and position of the state must be"),
        ({"kept": None}, "epoch=3, position=2, but not what stays from epoch 2 on"),
        ({"kept": torch.ones(9, dtype=torch.bool)}, r"kept of the state must be None or bool \(10,\)"),
        ({"kept": torch.zeros(10, dtype=torch.bool)}, "with an example that stays"),
    ],
)
def test_sampler_refuses_a_bad_state_and_stays_as_it_was(change, message):
    good = DataEfficientSampler(events_with(COUNTS), 2, threshold=0)
    good.set_epoch(3)
    ids = iter(good)
    next(ids), next(ids)
    assert (good.epoch, good.position) == (3, 2)
    sampler = DataEfficientSampler(events_with(COUNTS), 2, threshold=0)
    with pytest.raises(ValueError, match=message):
        sampler.load_state_dict({**good.state_dict(), **change})
    assert (sampler.epoch, sampler.position, sampler.selected) == (0, 0, False)


def images(count):
    return Images(torch.zeros(count, 1, 2, 2, dtype=torch.uint8), torch.zeros(count, dtype=torch.int64), ("only",))


def test_a_batch_loader_with_a_sampler_is_the_same_until_examples_go():
    source = Digits(normalisation="none")
    sampler = DataEfficientSampler(events_with(COUNTS), 2, threshold=0, at_least=3, seed=5)
    plain = BatchLoader(images(10), source, 3, train=True, seed=5)
    loader = BatchLoader(images(10), source, 3, train=True, seed=5, selection=sampler)
    for _ in range(2):
        assert len(loader) == 3
        assert [ids.tolist() for *_, ids in loader] == [ids.tolist() for *_, ids in plain]
    batches = [ids for *_, ids in loader]
    assert torch.cat(batches).tolist() == sampler.order(2)[:6].tolist()
    assert len(loader) == len(batches) == 2
    assert (loader.epoch, loader.position) == (3, 0)


def test_a_batch_loader_refuses_a_sampler_that_does_not_fit():
    source, sampler = Digits(), DataEfficientSampler(ForgettingEvents(10), 1, threshold=0, at_least=4)
    with pytest.raises(ValueError, match="selection is for 10 examples, there are 11 training images"):
        BatchLoader(images(11), source, 3, train=True, selection=sampler)
    with pytest.raises(ValueError, match="selection keeps at_least=4 images, but an epoch needs one batch of 5"):
        BatchLoader(images(10), source, 5, train=True, selection=sampler)
    with pytest.raises(ValueError, match="selection must be None where train=False"):
        BatchLoader(images(10), source, 3, train=False, selection=sampler)


def test_expected_speedup_has_the_papers_numbers():
    assert expected_speedup(0.30, 70, 160) == pytest.approx(1.203, abs=5e-4)
    assert expected_speedup(0.24, 70, 160) == pytest.approx(1.156, abs=5e-4)
    assert expected_speedup(0.5, 0, 1) == 2
    assert expected_speedup(0.5, 3, 3) == expected_speedup(0.0, 1, 3) == 1
    # By counting: 10 epochs, half of 100 examples gone after 4.
    assert expected_speedup(0.5, 4, 10) == pytest.approx(1000 / (4 * 100 + 6 * 50))
    for bad, message in (
        ((1.0, 1, 2), "share=1.0"),
        ((0.5, 3, 2), "start=3 must lie between 0 and epochs=2"),
        ((0.5, 0, 0), "start"),
    ):
        with pytest.raises(ValueError, match=message):
            expected_speedup(*bad)
