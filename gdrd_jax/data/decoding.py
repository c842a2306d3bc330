"""Image files: which format they are of, and their pixels, upright and in 8 bits."""

import io
import re

import cv2
import numpy as np
import simplejpeg
from PIL import Image

from gdrd_jax.utils.errors import GdrdError

HEAD_BYTES = 256  # enough for `image_format`
MAX_PIXELS = 1 << 27  # a header that claims more is taken for damaged
ORIENTATION = 274  # tag of EXIF and TIFF
# Tags of TIFF.
NEW_SUBFILE_TYPE, BITS_PER_SAMPLE, PHOTOMETRIC, MAX_SAMPLE_VALUE, SUB_IFDS, DNG_VERSION = 254, 258, 262, 281, 330, 50706
WHITE_IS_ZERO, LAB = 0, (8, 9, 10)  # values of PHOTOMETRIC
# A 16-bit image without a value above 14 bits holds samples of a camera with fewer bits, or is nearly black.
DARKEST_16_BIT, WHITE = 1 << 14, 65535

DECODED = {
    "JPEG": rb"\xff\xd8\xff",
    "PNG": rb"\x89PNG\r\n\x1a\n",
    "GIF": rb"GIF8[79]a",
    "BMP": rb"BM.{4}\0{4}",
    "WebP": rb"RIFF.{4}WEBP",
    "TIFF": rb"II[*+]\0|MM\0[*+]",
    "PNM": rb"P[1-6](\s|#[^\n]*\n)+\d+\s",
    "JPEG 2000": rb"\0\0\0\x0cjP  |\xff\x4f\xff\x51",
    "AVIF": rb".{4}ftyp(avi[fs]|mif1.{4}(.{4}){0,8}avif)",
}
NOT_DECODED = {
    "HEIC": rb".{4}ftyp(hei[cxms]|hev[cxms]|(mif[12]|msf1)(?!.{4}(.{4}){0,8}avi[fs]))",
    "JPEG XL": rb"\0\0\0\x0cJXL |\xff\x0a",
    "OpenEXR": rb"v/1\x01",
    "Radiance HDR": rb"#\?RADIANCE",
    "Photoshop": rb"8BPS",
    "Canon raw": rb".{4}ftypcrx |II\*\0.{4}CR",
    "DICOM": rb".{128}DICM",
}
# What a failed download may leave in place of an image.
DOWNLOADS = {
    "a web page": rb"\s*<(!doctype|html|\?xml)",
    "a Git LFS pointer": rb"version https://git-lfs",
    "a JSON message": rb"\s*[{\[]\s*[\"{\[\]}]",
}
FORMATS = {
    name: re.compile(pattern, re.DOTALL | re.IGNORECASE if name in DOWNLOADS else re.DOTALL)
    for name, pattern in (DECODED | NOT_DECODED | DOWNLOADS).items()
}


def image_format(head: bytes) -> str | None:
    """The image format of a file, a key of `DECODED` or `NOT_DECODED`, or None.

    Args:
      head: the first `HEAD_BYTES` bytes of the file, or all of them.
    """
    # What is not decoded comes first: a raw file of Canon begins as a TIFF.
    return next((name for name in (*NOT_DECODED, *DECODED) if FORMATS[name].match(head)), None)


