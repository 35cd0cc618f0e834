"""Says whether a picture shows what a caption says; exit 0 if it does, 1 if not.

python examples/sd3_tiny/check_picture.py picture.png "a red circle left of a blue square"
"""

from __future__ import annotations

import argparse
import sys
from pathlib import Path

from checker import describe, shows
from PIL import Image


def main() -> None:
    """Prints what the picture shows and whether that is what was asked for."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("picture", type=Path)
    parser.add_argument("caption")
    args = parser.parse_args()
    with Image.open(args.picture) as picture:
        seen = describe(picture)
        right = shows(picture, args.caption)
    things = [
        f"a {one.colour} {one.shape} at ({one.centre[0]:.0f}, {one.centre[1]:.0f})" for one in seen
    ]
    verdict = "as asked" if right else "not as asked"
    print(f"{args.picture} shows {' and '.join(things) or 'nothing'}: {verdict}")
    sys.exit(0 if right else 1)


if __name__ == "__main__":
    main()
