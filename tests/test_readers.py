"""Readers of image files and archives, on small made ones."""

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

from openwork.data import Cifar10, Cifar100, DataError, ImageFolder, Parquet
from openwork.data import cifar as cifar_module
from openwork.data.download import fetch, unpack


def encoded(array, kind="PNG"):
    file = io.BytesIO()
    Image.fromarray(array).save(file, kind)
    return file.getvalue()


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