def decode(data: bytes, name: object, channels: int = 3, maximum: int = 0) -> np.ndarray:
    """Decodes an image file, turned upright as its EXIF orientation says.

    JPEGs are decoded strictly: OpenCV and Pillow fill the missing part of a damaged JPEG with gray or garbage, and
    this function raises. Samples of more than 8 bits are scaled by the largest value that the file declares, such
    as the maximum of a PGM, or by `maximum`.

    Args:
      data: contents of the file.
      name: name of the file in errors.
      channels: 3 is RGB; gray images have three equal channels then, and transparency is left out. 1 is gray, and an
        image with colors is refused. 2 is gray and transparency, 4 is RGB and transparency, in whose place a file can
        have another modality, such as depth.
      maximum: sample of a 16-bit image, of 2 or 4 channels that of the last, that becomes 255, larger ones as well; 0
        scales by what the file declares.

    Returns:
      uint8 `[H, W, channels]`.

    Raises:
      GdrdError: not an image, a damaged one, a format that is not decoded here, 16-bit samples of unclear range, or
        other channels.
    """
    if data[:2] == b"\xff\xd8":
        image = _upright(_decode_jpeg(data, name), _jpeg_orientation(data))
        return image if channels == 3 else _pick_channels(image, channels, name)
    kind = image_format(data[:HEAD_BYTES])
    if kind in NOT_DECODED:
        raise GdrdError(f"{name} is a {kind} image, an unsupported format; convert it to JPEG or PNG", "image-format")
    try:
        header = Image.open(io.BytesIO(data))
        _check_size(*header.size, name)
        if kind == "PNM" and not (maximum and _pnm_maximum(data) > 255):  # OpenCV ignores the declared maximum
            image = _decode_pnm(header, data, name)
            return image if channels == 3 else _pick_channels(image, channels, name)
        if kind == "TIFF":
            _check_tiff(header, name)
            if header.mode in ("LA", "RGBA") and _bits(header) == 8:
                # OpenCV would multiply colors by the transparency.
                image = _upright(np.asarray(header.convert("RGBA")), _orientation(header))
                image = image if channels in (2, 4) else np.ascontiguousarray(image[..., :3])
                return image if channels in (3, 4) else _pick_channels(image, channels, name)
        # OpenCV does not turn images that it reads with their transparency.
        flags = cv2.IMREAD_COLOR | cv2.IMREAD_ANYDEPTH | cv2.IMREAD_IGNORE_ORIENTATION
        flags = cv2.IMREAD_UNCHANGED if channels in (2, 4) else flags
        image = cv2.imdecode(np.frombuffer(data, np.uint8), flags)
    except GdrdError:
        raise
    except Exception as error:  # Pillow and OpenCV raise whatever their parsers met
        raise GdrdError(_unreadable(data, kind, name), "image-unreadable") from error
    if image is None:
        raise GdrdError(_unreadable(data, kind, name), "image-unreadable")
    image = _in_8_bits(image, header, data, name, maximum)
    if channels in (2, 4):
        if image.ndim < 3 or image.shape[2] != 4:
            count = 1 if image.ndim < 3 else image.shape[2]
            raise GdrdError(
                f"{name} has {count} channel{'s' if count > 1 else ''} and {channels} are wanted; give files with "
                "transparency, in whose place the last channel is, or set config.task.channels",
                "image-channels",
            )
        image = cv2.cvtColor(image, cv2.COLOR_BGRA2RGBA)
    else:
        image = cv2.cvtColor(image, cv2.COLOR_BGR2RGB)
    if kind != "TIFF" or channels in (2, 4):  # OpenCV turns other TIFFs itself
        image = _upright(image, _orientation(header))
    return image if channels in (3, 4) else _pick_channels(image, channels, name)


def _pick_channels(image: np.ndarray, channels: int, name: object) -> np.ndarray:
    """Gray `[H, W, 1]` of `[H, W, 3]`, or gray and transparency `[H, W, 2]` of `[H, W, 4]`; refuses colors."""
    if channels in (2, 4) and image.shape[2] == 3:
        raise GdrdError(
            f"{name} has no transparency, so it has no channel {channels}; give PNG or TIFF files with {channels} "
            "channels, or set config.task.channels",
            "image-channels",
        )
    if (image[..., :2] != image[..., 1:3]).any():
        raise GdrdError(
            f"{name} has colors, and {'gray' if channels == 1 else 'gray and one more channel'} is wanted; set "
            "config.task.channels=3, or convert it to gray",
            "image-channels",
        )
    return np.ascontiguousarray(image[..., 2:] if channels == 2 else image[..., :1])


