"""Stickers for `vlformer prepare-data scenes --stickers DIR`, made from collections of other people's drawings.

npm pack emoji-datasource-google @mdi/font @lobehub/fluent-emoji-3d @lobehub/fluent-emoji-flat
# Noto's emoji, Material Design Icons (both Apache-2.0), Microsoft's Fluent emoji in two styles (MIT); unpack each
python scripts/stickers.py DIR --emoji GOOGLE/img/google/64 3D/assets FLAT/assets --icons MDI   # MDI: css/, fonts/

Folders of `--emoji` hold a PNG, WebP or SVG file for each emoji, named by its code points. SVG: pip install resvg_py
"""

from __future__ import annotations

import argparse
import re
import shutil
from pathlib import Path

from PIL import Image, ImageDraw, ImageFont

EMOJI = {
    "apple": "1f34e 1f34f", "bag": "1f45c", "ball": "26bd 1f3c0 1f3be 1f3d0", "balloon": "1f388", "banana": "1f34c",
    "bear": "1f9f8", "bell": "1f514", "boat": "26f5", "book": "1f4d5 1f4d7 1f4d8 1f4d9",
    "bottle": "1f37e 1f9f4 1f37c", "box": "1f4e6", "butterfly": "1f98b", "candle": "1f56f-fe0f", "car": "1f697 1f699",
    "carrot": "1f955", "chair": "1fa91", "clock": "23f0 1f570-fe0f", "crown": "1f451", "cup": "2615 1f375",
    "duck": "1f986", "fish": "1f41f 1f420", "flower": "1f33c 1f33b 1f337 1f339", "guitar": "1f3b8",
    "hat": "1f452 1f3a9 1f9e2", "heart": "2764-fe0f", "house": "1f3e0", "key": "1f511", "kite": "1fa81",
    "mushroom": "1f344", "pear": "1f350", "pencil": "270f-fe0f 1f58d-fe0f", "phone": "1f4f1",
    "plane": "2708-fe0f 1f6e9-fe0f", "plant": "1fab4", "shirt": "1f455",
    "shoe": "1f45f 1f45e", "sock": "1f9e6", "spoon": "1f944", "star": "2b50", "teapot": "1fad6",
    "tree": "1f333 1f332", "truck": "1f69a 1f69b", "umbrella": "2602-fe0f 2614", "vase": "1f3fa",
}  # fmt: skip
ICONS = {
    "apple": "food-apple", "bag": "purse shopping", "ball": "soccer basketball tennis-ball volleyball",
    "balloon": "balloon", "bear": "teddy-bear", "bell": "bell", "boat": "sail-boat",
    "book": "book book-variant notebook", "bottle": "bottle-soda bottle-soda-classic bottle-wine bottle-tonic",
    "box": "package-variant-closed cube", "butterfly": "butterfly", "candle": "candle",
    "car": "car car-side car-hatchback car-estate", "carrot": "carrot", "chair": "seat", "clock": "clock alarm",
    "crown": "crown", "cup": "coffee cup tea glass-mug-variant", "duck": "duck", "fish": "fish",
    "flower": "flower flower-tulip flower-poppy", "guitar": "guitar-acoustic guitar-electric", "hat": "hat-fedora",
    "heart": "heart", "house": "home home-variant", "key": "key key-variant", "kite": "kite",
    "lamp": "lamp floor-lamp desk-lamp", "mushroom": "mushroom", "pear": "fruit-pear", "pencil": "pencil lead-pencil",
    "phone": "cellphone", "plane": "airplane", "shirt": "tshirt-crew tshirt-v", "shoe": "shoe-sneaker shoe-formal",
    "spoon": "silverware-spoon", "star": "star", "table": "table-furniture", "tree": "tree pine-tree",
    "truck": "truck dump-truck", "umbrella": "umbrella",
}  # fmt: skip
PIXELS = 160  # of an icon's square


def copy_emoji(source: Path, number: int, target: Path) -> int:
    """`number`: of the collection, as all name their files alike."""
    count = 0
    for kind, codes in EMOJI.items():
        for code in codes.split():
            (target / kind).mkdir(parents=True, exist_ok=True)
            write_png(source, code, target / kind / f"{code}{f'-{number}' if number else ''}.png")
            count += 1
    return count


def write_png(source: Path, code: str, target: Path) -> None:
    found = [path for ending in ("png", "webp", "svg") if (path := source / f"{code}.{ending}").is_file()]
    if not found:
        raise SystemExit(f"no {source / code}.png, .webp or .svg")
    if found[0].suffix == ".png":
        shutil.copyfile(found[0], target)
    elif found[0].suffix == ".webp":
        Image.open(found[0]).convert("RGBA").resize((PIXELS, PIXELS), Image.Resampling.LANCZOS).save(target)
    else:
        import resvg_py

        target.write_bytes(bytes(resvg_py.svg_to_bytes(svg_path=str(found[0]), width=PIXELS)))


def draw_icons(source: Path, target: Path) -> int:
    rules = (source / "css/materialdesignicons.css").read_text(encoding="utf-8")
    code_of = dict(re.findall(r'\.mdi-([a-z0-9-]+)::before \{\s*content: "\\([0-9A-F]+)"', rules))
    font = ImageFont.truetype(str(source / "fonts/materialdesignicons-webfont.ttf"), PIXELS)
    count = 0
    for kind, names in ICONS.items():
        for name in names.split():
            picture = Image.new("RGBA", (PIXELS * 2, PIXELS * 2))
            ImageDraw.Draw(picture).text((PIXELS, PIXELS), chr(int(code_of[name], 16)), "black", font, anchor="mm")
            (target / kind).mkdir(parents=True, exist_ok=True)
            picture.save(target / kind / f"mdi-{name}.png")
            count += 1
    return count


def main() -> None:
    options = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    options.add_argument("target", type=Path)
    options.add_argument("--emoji", type=Path, nargs="*", default=[])
    options.add_argument("--icons", type=Path)
    given = options.parse_args()
    emoji = sum(copy_emoji(folder, number, given.target) for number, folder in enumerate(given.emoji))
    icons = draw_icons(given.icons, given.target) if given.icons else 0
    print(f"{given.target}: {emoji} emoji, {icons} icons")


if __name__ == "__main__":
    main()
