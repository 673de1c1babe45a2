"""Data: readers on small made files, augmentation against a loop, the order of batches."""

import hashlib
import io
import json
import tarfile

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest
import torch
from PIL import Image

from openwork.data import (
    BatchLoader,
    Cifar10,
    Cifar100,
    DataError,
    Digits,
    ImageFolder,
    Images,
    Parquet,
    normalise,
    pad_crop_flip,
)
from openwork.data import cifar as cifar_module
from openwork.data.download import fetch, unpack


def made_images(count=20, channels=3, size=8, classes=4):
    generator = torch.Generator().manual_seed(3)
    pixels = torch.randint(0, 256, (count, channels, size, size), dtype=torch.uint8, generator=generator)
    return Images(pixels, torch.arange(count) % classes, tuple("abcd"[:classes]))


def encoded(array, kind="PNG"):
    file = io.BytesIO()
    Image.fromarray(array).save(file, kind)
    return file.getvalue()


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


def made_cifar(tmp_path, monkeypatch, kind):
    """A small archive of the official form, and what is in it; returns (root, archive name, pixels, labels)."""
    archive = cifar_module.CIFAR10 if kind is Cifar10 else cifar_module.CIFAR100
    rng = np.random.default_rng(0)
    pixels = rng.integers(0, 256, (7, 3, 32, 32), dtype=np.uint8)
    labels = np.arange(7) % 3
    root = tmp_path / "data"
    root.mkdir()
    name = archive.url.rsplit("/", 1)[1]
    with tarfile.open(root / name, "w:gz") as tar:

        def add(file, content):
            info = tarfile.TarInfo(f"{archive.folder}/{file}")
            info.size = len(content)
            tar.addfile(info, io.BytesIO(content))

        add(archive.names, b"red\ngreen\nblue\n\n")
        for file in archive.files["train"] + archive.files["test"]:
            head = np.zeros((7, archive.label_bytes), np.uint8)
            head[:, -1] = labels
            add(file, np.hstack([head, pixels.reshape(7, -1)]).tobytes())
    sha256 = hashlib.sha256((root / name).read_bytes()).hexdigest()
    monkeypatch.setattr(kind, "archive", archive._replace(sha256=sha256))
    return root, name, torch.from_numpy(pixels), torch.from_numpy(labels)


@pytest.mark.parametrize("kind", [Cifar10, Cifar100])
def test_cifar_reads_the_binary_archive(tmp_path, monkeypatch, kind):
    root, _, pixels, labels = made_cifar(tmp_path, monkeypatch, kind)
    source = kind(str(root), download=False)
    test = source.load("test")
    assert torch.equal(test.pixels, pixels)
    assert torch.equal(test.labels, labels)
    assert test.classes == ("red", "green", "blue")
    files = len(source.archive.files["train"])
    assert torch.equal(source.load("train").labels, labels.repeat(files))


def test_cifar_refuses_an_archive_with_another_checksum(tmp_path, monkeypatch):
    root, name, _, _ = made_cifar(tmp_path, monkeypatch, Cifar10)
    (root / name).write_bytes((root / name).read_bytes() + b"\0")
    with pytest.raises(DataError, match=r"has SHA-256 .* expected"):
        Cifar10(str(root)).load("train")
    assert not (root / "cifar-10-batches-bin").exists()


def test_cifar_refuses_a_truncated_file(tmp_path, monkeypatch):
    root, _, _, _ = made_cifar(tmp_path, monkeypatch, Cifar10)
    Cifar10(str(root)).load("test")
    path = root / "cifar-10-batches-bin" / "test_batch.bin"
    path.write_bytes(path.read_bytes()[:-1])
    with pytest.raises(DataError, match="no positive multiple of a record's 3073"):
        Cifar10(str(root)).load("test")
    path.unlink()
    with pytest.raises(DataError, match=r"test_batch.bin is missing"):
        Cifar10(str(root)).load("test")


def test_cifar_without_archive_and_download_says_what_to_do(tmp_path):
    with pytest.raises(DataError, match=r"put https://www\.cs\.toronto\.edu/~kriz/cifar-10-binary\.tar\.gz at"):
        Cifar10(str(tmp_path), download=False).load("train")


def test_fetch_checks_what_it_downloads_and_leaves_nothing_behind(tmp_path):
    origin = tmp_path / "origin"
    origin.write_bytes(b"content")
    sha256 = hashlib.sha256(b"content").hexdigest()
    target = tmp_path / "sub" / "target"
    with pytest.raises(DataError, match="has SHA-256"):
        fetch(origin.as_uri(), target, "0" * 64)
    assert list(target.parent.iterdir()) == []
    assert fetch(origin.as_uri(), target, sha256).read_bytes() == b"content"
    with pytest.raises(DataError, match=r"could not download .* put the file at"):
        fetch((tmp_path / "missing").as_uri(), tmp_path / "other", sha256)


