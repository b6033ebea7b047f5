"""Images of every kind and in every state of damage; the cache; work ahead."""

import threading
import time
import zlib

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from PIL import Image
from pydicom.dataset import FileDataset, FileMetaDataset
from pydicom.uid import ExplicitVRLittleEndian, SecondaryCaptureImageStorage

from radflow.data.corpus import DataConfig, load_corpus
from radflow.data.prefetch import ImageCache, change_studies, decode, prefetch
from radflow.data.studies import Study, load_image

GREY = np.arange(64, dtype=np.uint8).reshape(8, 8) * 4


def study(*images, name="s1"):
    return Study(name, "p", "train", images, "Clear.", "Normal.")


def read(path):
    return np.asarray(load_image(path, study_id="s1"))


@pytest.mark.parametrize("mode", ["L", "RGB", "CMYK", "P", "1", "LA", "RGBA", "I;16"])
def test_every_mode_becomes_rgb(tmp_path, mode):
    path = tmp_path / ("x.tif" if mode == "CMYK" else "x.png")
    image = Image.fromarray(GREY.astype(np.uint16) * 256) if mode == "I;16" else Image.fromarray(GREY).convert(mode)
    image.save(path)
    pixels = read(path)
    assert pixels.shape == (8, 8, 3) and pixels.dtype == np.uint8
    if mode == "CMYK":  # ink: C = M = Y = 255 - grey, K = 0
        assert np.abs(pixels[..., 0].astype(int) - GREY).max() <= 1
    elif mode not in ("1", "I;16"):
        assert (pixels == GREY[..., None]).all()


def test_cmyk_jpeg_is_not_turned_over(tmp_path):
    # Pillow writes and reads CMYK JPEG as Adobe does, inverted; a reader unaware of it shows a negative
    path = tmp_path / "x.jpg"
    Image.fromarray(np.full((32, 32), 200, dtype=np.uint8)).convert("RGB").convert("CMYK").save(path, quality=95)
    assert abs(int(read(path)[16, 16, 0]) - 200) < 6


def damaged(path, how):
    Image.fromarray(GREY).resize((200, 200)).save(path)
    content = path.read_bytes()
    path.write_bytes({"truncated": content[:-60], "empty": b"", "no image": b"<html>not found</html>"}[how])


@pytest.mark.parametrize("suffix", [".jpg", ".png", ".dcm"])
@pytest.mark.parametrize("how", ["truncated", "empty", "no image"])
def test_damaged_files_are_named_with_their_study(tmp_path, suffix, how):
    path = tmp_path / f"x{suffix}"
    damaged(tmp_path / "x.png" if suffix == ".dcm" else path, how)
    if suffix == ".dcm":
        (tmp_path / "x.png").rename(path)
    with pytest.raises(ValueError, match=rf"study s1: image .*x{suffix} cannot be decoded"):
        load_image(path, study_id="s1")


def chunk(kind, data):
    return len(data).to_bytes(4) + kind + data + zlib.crc32(kind + data).to_bytes(4)


def test_a_small_file_that_unfolds_to_400_million_pixels_is_refused_unread(tmp_path):
    path = tmp_path / "bomb.png"
    header = (20000).to_bytes(4) + (20000).to_bytes(4) + bytes([8, 0, 0, 0, 0])
    packer = zlib.compressobj(1)
    rows = b"".join(packer.compress(bytes(20001)) for _ in range(20000)) + packer.flush()
    path.write_bytes(b"\x89PNG\r\n\x1a\n" + chunk(b"IHDR", header) + chunk(b"IDAT", rows) + chunk(b"IEND", b""))
    assert path.stat().st_size < 2_000_000
    began = time.perf_counter()
    with pytest.raises(ValueError, match=r"study s1: image .*bomb.png cannot be decoded"):
        load_image(path, study_id="s1")
    assert time.perf_counter() - began < 1  # decoding it takes several
    Image.new("1", (12000, 9000)).save(path)  # below what Pillow refuses, above what is sensible
    with pytest.raises(ValueError, match=r"expected at most 100,000,000 pixels, the file claims 12000 x 9000"):
        load_image(path, study_id="s1")


def test_links_in_a_circle_are_an_error_of_the_study(tmp_path):
    (tmp_path / "a.png").symlink_to(tmp_path / "b.png")
    (tmp_path / "b.png").symlink_to(tmp_path / "a.png")
    with pytest.raises(ValueError, match=r"study s1: image .*a.png"):
        load_image(tmp_path / "a.png", study_id="s1")
    with pytest.raises(ValueError, match=r"study s1: image .*a.png is not there"):
        ImageCache(tmp_path / "cache", 4).fetch(study(tmp_path / "a.png"), tmp_path / "a.png")


