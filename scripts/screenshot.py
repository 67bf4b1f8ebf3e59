"""Take the picture of a page that README shows, in a headless Chromium.

python scripts/screenshot.py results/mini/report.html docs/figures/report.png
"""

import argparse
import shutil
from pathlib import Path

from PIL import Image
from playwright.sync_api import sync_playwright

BROWSERS = ("chromium", "google-chrome")


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("page", type=Path)
    parser.add_argument("picture", type=Path)
    parser.add_argument("--width", type=int, default=1400)
    parser.add_argument("--height", type=int, default=900)
    arguments = parser.parse_args()
    browser = next(filter(None, map(shutil.which, BROWSERS)), None)
    if browser is None:
        parser.error("no Chromium here: apt-get install chromium")
    with sync_playwright() as play:
        opened = play.chromium.launch(executable_path=browser, chromium_sandbox=False)
        size = {"width": arguments.width, "height": arguments.height}
        page = opened.new_page(viewport=size, color_scheme="light")
        page.goto(arguments.page.absolute().as_uri())
        page.screenshot(path=arguments.picture)
        opened.close()
    # Pages have few colours, and the repository keeps every version.
    Image.open(arguments.picture).quantize(64).save(arguments.picture, optimize=True)


if __name__ == "__main__":
    main()
