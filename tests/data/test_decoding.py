"""Pixels of image files: upright, in 8 bits, and what is refused by its name."""

import io
import zlib

import cv2
import numpy as np
import pytest
import simplejpeg
from conftest import raises
from PIL import Image

from gdrd_jax.data.decoding import decode

RNG = np.random.default_rng(0)
UPRIGHT = cv2.GaussianBlur(RNG.integers(256, size=(24, 40, 3), dtype=np.uint8), (0, 0), 3)
# As a camera stores what is seen upright, by orientation.
STORED = {
    1: UPRIGHT, 2: UPRIGHT[:, ::-1], 3: UPRIGHT[::-1, ::-1], 4: UPRIGHT[::-1], 5: UPRIGHT.swapaxes(0, 1),
    6: np.rot90(UPRIGHT), 7: np.rot90(UPRIGHT, 2).swapaxes(0, 1), 8: np.rot90(UPRIGHT, -1),
}  # fmt: skip


def encoded(image, kind, orientation=None, **how):
    buffer, exif = io.BytesIO(), Image.Exif()
    if orientation:
        exif[274] = orientation
    Image.fromarray(np.ascontiguousarray(image)).save(buffer, kind, exif=exif, **how)
    return buffer.getvalue()


def segment(kind, payload):
    return bytes([0xFF, kind]) + (len(payload) + 2).to_bytes(2, "big") + payload


OTHERS = {
    "nothing": b"",
    "comment": segment(0xFE, b"resized by an editor " * 9),
    "ICC profile": segment(0xE2, b"ICC_PROFILE\0\1\1" + bytes(60_000)),
    "XMP": segment(0xE1, b"http://ns.adobe.com/xap/1.0/\0<x:xmpmeta xmlns:x='adobe:ns:meta/'/>"),
    "XMP that says otherwise": segment(
        0xE1, b"http://ns.adobe.com/xap/1.0/\0<x><rdf:Description tiff:Orientation='3'/></x>"
    ),
    "several": segment(0xED, b"Photoshop 3.0\0" + bytes(900)) + segment(0xE2, b"MPF\0") + segment(0xFE, b"Exif"),
}


@pytest.mark.parametrize("others", OTHERS)
@pytest.mark.parametrize("orientation", STORED)
def test_a_jpeg_is_turned_wherever_its_exif_segment_lies(orientation, others):
    data = encoded(STORED[orientation], "JPEG", orientation, quality=95)
    at = data.index(b"\xff\xe1")
    for between in (data[:at] + OTHERS[others] + data[at:], data):
        found = decode(between, "x").astype(int)
        assert found.shape == UPRIGHT.shape and abs(found - UPRIGHT).mean() < 3


def test_orientation_in_xmp_alone_is_ignored_as_by_other_programs():
    data = encoded(UPRIGHT, "JPEG", quality=95)
    data = data[:2] + OTHERS["XMP that says otherwise"] + data[2:]
    np.testing.assert_array_equal(decode(data, "x"), simplejpeg.decode_jpeg(data, "RGB"))


@pytest.mark.parametrize("orientation", (0, 9, 77))
def test_an_orientation_that_does_not_exist_turns_nothing(orientation):
    found = decode(encoded(UPRIGHT, "JPEG", orientation, quality=95), "x").astype(int)
    assert abs(found - UPRIGHT).mean() < 3


@pytest.mark.parametrize("kind", ("PNG", "WEBP", "AVIF"))
@pytest.mark.parametrize("orientation", STORED)
def test_other_formats_are_turned_too(kind, orientation):
    how = {"PNG": {}, "WEBP": {"lossless": True}, "AVIF": {"quality": 100}}[kind]
    found = decode(encoded(STORED[orientation], kind, orientation, **how), "x").astype(int)
    assert found.shape == UPRIGHT.shape and abs(found - UPRIGHT).mean() < 2


