"""Small image files for the tests of damaged and unusual images (gemma3-vision/tests/hostile_images.rs).

    python make_hostile_images.py OUT_FOLDER

Needs Pillow only (made with 12.3.0). Every image has flat colours in blocks of at least 8x8 pixels, so that lossy
codecs keep them within a few levels. Prints the colours that Pillow decodes, which the tests hold as literals.
Most PNGs are built by the tests themselves, byte by byte.
"""

import io
import sys
from pathlib import Path

from PIL import Image, ImageOps

# Upper left, upper right, lower left, lower right.
QUADRANTS = [(200, 30, 40), (30, 180, 60), (40, 60, 220), (230, 220, 70)]
PROFILE_BYTES = 3 << 20
INKS = [(255, 0, 0, 0), (0, 255, 255, 0), (0, 0, 0, 255), (30, 60, 90, 100)]


def quadrants(mode: str, colours: list, width: int, height: int) -> Image.Image:
    image = Image.new(mode, (width, height))
    for index, colour in enumerate(colours):
        x, y = index % 2 * width // 2, index // 2 * height // 2
        image.paste(colour, (x, y, x + width // 2, y + height // 2))
    return image


def fading(shift: int) -> Image.Image:
    """Opaque on the left, transparent on the right."""
    image = Image.new("RGB", (16, 16), QUADRANTS[shift])
    image.putalpha(Image.linear_gradient("L").rotate(90).resize((16, 16)))
    return image


def centres(image: Image.Image) -> list:
    width, height = image.size
    return [image.getpixel((x, y)) for y in (height // 4, height * 3 // 4) for x in (width // 4, width * 3 // 4)]


def main(folder: Path) -> None:
    folder.mkdir(parents=True, exist_ok=True)
    rgb = quadrants("RGB", QUADRANTS, 48, 32)
    rgb.save(folder / "quadrants.jpg", quality=95, subsampling=0)
    rgb.save(folder / "progressive.jpg", quality=95, subsampling=2, progressive=True)
    quadrants("CMYK", INKS, 32, 32).save(folder / "cmyk.jpg", quality=95)
    rgb.save(folder / "lossy.webp", quality=95)
    rgb.save(folder / "lossless.webp", lossless=True)
    transparent = quadrants("RGBA", [(*colour, alpha) for colour, alpha in zip(QUADRANTS, (255, 128, 1, 0))], 48, 32)
    transparent.save(folder / "transparent.webp", lossless=True, exact=True)
    second = quadrants("RGB", QUADRANTS[::-1], 48, 32)
    rgb.save(folder / "animated.webp", save_all=True, append_images=[second], duration=100, lossless=True)
    first, second = (fading(index) for index in range(2))
    first.save(folder / "animated_alpha.webp", save_all=True, append_images=[second], duration=100, quality=50)
    # A colour profile that inflates to a thousand times its size, which the limits of the decoder stop.
    rgb.save(folder / "profile_bomb.png", icc_profile=bytes(PROFILE_BYTES))
    for path in sorted(folder.iterdir()):
        if path.name == "profile_bomb.png":
            continue  # Pillow refuses it
        image = Image.open(path)
        print(path.name, path.stat().st_size, image.mode, image.size, centres(image.convert("RGB")))
    for orientation in range(1, 9):
        exif, file = Image.Exif(), io.BytesIO()
        exif[0x0112] = orientation
        rgb.save(file, "PNG", exif=exif)
        upright = ImageOps.exif_transpose(Image.open(file))
        print("orientation", orientation, upright.size, [QUADRANTS.index(colour) for colour in centres(upright)])


if __name__ == "__main__":
    main(Path(sys.argv[1]))