def _unreadable(data: bytes, kind: str | None, name: object) -> str:
    if kind:
        return f"{name} is not a readable image: the {kind} file is damaged or of an unsupported kind; replace it"
    if not data:
        return f"{name} is not a readable image: the file is empty; replace it or remove it"
    found = next((what for what in DOWNLOADS if FORMATS[what].match(data[:HEAD_BYTES])), None)
    what = f" but {found}; download it again" if found else "; replace it or remove it"
    return f"{name} is not a readable image{what}"


def _decode_jpeg(data: bytes, name: object) -> np.ndarray:
    try:
        height, width, *_ = simplejpeg.decode_jpeg_header(data)
        _check_size(width, height, name)
        return simplejpeg.decode_jpeg(data, "RGB", strict=True)
    except ValueError as error:
        if "unsupported" in str(error).lower():
            raise GdrdError(
                f"{name} is a JPEG of an unsupported kind ({error}); save it as 8-bit JPEG", "image-jpeg-kind"
            ) from error
        raise GdrdError(f"{name} is a damaged JPEG ({error}); replace it or remove it", "image-unreadable") from error


def _check_size(width: int, height: int, name: object) -> None:
    if width * height > MAX_PIXELS:
        raise GdrdError(
            f"{name} claims to have {width}x{height} pixels, more than any face needs; replace it or remove it",
            "image-too-large",
        )


def _in_8_bits(image: np.ndarray, header: Image.Image, data: bytes, name: object, maximum: int) -> np.ndarray:
    if image.dtype == np.uint8:
        return image
    if maximum and image.dtype == np.uint16:
        if image.ndim == 3 and image.shape[2] == 4:  # colors keep their own range
            colors = _in_8_bits(image[..., :3], header, data, name, 0)
            return np.concatenate([colors, _scaled(image[..., 3:], maximum)], axis=2)
        return _scaled(image, maximum)
    if image.dtype != np.uint16:
        raise GdrdError(f"{name} has {image.dtype} samples of unknown range; convert it to 8 bits", "image-sample-type")
    largest = int(image.max())
    declared = _declared_maximum(header, data)
    if declared and largest <= declared:
        return np.rint(image * (255 / declared)).astype(np.uint8)
    _check_range(image, name)
    return (image >> 8).astype(np.uint8)


def _scaled(image: np.ndarray, maximum: int) -> np.ndarray:
    """uint16 to uint8, `maximum` and more to 255."""
    return np.rint(image.clip(0, maximum) * (255 / maximum)).astype(np.uint8)


def _check_range(image: np.ndarray, name: object) -> None:
    """Refuses 16-bit samples that fill less than 14 bits, single bright pixels and a white border left aside."""
    inner = image[image < WHITE]
    bright = int(np.percentile(inner, 99)) if inner.size else WHITE
    if bright < DARKEST_16_BIT:
        raise GdrdError(
            f"{name} is a 16-bit image in which 99% of the values are at most {bright} of {WHITE}: it is nearly black, "
            f"or from a {max(bright.bit_length(), 8)}-bit camera; scale it to 8 bits, or, to train on it, set "
            "config.task.maximum to the largest value of the camera",
            "image-16-bit-range",
        )


def _decode_pnm(header: Image.Image, data: bytes, name: object) -> np.ndarray:
    image, maximum = np.asarray(header), _pnm_maximum(data)
    if image.dtype.itemsize == 1:  # Pillow scales colors to 8 bits, grays to 16
        image = np.asarray(header.convert("RGB"))
        if maximum == WHITE:
            _check_range(image.astype(np.uint16) * 257, name)
        return image
    if maximum == WHITE:
        _check_range(image, name)
    return np.repeat((image >> 8).astype(np.uint8)[..., None], 3, axis=2)