@pytest.mark.parametrize("orientation", STORED)
def test_a_tiff_is_turned_once(orientation):
    buffer = io.BytesIO()
    Image.fromarray(np.ascontiguousarray(STORED[orientation])).save(buffer, "TIFF", tiffinfo={274: orientation})
    np.testing.assert_array_equal(decode(buffer.getvalue(), "x"), UPRIGHT)


@pytest.mark.parametrize("kind", ("GIF", "BMP", "PPM", "JPEG2000"))
def test_every_format_that_is_promised_is_decoded(kind):
    if kind == "GIF":
        gray = np.repeat(UPRIGHT[..., :1], 3, axis=2)
        np.testing.assert_array_equal(decode(encoded(gray[..., 0], kind), "x"), gray)
    else:
        np.testing.assert_array_equal(decode(encoded(UPRIGHT, kind), "x"), UPRIGHT)


RAMP = np.arange(4096, dtype=np.uint16).reshape(64, 64)  # 12 bits


def png(samples):
    return cv2.imencode(".png", samples)[1].tobytes()


def with_significant_bits(data, bits):
    return data[:33] + chunk(b"sBIT", bytes([bits])) + data[33:]  # after the signature and IHDR


@pytest.mark.parametrize("bits", (10, 12, 14))
def test_16_bit_images_of_cameras_with_fewer_bits_are_refused(bits):
    samples = np.minimum(RAMP * 4, (1 << bits) - 1).astype(np.uint16)
    with raises("image-16-bit-range", "x.png", f"{bits}-bit camera"):
        decode(png(samples), "x.png")
    with raises("image-16-bit-range", "x.tiff"):
        decode(cv2.imencode(".tiff", samples)[1].tobytes(), "x.tiff")


def test_16_bit_images_are_scaled_by_what_they_declare():
    expected = np.repeat(np.rint(RAMP * (255 / 4095)).astype(int)[..., None], 3, axis=2)
    assert abs(decode(with_significant_bits(png(RAMP), 12), "x").astype(int) - expected).max() <= 1
    pgm = b"P5 64 64 4095\n" + RAMP.astype(">u2").tobytes()
    assert abs(decode(pgm, "x").astype(int) - expected).max() <= 1
    buffer = io.BytesIO()
    Image.fromarray(RAMP).save(buffer, "TIFF", tiffinfo={281: 4095})
    assert abs(decode(buffer.getvalue(), "x").astype(int) - expected).max() <= 1


def chunk(kind, contents):
    return len(contents).to_bytes(4, "big") + kind + contents + zlib.crc32(kind + contents).to_bytes(4, "big")


@pytest.mark.parametrize("other", (chunk(b"tEXt", b"Comment\0sBIT\x10"), chunk(b"sBIT", b""), chunk(b"sBIT", b"\xff")))
def test_only_a_chunk_of_significant_bits_declares_them(other):
    data = png(RAMP)
    with raises("image-16-bit-range", "x.png"):
        decode(data[:33] + other + data[33:], "x.png")
    bright = png((RAMP * 16).astype(np.uint16))
    np.testing.assert_array_equal(decode(bright[:33] + other + bright[33:], "x"), decode(bright, "x"))


def test_a_declaration_that_the_samples_exceed_is_not_used():
    bright = (RAMP * 16).astype(np.uint16)
    np.testing.assert_array_equal(decode(with_significant_bits(png(bright), 12), "x")[..., 0], bright >> 8)
    np.testing.assert_array_equal(decode(png(bright), "x")[..., 0], bright >> 8)


def test_single_bright_pixels_and_borders_do_not_hide_few_bits():
    spotted, framed = RAMP.copy(), RAMP.copy()
    spotted[5, 5], framed[:12] = 65535, 65535
    pgm = b"P5 64 64 65535\n" + RAMP.astype(">u2").tobytes()
    color = b"P6 64 64 65535\n" + np.repeat(RAMP[..., None], 3, axis=2).astype(">u2").tobytes()
    for data in (png(spotted), png(framed), pgm, color):
        with raises("image-16-bit-range"):
            decode(data, "x")


