"""Reading images: any file that Pillow can decode safely becomes 8-bit RGB, the right way up.

HEIC needs the package pillow-heif, which is registered with Pillow when the first such file comes.

Letters: H W pixels.
"""

from __future__ import annotations

import functools
import io
import warnings
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import BinaryIO

import numpy as np
from numpy.typing import NDArray
from PIL import Image, UnidentifiedImageError

from vlformer_cli.types import VLFormerError, one_line

MAX_PIXELS = 178_956_970
"""Where Pillow itself refuses a picture as a decompression bomb, so that none of its global settings need touching."""

FORMATS = ("JPEG", "MPO", "PNG", "WEBP", "GIF", "BMP", "TIFF", "PPM", "JPEG2000", "AVIF", "HEIF")
"""What is tried; not EPS, for one, whose decoder runs Ghostscript on the file."""

CONVERT = "convert it to an 8-bit PNG or JPEG"

HEIF_BRANDS = (b"heic", b"heix", b"hevc", b"hevx", b"heim", b"heis", b"mif1", b"msf1")  # ISO/IEC 23008-12, annex B
"""Bytes 8 to 11 of HEIC files, after `ftyp`; the last two name AVIF files too."""

_TURNS = {
    2: Image.Transpose.FLIP_LEFT_RIGHT,
    3: Image.Transpose.ROTATE_180,
    4: Image.Transpose.FLIP_TOP_BOTTOM,
    5: Image.Transpose.TRANSPOSE,
    6: Image.Transpose.ROTATE_270,
    7: Image.Transpose.TRANSVERSE,
    8: Image.Transpose.ROTATE_90,
}  # EXIF orientation -> what undoes it
_MASK_MODES = ("1", "L", "P", "RGB", "I", "I;16")  # 16-bit grey is I or I;16, depending on Pillow's version
_EXIF_ORIENTATION = 0x0112
_SWAPS_SIDES = (5, 6, 7, 8)
_JPEG_STEPS = (8, 4, 2)  # how libjpeg can shrink while it decodes


def read_image(path: Path | str) -> NDArray[np.uint8]:
    """The picture in `path` as HW3 RGB, EXIF orientation applied; of several frames, the first.

    Grey and palette pictures are spread to RGB, transparent ones laid over white, CMYK is converted without a colour
    profile, and 16-bit grey is scaled by 1/257. Float and 32-bit pictures have no defined range and are refused.
    Raises VLFormerError, with path and remedy, for whatever cannot be read whole or has over `MAX_PIXELS` pixels.
    """
    with _opened(Path(path)) as image:
        return _upright(image)


def decode_image(data: bytes, name: str) -> NDArray[np.uint8]:
    """As `read_image`, of bytes from a pipe or a network; messages call them `name`."""
    with _decoded(io.BytesIO(data), name) as image:
        return _upright(image)


def read_at_least(path: Path | str, least: tuple[int, int]) -> tuple[NDArray[np.uint8], int, tuple[int, int]]:
    """As `read_image`, but a JPEG may be decoded at a half, a quarter or an eighth, no smaller than `least`.

    Returns the pixels, the step (each stands for step x step of the original's), and the original's height and width,
    upright as all else. Where the step does not divide them, the last row and column reach beyond the edge.
    """
    with _opened(Path(path)) as image:
        orientation, (width, height) = _orientation(image), image.size
        swaps = orientation in _SWAPS_SIDES
        step = _shrink_jpeg(image, least[::-1] if swaps else least, upright=orientation not in _TURNS)
        image.load()
        original = (width, height) if swaps else (height, width)
        return np.array(_turned(_to_rgb(image), orientation)), step, original


