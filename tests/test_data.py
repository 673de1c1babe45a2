"""Augmentation against a loop, the order of batches, and what sources refuse."""

import pytest
import torch

from openwork.data import (
    BatchLoader,
    DataError,
    Digits,
    Images,
    normalise,
    pad_crop_flip,
)


def made_images(count=20, channels=3, size=8, classes=4):
    generator = torch.Generator().manual_seed(3)
    pixels = torch.randint(0, 256, (count, channels, size, size), dtype=torch.uint8, generator=generator)
    return Images(pixels, torch.arange(count) % classes, tuple("abcd"[:classes]))


def naive_pad_crop_flip(pixels, top, left, mirror, pad):
    out = torch.empty_like(pixels)
    _, channels, height, width = pixels.shape
    for n in range(len(pixels)):
        for c in range(channels):
            for i in range(height):
                for j in range(width):
                    x = width - 1 - j if mirror[n] else j
                    row, column = i + int(top[n]) - pad, x + int(left[n]) - pad
                    inside = 0 <= row < height and 0 <= column < width
                    out[n, c, i, j] = pixels[n, c, row, column] if inside else 0
    return out


@pytest.mark.parametrize("pad", [0, 1, 3])
def test_pad_crop_flip_against_a_loop_over_pixels(pad):
    pixels = torch.randint(0, 256, (6, 2, 5, 7), dtype=torch.uint8, generator=torch.Generator().manual_seed(0))
    top, left = torch.randint(0, 2 * pad + 1, (2, 6), generator=torch.Generator().manual_seed(1))
    mirror = torch.tensor([True, False, True, False, True, False])
    expected = naive_pad_crop_flip(pixels, top, left, mirror, pad)
    assert torch.equal(pad_crop_flip(pixels, top, left, mirror, pad), expected)


def test_normalisation_has_the_papers_constants():
    pixels = torch.full((1, 3, 1, 1), 255, dtype=torch.uint8)
    for preset, std in {"gse": (0.2470, 0.2435, 0.2616), "mest": (0.2023, 0.1994, 0.2010)}.items():
        expected = [(1 - m) / s for m, s in zip((0.4914, 0.4822, 0.4465), std, strict=True)]
        torch.testing.assert_close(normalise(pixels, preset).flatten(), torch.tensor(expected))


def test_normalisation_refuses_another_number_of_channels():
    with pytest.raises(ValueError, match="normalisation='gse' is for 3 channels, the images have 2"):
        normalise(torch.zeros(1, 2, 1, 1, dtype=torch.uint8), "gse")


def test_training_batches_hold_every_sample_at_most_once_and_name_it():
    images = made_images(22)
    source = Digits(normalisation="none", pad=0)
    loader = BatchLoader(images, source, 4, train=True, seed=5)
    ids = []
    for x, y, batch_ids in loader:
        torch.testing.assert_close(x, images.pixels[batch_ids].float() / 255)
        assert torch.equal(y, images.labels[batch_ids])
        ids += batch_ids.tolist()
    assert len(loader) == 5
    assert len(ids) == len(set(ids)) == 20
    assert ids != sorted(ids)


def test_epochs_differ_and_seeds_differ_and_both_repeat():
    def epochs(seed):
        loader = BatchLoader(made_images(), Digits(normalisation="none"), 20, train=True, seed=seed)
        return [next(iter(loader))[2].tolist() for _ in range(2)]

    first, second = epochs(0)
    assert first != second
    assert epochs(0) == [first, second]
    assert epochs(1)[0] != first


def test_evaluation_serves_everything_in_order_without_augmentation():
    images = made_images(22)
    loader = BatchLoader(images, Digits(normalisation="none", pad=2), 8, train=False)
    batches = list(loader)
    assert [len(y) for _, y, _ in batches] == [8, 8, 6]
    torch.testing.assert_close(torch.cat([x for x, _, _ in batches]), images.pixels.float() / 255)


@pytest.mark.parametrize("done", range(8))
def test_a_resumed_loader_continues_with_the_same_batches(done):
    def loader():
        return BatchLoader(made_images(), Digits(normalisation="none", pad=2), 6, train=True, seed=9)

    def endless(source):
        while True:
            yield from source

    whole = endless(loader())
    expected = [next(whole) for _ in range(12)]
    stopped = loader()
    before = endless(stopped)
    for _ in range(done):
        next(before)
    resumed = loader()
    resumed.load_state_dict(stopped.state_dict())
    after = endless(resumed)
    for x, y, ids in expected[done:]:
        again = next(after)
        assert torch.equal(again[0], x)
        assert torch.equal(again[1], y)
        assert torch.equal(again[2], ids)


def test_batches_leave_the_global_random_state_alone():
    state = torch.get_rng_state()
    list(BatchLoader(made_images(), Digits(normalisation="none", pad=2), 6, train=True))
    assert torch.equal(state, torch.get_rng_state())


def test_loader_refuses_bad_arguments():
    with pytest.raises(ValueError, match="batch_size=0 must be at least 1"):
        BatchLoader(made_images(), Digits(), 0, train=True)
    with pytest.raises(ValueError, match="batch_size=21 must be at most the number of training images, 20"):
        BatchLoader(made_images(), Digits(), 21, train=True)
    with pytest.raises(ValueError, match="position=3 is outside an epoch of 3 batches"):
        BatchLoader(made_images(), Digits(), 6, train=True).load_state_dict({"epoch": 0, "position": 3})


def test_images_refuse_a_label_without_a_class():
    with pytest.raises(DataError, match=r"labels lie in 0..3, but there are 2 classes"):
        Images(made_images().pixels, made_images().labels, ("a", "b"))


def test_source_refuses_bad_arguments():
    with pytest.raises(ValueError, match="normalisation='cifar' must be one of"):
        Digits(normalisation="cifar")
    with pytest.raises(ValueError, match="pad=-1 must not be negative"):
        Digits(pad=-1)
    with pytest.raises(ValueError, match="split='val' must be one of"):
        Digits().load("val")


def test_digits_are_split_once_and_for_all():
    train, test = Digits().load("train"), Digits().load("test")
    assert (len(train), len(test)) == (1437, 360)
    assert train.pixels.shape[1:] == (1, 8, 8)
    assert train.pixels.max() == 255
    assert len(set(test.labels.tolist())) == 10
    x = normalise(train.pixels, "digits")
    assert abs(float(x.mean())) < 0.01
    assert abs(float(x.std()) - 1) < 0.01