def tiff(samples, **how):
    buffer = io.BytesIO()
    Image.fromarray(samples).save(buffer, "TIFF", **how)
    return buffer.getvalue()


@pytest.mark.parametrize("tags", ({50706: b"\x01\x04\0\0"}, {330: 8, 254: 1}))
def test_a_raw_file_is_not_read_as_its_thumbnail(tags):
    assert decode(tiff(UPRIGHT), "x.tif").shape == UPRIGHT.shape
    with raises("image-tiff-raw", "x.tif"):
        decode(tiff(UPRIGHT, tiffinfo=tags), "x.tif")


def test_tiffs_that_opencv_decodes_wrongly_are_refused():
    data = bytearray(tiff((RAMP * 16).astype(np.uint16)))
    entry = data.index((262).to_bytes(2, "little") + (3).to_bytes(2, "little"))
    assert decode(bytes(data), "x").max() == 255
    data[entry + 8] = 0  # white is 0
    with raises("image-tiff-white-is-zero"):
        decode(bytes(data), "x")
    cut = bytearray(tiff(UPRIGHT, compression="tiff_lzw"))
    cut[len(cut) // 3 : len(cut) // 3 + 40] = bytes(40)
    with raises("image-unreadable", "TIFF"):
        decode(bytes(cut), "x")


def test_a_pgm_of_few_levels_fills_8_bits():
    pgm = b"P5 8 8 100\n" + np.arange(64, dtype=np.uint8).tobytes()
    assert abs(decode(pgm, "x")[..., 0].astype(int) - np.arange(64).reshape(8, 8) * 2.55).max() <= 1
    assert decode(b"P1 2 1\n1 0", "x")[..., 0].tolist() == [[0, 255]]


def test_samples_of_unknown_range_are_refused():
    with raises("image-sample-type", "x.pfm", "float32"):
        decode(b"Pf\n8 8\n-1.0\n" + np.full((8, 8), 0.5, np.float32).tobytes(), "x.pfm")


@pytest.mark.parametrize(
    ("head", "code", "fact"),
    [
        (b"\0\0\0\x18ftypheic\0\0\0\0mif1heic", "image-format", "a HEIC image"),
        (b"\0\0\0\x18ftypmif1\0\0\0\0mif1heic", "image-format", "a HEIC image"),
        (b"\xff\x0a\x01\x02", "image-format", "a JPEG XL image"),
        (b"8BPS\0\x01", "image-format", "a Photoshop image"),
        (b"\0\0\0\x20ftypmif1\0\0\0\0mif1avifmiafMA1B", "image-unreadable", "the AVIF file"),
        (b"II*\0\x10\0\0\0CR\x02\0", "image-format", "a Canon raw image"),
        (b"\0\0\0\x1cftypavif\0\0\0\0avifmif1miaf", "image-unreadable", "the AVIF file"),
        (b"<!DOCTYPE html><html>", "image-unreadable", "a web page"),
        (b"version https://git-lfs.github.com/spec/v1\noid", "image-unreadable", "a Git LFS pointer"),
        (b'{"error": "rate limit"}', "image-unreadable", "a JSON message"),
        (b"", "image-unreadable", "empty"),
    ],
)
def test_what_is_not_decoded_is_named(head, code, fact):
    with raises(code, "a.jpg", fact):
        decode(head + bytes(40) * bool(head), "a.jpg")


def test_a_12_bit_jpeg_is_not_called_damaged():
    data = bytearray(simplejpeg.encode_jpeg(np.ascontiguousarray(UPRIGHT), colorspace="RGB"))
    data[data.index(b"\xff\xc0") + 4] = 12
    with raises("image-jpeg-kind", "x.jpg"):
        decode(bytes(data), "x.jpg")
