"""Print the set-up commands of README.rst, one block after the other, as a shell script.

``.ci/run`` runs exactly these, so the front door cannot go stale. The blocks are those that follow
the comment ``.. set-up``.
"""

import re
from pathlib import Path


def main() -> None:
    text = (Path(__file__).parents[1] / "README.rst").read_text()
    blocks = re.findall(
        r"^\.\. set-up\n\n\.\. code-block:: bash\n\n((?: {4}.*\n|\n)+)", text, re.M
    )
    if len(blocks) != 2:
        raise SystemExit(f"README.rst should hold two set-up blocks, found {len(blocks)}")
    for block in blocks:
        print(re.sub(r"^ {4}", "", block.strip("\n"), flags=re.M))


if __name__ == "__main__":
    main()