def dicom(path, levels, **tags):
    meta = FileMetaDataset()
    meta.MediaStorageSOPClassUID, meta.MediaStorageSOPInstanceUID = SecondaryCaptureImageStorage, "1.2.3"
    meta.TransferSyntaxUID = ExplicitVRLittleEndian
    dataset = FileDataset(path, {}, file_meta=meta, preamble=bytes(128))
    dataset.Rows, dataset.Columns = levels.shape[:2]
    dataset.SamplesPerPixel, dataset.PhotometricInterpretation = 1, "MONOCHROME2"
    dataset.BitsAllocated, dataset.BitsStored, dataset.HighBit = 16, 12, 11
    dataset.PixelRepresentation, dataset.PixelData = 0, levels.tobytes()
    for name, value in tags.items():
        setattr(dataset, name, value)
    dataset.save_as(path, enforce_file_format=True)
    return path


def test_dicom_window_by_hand(tmp_path):
    # centre 1000, width 401 (PS3.3 C.11.2.1.2.1): black up to 799.5, white from 1199.5, (x - 999.5) / 400 + 1/2 between
    levels = np.array([[700, 800, 900, 1000, 1100, 1199, 1300, 4095]], dtype=np.uint16)
    expected = [0, 0, 64, 128, 192, 255, 255, 255]
    path = dicom(tmp_path / "x.dcm", levels, WindowCenter=1000, WindowWidth=401)
    assert read(path)[0, :, 0].tolist() == expected
    path = dicom(
        tmp_path / "x.dcm", levels, WindowCenter=1000, WindowWidth=401, PhotometricInterpretation="MONOCHROME1"
    )
    assert read(path)[0, :, 0].tolist() == [255 - value for value in expected]
    # by its mark, without an ending
    assert read(path.rename(tmp_path / "x"))[0, 0, 0] == 255


def test_a_window_that_the_image_does_not_fill_is_not_stretched(tmp_path):
    # levels in the middle fifth of a wide window stay grey: 1638 of 0..4095 is 102 of 255
    levels = np.array([[1638, 2048, 2457]], dtype=np.uint16)
    shown = read(dicom(tmp_path / "x.dcm", levels, WindowCenter=2048, WindowWidth=4096))[0, :, 0]
    assert np.abs(shown.astype(int) - [102, 127, 153]).max() <= 1


def test_dicom_rescaled_before_the_window_and_stretched_without_one(tmp_path):
    levels = np.array([[0, 1000, 2000]], dtype=np.uint16)
    rescaled = {"RescaleSlope": 2, "RescaleIntercept": -1000, "WindowCenter": 1000, "WindowWidth": 4001}
    # values -1000, 1000, 3000 in a window of 1000 +- 2000
    shown = read(dicom(tmp_path / "x.dcm", levels, **rescaled))[0, :, 0]
    assert np.abs(shown.astype(int) - [0, 127, 255]).max() <= 1
    assert read(dicom(tmp_path / "y.dcm", levels))[0, :, 0].tolist() == [0, 128, 255]


