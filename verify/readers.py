"""What a reader of the README and the pages types, in a fresh clone and a new environment.

Every shell block runs in the root of the clone, and the blocks of Python of a page as a script that
is saved there, where the source folder lies beside it. Commands that take long or that are steps of
.ci/run are listed below with the reason.

python verify/readers.py [pages]      # README.md docs/torch.md ...
"""

import os
import re
import sys
import tempfile
from pathlib import Path

from shared import ROOT, run
from tqdm import tqdm

BLOCK = re.compile(r"^```(sh|c|python)\n(.*?)^```$", re.DOTALL | re.MULTILINE)
# In the text: `python -m rmsprop_c info`.
INLINE = re.compile(r"`(python -m rmsprop_c [a-z]+)`")
ELSEWHERE = {
    r"make (run|test|guard)\b": "a step of .ci/run",
    r"make bench\b": "tests/docs/test_bench.py runs the comparison; all peers take 3 GB",
    r"make results\b": "40 minutes",
    r"bench/\.venv/bin/python bench/torch_integration\.py": "6 minutes, in its own environment",
}
# Readers of these have PyTorch already, without CUDA's libraries.
TORCH = ("pip", "install", "-q", "torch==2.13.0")
BEFORE = {"README.md": TORCH, "docs/torch.md": TORCH}


def commands(block):
    """The lines of a shell block that run here, and those that do not."""
    here, left = [], []
    for line in block.splitlines():
        reason = next((why for what, why in ELSEWHERE.items() if re.match(what, line)), None)
        (left if reason else here).append(f"{line}  # {reason}" if reason else line)
    return here, left


def read(page, clone, environment):
    """Run a page; what was left out."""
    text = (clone / page).read_text()
    scripts, left = [], []
    shell = ["bash", "-euc"]
    if page in BEFORE:
        run(BEFORE[page], cwd=clone, env=environment)
    for language, block in BLOCK.findall(text):
        if language == "python":
            scripts.append(block)
        elif language == "c":
            (clone / "example.c").write_text(block)
        else:
            here, elsewhere = commands(block)
            left += elsewhere
            if here:
                run([*shell, "\n".join(here)], cwd=clone, env=environment)
    for command in dict.fromkeys(INLINE.findall(text)):
        run([*shell, command], cwd=clone, env=environment)
    if scripts:
        script = clone / f"{Path(page).stem}_page.py"
        script.write_text("\n".join(scripts))
        run(["python", script.name], cwd=clone, env=environment)
    return left


def main():
    pages = sys.argv[1:] or [
        "README.md",
        *(str(path.relative_to(ROOT)) for path in sorted((ROOT / "docs").glob("*.md"))),
    ]
    with tempfile.TemporaryDirectory() as scratch, tqdm(pages, unit="page") as progress:
        clone, home = Path(scratch, "rmsprop_c"), Path(scratch, "env")
        run(["git", "clone", "-q", ROOT, clone])
        run([sys.executable, "-m", "venv", home])
        environment = {
            name: value
            for name, value in os.environ.items()
            if name not in ("CFLAGS", "LDFLAGS", "PYTHONPATH", "VIRTUAL_ENV", "MAKEFLAGS")
        } | {"PATH": f"{home / 'bin'}{os.pathsep}{os.environ['PATH']}"}
        left = []
        for page in progress:
            progress.set_description(page)
            left += read(page, clone, environment)
    print("run elsewhere, or by hand:", *sorted(set(left)), sep="\n  ")


if __name__ == "__main__":
    main()
