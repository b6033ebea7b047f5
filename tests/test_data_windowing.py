"""Deep grey levels become 8 bits through a window; EXIF turns an image before anybody looks at it."""

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from PIL import Image

from radflow.data.corpus import DataConfig, load_corpus
from radflow.data.prefetch import decode_studies
from radflow.data.studies import load_image
from radflow.data.windowing import WindowConfig, eight_bit

LEVELS = np.array([[0, 1000, 2000, 3000, 65535]], dtype=np.uint16)


def grey(window: WindowConfig, levels: np.ndarray = LEVELS) -> list[int]:
    image = load_image(levels, study_id="s", window=window)
    assert image.mode == "RGB"
    return np.asarray(image)[0, :, 0].tolist()


def test_windows_by_hand():
    # the whole range: 65535 levels on 255, 1000 -> 3.9, 2000 -> 7.8, 3000 -> 11.7
    assert grey(WindowConfig()) == [0, 4, 8, 12, 255]
    # centre 2000, width 2000: 1000 -> 0, 2000 -> 127.5 -> 128, 3000 -> 255; what lies outside is clipped
    assert grey(WindowConfig(levels=(1000, 3000))) == [0, 0, 128, 255, 255]
    # the quarters of five pixels are the second and the fourth
    assert grey(WindowConfig(percentiles=(25, 75))) == [0, 0, 128, 255, 255]


def test_a_burnt_in_letter_does_not_darken_the_image():
    levels = np.full((100, 100), 1000, dtype=np.uint16)
    levels[:, 50:] = 2000
    levels[0, :5] = 65535
    dark = np.asarray(load_image(levels, study_id="s"))[50, :, 0]
    clear = np.asarray(load_image(levels, study_id="s", window=WindowConfig(percentiles=(1, 99))))[50, :, 0]
    assert dark[0] == 0 and dark[-1] == 4 and clear[0] == 0 and clear[-1] == 255


def test_windows_leave_8_bits_alone():
    pixels = np.arange(256, dtype=np.uint8).reshape(16, 16)
    assert np.array_equal(
        np.asarray(load_image(pixels, study_id="s", window=WindowConfig(levels=(3, 4))))[..., 0], pixels
    )


@given(st.lists(st.integers(0, 65535), min_size=1, max_size=40), st.integers(0, 99), st.integers(1, 100))
def test_a_window_keeps_the_order_of_grey_levels_and_reaches_both_ends(levels, low, width):
    window = WindowConfig(percentiles=(low, min(100, low + width)))
    image = np.array([levels], dtype=np.uint16)
    seen = grey(window, image)
    ordered = [seen[i] for i in np.argsort(image[0], kind="stable")]
    assert ordered == sorted(ordered)
    if len(set(levels)) > 1 and window == WindowConfig():
        assert min(seen) == 0 and max(seen) == 255


def test_one_grey_level_is_black_not_an_error():
    assert grey(WindowConfig(), np.full((1, 3), 700, dtype=np.uint16)) == [0, 0, 0]


def test_float_images_have_windows_too_and_no_numbers_are_refused():
    image = Image.fromarray(np.array([[-1.0, 0.0, 1.0]], dtype=np.float32))
    assert np.asarray(eight_bit(image, WindowConfig(levels=(-1, 1))))[0].tolist() == [0, 128, 255]
    with pytest.raises(ValueError, match=r"study s3: image array float32 .* \(some pixels are not finite numbers\)"):
        load_image(np.array([[np.nan, 1.0]], dtype=np.float32), study_id="s3")


@pytest.mark.parametrize(
    ("options", "said"),
    [
        ({"percentiles": (5, 5)}, "window.percentiles rising within 0 and 100, got 5 and 5"),
        ({"percentiles": (0, 101)}, "window.percentiles rising"),
        ({"levels": (2, 1)}, "window.levels rising, got 2 and 1"),
        ({"levels": (1, 2), "percentiles": (1, 99)}, "got both"),
    ],
)
def test_windows_that_cannot_be_are_refused(options, said):
    with pytest.raises(ValueError, match=said):
        WindowConfig(**options)


@pytest.mark.parametrize("keep_size", [0, 64])
def test_the_window_of_the_config_reaches_the_images_of_a_manifest(tmp_path, keep_size):
    Image.fromarray(np.repeat(LEVELS, 4, axis=0)).save(tmp_path / "deep.png")
    row = '{"id": "%s", "split": "%s", "images": ["deep.png"], "findings": "Clear."}'
    (tmp_path / "m.jsonl").write_text("\n".join(row % (split, split) for split in ("train", "test")))
    window = WindowConfig(levels=(1000, 3000))
    config = DataConfig(source="manifest", manifest=tmp_path / "m.jsonl", window=window, keep_size=keep_size)
    (study,) = decode_studies(load_corpus(config, seed=0).train)
    image = load_image(study.images[0], study_id=study.id, window=study.window)
    assert np.asarray(image)[0, :, 0].tolist() == [0, 0, 128, 255, 255]


# How a camera that was held this way stores an upright picture (EXIF 2.3, tag 0x0112).
STORED = {
    1: lambda a: a,
    2: np.fliplr,
    3: lambda a: np.rot90(a, 2),
    4: np.flipud,
    5: lambda a: a.T,
    6: lambda a: np.rot90(a, 1),
    7: lambda a: np.rot90(a.T, 2),
    8: lambda a: np.rot90(a, -1),
}


@pytest.mark.parametrize("orientation", STORED)
@pytest.mark.parametrize("dtype", [np.uint8, np.uint16])
def test_exif_orientation_is_applied(tmp_path, orientation, dtype):
    upright = (np.arange(12).reshape(3, 4) * 20).astype(dtype)
    exif = Image.Exif()
    exif[0x0112] = orientation
    Image.fromarray(np.ascontiguousarray(STORED[orientation](upright))).save(tmp_path / "a.png", exif=exif)
    seen = np.asarray(load_image(tmp_path / "a.png", study_id="s", window=WindowConfig()))[..., 0]
    assert np.array_equal(seen, upright if dtype == np.uint8 else (upright / 220 * 255).round())