def test_dicom_colour_of_an_ultrasound_and_several_frames(tmp_path):
    colours = np.stack([GREY, 255 - GREY, GREY // 2], axis=-1)
    eight = {"BitsAllocated": 8, "BitsStored": 8, "HighBit": 7}
    path = dicom(
        tmp_path / "x.dcm", colours, SamplesPerPixel=3, PhotometricInterpretation="RGB", PlanarConfiguration=0, **eight
    )
    assert (read(path) == colours).all()
    frames = np.zeros((8, 8), dtype=np.uint16)
    path = dicom(tmp_path / "y.dcm", frames, NumberOfFrames=2, PixelData=frames.tobytes() * 2)
    with pytest.raises(ValueError, match="expected one frame, got 2"):
        load_image(path, study_id="s1")
    with pytest.raises(ValueError, match=r"expected at most 100,000,000 pixels"):
        load_image(dicom(tmp_path / "z.dcm", frames, Rows=20000, Columns=20000), study_id="s1")


def test_cached_images_have_the_pixels_of_a_fresh_scaling_and_are_made_once(tmp_path, monkeypatch):
    rng = np.random.default_rng(0)
    colours = rng.integers(0, 256, (60, 40, 3), dtype=np.uint8)
    for name, pixels in (("grey", colours[..., 0]), ("colour", colours)):
        path = tmp_path / f"{name}.png"
        Image.fromarray(pixels).save(path)
        fresh = load_image(path, study_id="s1")
        fresh.thumbnail((24, 24), Image.Resampling.BICUBIC)
        cache = ImageCache(tmp_path / "cache", 24)
        copy = cache.fetch(study(path), path)
        assert Image.open(copy).mode == ("L" if name == "grey" else "RGB")
        assert (read(copy) == np.asarray(fresh)).all()
        written = copy.stat().st_mtime_ns
        assert cache.fetch(study(path), path) == copy and copy.stat().st_mtime_ns == written
        assert ImageCache(tmp_path / "cache", 16).fetch(study(path), path) != copy
        path.write_bytes(path.read_bytes() + b" ")  # another file of the same name
        assert cache.path_of(study(path), path) != copy


@pytest.mark.parametrize("workers", [0, 3])
def test_filling_the_cache_names_every_broken_image(tmp_path, workers):
    good = tmp_path / "good.png"
    Image.fromarray(GREY).save(good)
    damaged(tmp_path / "bad.png", "truncated")
    cache = ImageCache(tmp_path / "cache", 8)
    broken = [study(good, name="a"), study(tmp_path / "bad.png", name="b"), study(tmp_path / "gone.png", name="c")]
    with pytest.raises(ValueError, match=r"2 problems in 3 studies(.|\n)*study b: (.|\n)*study c: .* is not there"):
        change_studies(broken, cache.fetch, title="", workers=workers)
    (kept,) = change_studies([study(good, GREY)], cache.fetch, title="", workers=workers)
    assert (read(kept.images[0]) == GREY[..., None]).all() and kept.images[1] is GREY
    assert not list((tmp_path / "cache").rglob("*.tmp"))


def test_corpus_through_the_cache_is_the_corpus_without_it(tmp_path):
    lines = []
    for number, split in enumerate(("train", "train", "test")):
        Image.fromarray(np.roll(GREY, number)).resize((64, 80)).save(tmp_path / f"{number}.png")
        lines.append(f'{{"id": "s{number}", "images": ["{number}.png"], "findings": "Clear.", "split": "{split}"}}')
    (tmp_path / "m.jsonl").write_text("\n".join(lines))
    config = DataConfig(source="manifest", manifest=tmp_path / "m.jsonl", keep_size=32)
    inside = load_corpus(config, seed=0)
    outside = load_corpus(DataConfig(**{**vars(config), "cache_dir": tmp_path / "cache"}), seed=0)
    for one, other in zip((*inside.train, *inside.test), (*outside.train, *outside.test), strict=True):
        assert (one.images[0] == read(other.images[0])).all()
    assert inside.fingerprint == outside.fingerprint
    (tmp_path / "m.jsonl").write_text("\n".join(lines).replace("Clear.", "Dry.", 1))
    assert load_corpus(config, seed=0).fingerprint != inside.fingerprint
    with pytest.raises(ValueError, match=r"keep_size of at least 1 with data.cache_dir"):
        DataConfig(source="manifest", manifest=tmp_path / "m.jsonl", cache_dir=tmp_path)


@given(st.lists(st.integers(), max_size=20), st.integers(0, 4), st.integers(1, 9))
def test_work_ahead_keeps_the_order(items, workers, ahead):
    done = list(prefetch(items, lambda item: item * 2, workers=workers, ahead=ahead))
    assert done == [(item, item * 2) for item in items]


def test_work_ahead_is_bounded_and_its_errors_come_in_their_turn():
    taken, main = [], threading.get_ident()

    def endless():
        for number in range(10**9):
            assert threading.get_ident() == main
            taken.append(number)
            yield number

    def work(number):
        if number == 3:
            raise ValueError("study s3: broken")
        return threading.get_ident()

    results = prefetch(endless(), work, workers=2, ahead=5)
    for number in range(3):
        item, thread = next(results)
        assert item == number and thread != main and len(taken) <= number + 6
    with pytest.raises(ValueError, match="study s3"):
        next(results)


def test_a_decoded_study_gives_the_pixels_of_its_files(tmp_path):
    Image.fromarray(GREY.astype(np.uint16) * 16).save(tmp_path / "x.png")
    before = study(tmp_path / "x.png")
    after = decode(before)
    assert (after.images[0] == read(before.images[0])).all() and (read(after.images[0]) == after.images[0]).all()