def _pnm_maximum(data: bytes) -> int:
    """The largest sample that a PNM file declares; 1 of a bitmap."""
    found = re.match(rb"P[2356](?:\s|#[^\n]*\n)+\d+\s+\d+\s+(\d+)", data)
    return int(found[1]) if found else 1


def _check_tiff(header: Image.Image, name: object) -> None:
    """Refuses TIFFs that OpenCV decodes wrongly without an error, and damage that it fills with garbage."""
    tags = header.tag_v2
    if DNG_VERSION in tags or (SUB_IFDS in tags and tags.get(NEW_SUBFILE_TYPE, 0) & 1):
        raise GdrdError(
            f"{name} is a raw file of a camera, and only its thumbnail could be read; convert it to JPEG",
            "image-tiff-raw",
        )
    if tags.get(PHOTOMETRIC) == WHITE_IS_ZERO and _bits(header) > 8:
        raise GdrdError(
            f"{name} is a TIFF of more than 8 bits that stores white as 0, which is not supported; convert it to PNG",
            "image-tiff-white-is-zero",
        )
    if tags.get(PHOTOMETRIC) in LAB:
        raise GdrdError(
            f"{name} is a TIFF in L*a*b* colors, which are not supported; convert it to RGB", "image-tiff-lab"
        )
    header.load()


def _bits(header: Image.Image) -> int:
    """Bits of a sample of a TIFF, the largest number of all its channels."""
    bits = header.tag_v2.get(BITS_PER_SAMPLE, (1,))
    return max(bits if isinstance(bits, tuple) else (bits,))


def _declared_maximum(header: Image.Image, data: bytes) -> int | None:
    """The largest sample that a 16-bit file declares: MaxSampleValue of a TIFF, or the bits in a PNG's sBIT chunk."""
    if header.format == "TIFF":
        values = header.tag_v2.get(MAX_SAMPLE_VALUE)
        return max(values) if isinstance(values, tuple) else values
    if header.format == "PNG":
        bits = max(_png_chunk(data, b"sBIT"), default=0)
        return (1 << bits) - 1 if bits <= 16 else None
    return None


def _png_chunk(data: bytes, wanted: bytes) -> bytes:
    """Contents of a PNG's first chunk of a type before its pixels; empty if there is none."""
    at = 8  # behind the signature; each chunk is its length, its type, its contents and a checksum
    while at + 8 <= len(data) and (kind := data[at + 4 : at + 8]) != b"IDAT":
        length = int.from_bytes(data[at : at + 4])
        if kind == wanted:
            return data[at + 8 : at + 8 + length]
        at += 12 + length
    return b""


def _jpeg_orientation(data: bytes) -> int:
    if b"Exif\0" not in data:  # the common case, at a hundredth of the cost of Pillow's parser
        return 1
    try:
        return _orientation(Image.open(io.BytesIO(data)))
    except Exception:  # Pillow raises whatever its parser met; the pixels are fine
        return 1


def _orientation(header: Image.Image) -> int:
    """The EXIF orientation, 1 to 8, wherever in the file its segment lies; 1 where there is none.

    The orientation in XMP, which other programs ignore, is ignored.
    """
    for key in ("xmp", "XML:com.adobe.xmp"):
        header.info.pop(key, None)
    try:
        return header.getexif().get(ORIENTATION, 1)
    except Exception:  # damaged EXIF, which other programs ignore, too
        return 1


def _upright(image: np.ndarray, orientation: int) -> np.ndarray:
    """Turns an image `[H, W, 3]` by its EXIF orientation; values other than 2 to 8 leave it as it is."""
    turned = {
        2: lambda: image[:, ::-1],
        3: lambda: image[::-1, ::-1],
        4: lambda: image[::-1],
        5: lambda: image.swapaxes(0, 1),
        6: lambda: np.rot90(image, -1),
        7: lambda: image[::-1, ::-1].swapaxes(0, 1),
        8: lambda: np.rot90(image),
    }.get(orientation)
    return np.ascontiguousarray(turned()) if turned else image
