"""Install what the named peers need, in the versions of requirements.txt, and nothing else.

python bench/install.py [numpy,torch]      # beginnings of names, as compare.py takes them; all
"""

import re
import subprocess
import sys
from pathlib import Path

from peers import PEERS

PINS = Path(__file__).with_name("requirements.txt")


def needed(names, pins):
    """The lines of requirements.txt that the peers of these names need."""
    wanted = [name.strip() for name in names.split(",") if name.strip()]
    if not wanted:
        return pins
    chosen = [p for p in PEERS if any(p.name.startswith(name) for name in wanted)]
    distributions = {name for peer in chosen for name in peer.library.distributions}
    return [pin for pin in pins if re.split("==", pin)[0] in distributions]


def main():
    pins = [line for line in PINS.read_text().split() if "==" in line]
    found = needed(sys.argv[1] if len(sys.argv) > 1 else "", pins)
    if found:
        subprocess.run([sys.executable, "-m", "pip", "install", "-q", *found], check=True)


if __name__ == "__main__":
    main()
