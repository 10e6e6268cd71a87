"""Put the tables and the plot of a comparison into docs/internals/devices.md.

rustguard bench generate --compare --output bench/results
python bench/generated.py bench/results
"""

from __future__ import annotations

import argparse
import json
import shutil
from pathlib import Path

DOCS = Path(__file__).resolve().parents[1] / "docs/internals"
BEGIN, END = "<!-- generate -->\n", "<!-- /generate -->\n"


def publish(results: Path, docs: Path) -> list[Path]:
    """Write the page's part between the marks, and the plot; return the files written."""
    document = json.loads((results / "generate.json").read_text())
    machine, contenders = document["machine"], document["contenders"]
    rounds = max(len(each["rounds"]) // len({one["size"] for one in each["rounds"]}) for each in contenders)
    head = f"{machine['cores']} cores of {machine['cpu']}, Linux {machine['kernel']}; {rounds} rounds.\n\n"
    page, drawing = docs / "devices.md", docs / "generate.png"
    before, rest = page.read_text().split(BEGIN)
    after = rest.partition(END)[2]
    shutil.copyfile(results / "generate.png", drawing)
    picture = "![Throughput without loss, and latency at half of it](generate.png)\n"
    page.write_text(f"{before}{BEGIN}{head}{(results / 'generate.md').read_text()}\n{picture}{END}{after}")
    return [page, drawing]


def main() -> None:
    """Publish the results of a folder."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("folder", type=Path, help="what --output named")
    for path in publish(parser.parse_args().folder, DOCS):
        print(f"written: {path}")


if __name__ == "__main__":
    main()
