"""What is opened as an image, and what is not."""

import io
import os
import struct
import zlib

import numpy as np
import pytest
from PIL import Image, ImageFile

from can_jax.data.decoding import decode
from can_jax.data.decoding import open_image as images
from can_jax.data.index.examine import why_undecodable
from tests.data.samples import encode, random_image

PIXELS = random_image(np.random.default_rng(0), 12, 9)
LIMIT = 1000
KINDS = ("png", "jpeg", "webp", "gif", "bmp", "tiff", "ppm", "jpeg2000")


def opened(content, *limit):
    """The pixels of an image file that is opened and decoded."""
    with images.open_image(content, *limit) as image:
        return np.asarray(image)


@pytest.mark.parametrize("kind", [*KINDS, "ico"])
def test_formats_of_photographs_are_read(kind):
    content = encode(PIXELS, kind)
    with images.open_image(content) as image:
        assert image.format in images.FORMATS
    assert not why_undecodable(content, LIMIT, whole=True)


@pytest.mark.parametrize(
    "kind", ["eps", "pdf", "sgi", "tga", "pcx", "icns", "msp", "im", "spider", "dds", "xbm"]
)
def test_other_formats_are_not_opened(kind):
    buffer = io.BytesIO()
    mode = {"msp": "1", "xbm": "1", "spider": "F"}.get(kind, "RGB")
    Image.new(mode, (16, 16)).save(buffer, kind)
    with pytest.raises(ValueError, match="cannot identify the format as one of JPEG, PNG"):
        opened(buffer.getvalue())
    assert why_undecodable(buffer.getvalue(), LIMIT, whole=True)


def test_postscript_starts_no_program(tmp_path, monkeypatch):
    ran = tmp_path / "ran"
    (tmp_path / "gs").write_text(f"#!/bin/sh\ntouch {ran}\n")
    (tmp_path / "gs").chmod(0o755)
    monkeypatch.setenv("PATH", str(tmp_path), prepend=os.pathsep)
    text = b"%!PS-Adobe-3.0 EPSF-3.0\n%%BoundingBox: 0 0 10 10\n%%EndComments\nshowpage\n"
    for content in (
        text,
        b"\xc5\xd0\xd3\xc6" + struct.pack("<6I", 30, len(text), 0, 0, 0, 0) + text,
    ):
        with pytest.raises(ValueError, match="cannot identify"):
            decode.pillow_pixels(content, 3, LIMIT, True)
        assert decode.orientation(content) == 1
        assert why_undecodable(content, LIMIT, whole=False)
    assert not ran.exists()


def large(kind):
    return encode(np.zeros((40, 40, 3), np.uint8), kind)


@pytest.mark.parametrize("kind", KINDS)
def test_too_many_pixels_are_refused_before_they_are_decoded(kind, monkeypatch):
    content = large(kind)
    monkeypatch.setattr(ImageFile.ImageFile, "load", lambda *_: pytest.fail("decoded"))
    with pytest.raises(ValueError, match="40 x 40 pixels, more than the limit of 1000"):
        opened(content, LIMIT)
    assert decode.orientation(content, LIMIT) == 1


@pytest.mark.parametrize("inner", ["png", "bmp"])
def test_icon_of_another_size_than_its_list_states_is_refused(inner):
    content = large(inner)[0 if inner == "png" else 14 :]
    if inner == "bmp":
        content = content[:8] + struct.pack("<i", 80) + content[12:]
    entry = struct.pack("<4B2H2I", 16, 16, 0, 0, 1, 32, len(content), 22)
    with pytest.raises(ValueError, match="40 x 40 pixels, more than the limit of 1000"):
        opened(struct.pack("<3H", 0, 1, 1) + entry + content, LIMIT)


def test_canvas_of_a_webp_is_compared_before_it_is_reserved():
    frame = encode(PIXELS, "webp")[12:]
    header = b"VP8X" + struct.pack("<I", 10) + b"\2\0\0\0" + b"\xff\xff\0" * 2
    body = b"WEBP" + header + frame
    with pytest.raises(ValueError, match="65536 x 65536 pixels"):
        opened(b"RIFF" + struct.pack("<I", len(body)) + body)


def test_text_is_limited():
    chunk = zlib.compress(bytes(2**21))
    text = b"zTXt" + b"k\0\0" + chunk
    piece = struct.pack(">I", len(text) - 4) + text + struct.pack(">I", zlib.crc32(text))
    png = encode(PIXELS)
    with pytest.raises(ValueError, match="MAX_TEXT"):
        opened(png[:33] + piece + png[33:])
    gif = encode(PIXELS, "gif")
    end = 13 + 3 * 2 ** (gif[10] % 8 + 1)
    comment = b"!\xfe" + (b"\xff" + b"a" * 255) * 5000 + b"\0"
    with pytest.raises(ValueError, match="bytes of text before its first image"):
        opened(gif[:end] + comment + gif[end:])
    opened(gif[:end] + b"!\xfe\3abc\0" + gif[end:])


def test_of_an_animation_the_first_frame_is_decoded():
    frames = [Image.new("RGB", (8, 8), (value, 0, 0)) for value in (10, 20, 30)]
    buffer = io.BytesIO()
    frames[0].save(buffer, "gif", save_all=True, append_images=frames[1:])
    assert decode.pillow_pixels(buffer.getvalue(), 3, LIMIT, False)[0, 0, 0] == 10


def test_more_pixels_are_allowed_only_while_an_image_is_open(monkeypatch):
    monkeypatch.setattr(Image, "MAX_IMAGE_PIXELS", 100)
    with images.open_image(large("png"), 2000), images.open_image(large("tiff"), 3000) as last:
        last.load()
        assert Image.MAX_IMAGE_PIXELS == 3000
        with pytest.raises(ValueError, match="more than the limit"):
            opened(large("png"), 1500)
        with pytest.raises(ValueError, match="cannot identify"):
            opened(b"no image", 4000)
        assert Image.MAX_IMAGE_PIXELS == 3000
    assert Image.MAX_IMAGE_PIXELS == 100
    monkeypatch.setattr(Image, "MAX_IMAGE_PIXELS", None)  # as a program may disable the limit
    opened(large("png"), 2000)
    assert Image.MAX_IMAGE_PIXELS is None