@pytest.mark.parametrize("name", ["../evil", "/tmp/openwork-evil", "set/../../evil"])
def test_unpack_refuses_to_write_outside_its_folder(tmp_path, name):
    archive = tmp_path / "set.tar.gz"
    with tarfile.open(archive, "w:gz") as tar:
        info = tarfile.TarInfo(name)
        info.size = 4
        tar.addfile(info, io.BytesIO(b"evil"))
    inside = tmp_path / "root"
    with pytest.raises(DataError):
        unpack(archive, inside / "set")
    assert list(inside.iterdir()) == []
    assert sorted(path.name for path in tmp_path.iterdir()) == ["root", "set.tar.gz"]


def made_parquet(path, column, cells, labels, names=None):
    image_type = pa.struct([("bytes", pa.binary()), ("path", pa.string())]) if isinstance(cells[0], dict) else pa.binary()
    table = pa.table({column: pa.array(cells, image_type), "label": pa.array(labels, pa.int64())})
    if names:
        info = {"info": {"features": {"label": {"names": names, "_type": "ClassLabel"}}}}
        table = table.replace_schema_metadata({"huggingface": json.dumps(info)})
    pq.write_table(table, path)


def test_parquet_reads_structs_over_several_files_with_class_names(tmp_path):
    pixels = np.random.default_rng(1).integers(0, 256, (5, 6, 4, 3), dtype=np.uint8)
    cells = [{"bytes": encoded(array), "path": None} for array in pixels]
    made_parquet(tmp_path / "train-00000.parquet", "img", cells[:3], [0, 1, 0], ["cat", "dog"])
    made_parquet(tmp_path / "train-00001.parquet", "img", cells[3:], [1, 1], ["cat", "dog"])
    images = Parquet(str(tmp_path)).load("train")
    assert torch.equal(images.pixels, torch.from_numpy(pixels).permute(0, 3, 1, 2))
    assert images.labels.tolist() == [0, 1, 0, 1, 1]
    assert images.classes == ("cat", "dog")


def test_parquet_reads_plain_bytes_and_grey_images(tmp_path):
    pixels = np.random.default_rng(1).integers(0, 256, (2, 6, 6), dtype=np.uint8)
    made_parquet(tmp_path / "test.parquet", "image", [encoded(array) for array in pixels], [2, 0])
    images = Parquet(str(tmp_path), channels=1).load("test")
    assert torch.equal(images.pixels, torch.from_numpy(pixels)[:, None])
    assert images.classes == ("0", "1", "2")


def test_parquet_errors_name_file_and_row(tmp_path):
    source = Parquet(str(tmp_path))
    with pytest.raises(DataError, match=r"holds no file named train\*\.parquet"):
        source.load("train")
    made_parquet(tmp_path / "train.parquet", "picture", [b"x"], [0])
    with pytest.raises(DataError, match=r"has columns \['picture', 'label'\], but none of \['img', 'image'\]"):
        source.load("train")
    small, large = np.zeros((4, 4, 3), np.uint8), np.zeros((4, 5, 3), np.uint8)
    made_parquet(tmp_path / "train.parquet", "img", [encoded(small), b"no image"], [0, 0])
    with pytest.raises(DataError, match=r"train\.parquet, row 1 is no readable image"):
        source.load("train")
    made_parquet(tmp_path / "train.parquet", "img", [encoded(small), encoded(large)], [0, 0])
    with pytest.raises(DataError, match=r"row 1 is \(4, 5\) .* set size"):
        source.load("train")
    assert Parquet(str(tmp_path), size=4).load("train").pixels.shape == (2, 3, 4, 4)


def test_image_folder_reads_classes_from_folders(tmp_path):
    pixels = np.random.default_rng(1).integers(0, 256, (3, 6, 6, 3), dtype=np.uint8)
    for name, file, array in [("b", "1.png", pixels[0]), ("a", "2.bmp", pixels[1]), ("a", "1.png", pixels[2])]:
        folder = tmp_path / "train" / name
        folder.mkdir(parents=True, exist_ok=True)
        (folder / file).write_bytes(encoded(array, file[2:].upper()))
    (tmp_path / "train" / "a" / "notes.txt").write_text("no image")
    images = ImageFolder(str(tmp_path)).load("train")
    assert images.classes == ("a", "b")
    assert images.labels.tolist() == [0, 0, 1]
    assert torch.equal(images.pixels, torch.from_numpy(pixels[[2, 1, 0]]).permute(0, 3, 1, 2))


def test_image_folder_scales_and_cuts_to_size(tmp_path):
    wide = np.zeros((10, 30, 3), np.uint8)
    wide[:, 10:20] = 200
    (tmp_path / "train" / "a").mkdir(parents=True)
    (tmp_path / "train" / "a" / "1.png").write_bytes(encoded(wide))
    images = ImageFolder(str(tmp_path), size=10).load("train")
    assert images.pixels.shape == (1, 3, 10, 10)
    assert (images.pixels == 200).all()


def test_image_folder_errors(tmp_path):
    with pytest.raises(DataError, match="holds no folder 'train'"):
        ImageFolder(str(tmp_path)).load("train")
    (tmp_path / "train" / "a").mkdir(parents=True)
    with pytest.raises(DataError, match="there are no images"):
        ImageFolder(str(tmp_path)).load("train")
    (tmp_path / "val" / "b").mkdir(parents=True)
    with pytest.raises(DataError, match=r"has classes \['b'\] that .* lacks"):
        ImageFolder(str(tmp_path)).load("test")