def _shrink_jpeg(image: Image.Image, least: tuple[int, int], *, upright: bool) -> int:
    """Asks the decoder of an opened JPEG for fewer pixels, no fewer than `least` as it is stored; returns the step."""
    width, height = image.size
    for step in _JPEG_STEPS if image.format in ("JPEG", "MPO") else ():
        is_enough = height // step >= least[0] and width // step >= least[1]
        # of a turned picture, the last row may come to be the first: only where it holds as much as the others
        if is_enough and (upright or height % step == width % step == 0):
            image.draft(None, (width // step, height // step))
            return step if image.size == (-(-width // step), -(-height // step)) else 1
    return 1


def image_size(path: Path | str) -> tuple[int, int]:
    """Height and width that `read_image` would return, mostly from the file's header alone; raises VLFormerError."""
    with _opened(Path(path)) as image:
        width, height = image.size
        return (width, height) if _orientation(image) in _SWAPS_SIDES else (height, width)


def refuse_other_size(path: Path, found: tuple[int, ...], stated: tuple[int, int]) -> None:
    """Raises VLFormerError where a picture's height and width are not what its data set says."""
    if found != stated:
        (height, width), (h, w) = found, stated
        raise VLFormerError(
            f"{path} is {width} x {height}, its data set says {w} x {h}: see `vlformer data check`, prepare it again"
        )


def read_mask(path: Path) -> NDArray[np.bool_]:
    """The mask in a PNG as boolean HW: True where grey, palette index or any of red, green and blue is not 0.

    EXIF is not applied. Raises VLFormerError for what is not a PNG, has an alpha channel, or cannot be read.
    """
    with _opened(path) as image:
        if image.format != "PNG" or image.mode not in _MASK_MODES:
            raise VLFormerError(f"{path} is a {image.format} of mode {image.mode}: save masks as 8-bit grey PNG")
        mask: NDArray[np.bool_] = np.asarray(image) != 0
        return mask if mask.ndim == 2 else np.asarray(mask.any(axis=2))


@contextmanager
def _opened(path: Path) -> Iterator[Image.Image]:
    """The picture, opened, and not decoded but for TIFFs; whatever Pillow raises inside becomes a VLFormerError."""
    _check_file(path)
    try:
        with path.open("rb") as file, _decoded(file, str(path)) as image:
            yield image
    except OSError as error:
        raise VLFormerError(f"{path} cannot be read ({error.strerror}): check the file and its permissions") from error


@contextmanager
def _decoded(file: BinaryIO, name: str) -> Iterator[Image.Image]:
    """As `_opened`, of an open file that messages call `name`."""
    try:
        with warnings.catch_warnings():
            # Only Pillow's warnings: if threads cross here, a filter may outlive the block, and this one does no harm.
            warnings.filterwarnings("ignore", module=r"PIL\.")
            with Image.open(file, formats=_formats(file)) as image:
                _check_pixels(name, image)
                if image.format == "TIFF":
                    image.load()  # Pillow turns TIFFs itself, but depending on its version only when they are loaded
                yield image
    except VLFormerError:
        raise
    except UnidentifiedImageError as error:
        raise VLFormerError(_unknown_format(file, name)) from error
    except Image.DecompressionBombError as error:
        raise VLFormerError(f"{name} has over {MAX_PIXELS:,} pixels: make it smaller") from error
    except Exception as error:  # decoders raise nearly anything on damaged bytes: struct.error, SyntaxError, IndexError
        why = one_line(error)
        raise VLFormerError(f"{name} cannot be read as a picture ({why}): fetch it again, or {CONVERT}") from error


def _formats(file: BinaryIO) -> list[str]:
    """The formats that are tried for a file."""
    Image.init()
    if _is_heif(file):
        _register_heif()
    return [name for name in FORMATS if name in Image.OPEN]


def _unknown_format(file: BinaryIO, name: str) -> str:
    if _is_heif(file) and not _register_heif():
        return f"{name} is a HEIC image: pip install 'vlformer[heic]', or {CONVERT}"
    formats = ", ".join(format for format in FORMATS if format in Image.OPEN)
    return f"{name} is not a picture of a known format ({formats}): {CONVERT}"


def _is_heif(file: BinaryIO) -> bool:
    file.seek(0)
    head = file.read(12)
    file.seek(0)
    return head[4:8] == b"ftyp" and head[8:] in HEIF_BRANDS


@functools.cache
def _register_heif() -> bool:
    """Whether Pillow can read HEIC now, by the extra `heic`."""
    try:
        from pillow_heif import register_heif_opener
    except ImportError:
        return False
    register_heif_opener()
    return True


def _upright(image: Image.Image) -> NDArray[np.uint8]:
    image.load()
    return np.array(_turned(_to_rgb(image), _orientation(image)))


def _check_file(path: Path) -> None:
    if path.is_dir():
        raise VLFormerError(f"{path} is a folder, not a picture: name a file in it")
    if not path.is_file():
        raise VLFormerError(f"{path} is not there: check the path")
    if path.stat().st_size == 0:
        raise VLFormerError(f"{path} is empty (0 bytes): fetch the picture again")


def _check_pixels(name: str, image: Image.Image) -> None:
    if image.width * image.height > MAX_PIXELS:
        raise VLFormerError(f"{name} has {image.width} x {image.height}, over {MAX_PIXELS:,} pixels: make it smaller")


def _orientation(image: Image.Image) -> int:
    try:
        return int(image.getexif().get(_EXIF_ORIENTATION, 1))
    except Exception:  # damaged EXIF is no reason to refuse a sound picture
        return 1


def _turned(image: Image.Image, orientation: int) -> Image.Image:
    return image.transpose(_TURNS[orientation]) if orientation in _TURNS else image


def _to_rgb(image: Image.Image) -> Image.Image:
    if image.mode == "F":
        raise ValueError("its pixels are floating-point numbers without a defined range")
    if image.mode == "I" or image.mode.startswith("I;16"):
        return _sixteen_bits(image)
    if image.has_transparency_data:
        white = Image.new("RGBA", image.size, "white")
        return Image.alpha_composite(white, image.convert("RGBA")).convert("RGB")
    return image.convert("RGB")


def _sixteen_bits(image: Image.Image) -> Image.Image:
    grey_HW = np.asarray(image).astype(np.int64)
    if grey_HW.min() < 0 or grey_HW.max() > 0xFFFF:
        raise ValueError("its pixels are 32-bit numbers without a defined range")
    return Image.fromarray(((grey_HW + 128) // 257).astype(np.uint8)).convert("RGB")  # 65535 = 255 * 257; rounded
