"""`python -m release`: makes the archives of a release and checks them; `make release` calls it. Nothing is uploaded.

The tree is clean, all texts name one version, NOTICE is what the metadata say, and the archives hold what they should.
Then each is installed into fresh environments, where `pip check` and the smoke test pass.
"""

from __future__ import annotations

import argparse
import datetime
import shutil
import subprocess
import sys
import tempfile
from pathlib import Path

from ldp_export import __version__
from release import archives
from release.notice import notice

ROOT = Path(__file__).parents[1]


def main() -> None:
    parser = argparse.ArgumentParser(prog="python -m release", description=__doc__.partition("\n")[0])
    parser.add_argument("--cut", metavar="VERSION", help="give the unreleased changes this version, and stop")
    parser.add_argument("--write-notice", action="store_true", help="write NOTICE, and stop")
    parser.add_argument(
        "--environment",
        nargs=2,
        metavar=("PYTHON", "TORCH"),
        action="append",
        default=[],
        help="an interpreter and a requirement of PyTorch to try the archives with; repeatable",
    )
    options = parser.parse_args()
    if options.cut:
        archives.cut(ROOT, options.cut, datetime.date.today().isoformat())
    elif options.write_notice:
        (ROOT / "NOTICE").write_text(notice(ROOT / "pyproject.toml"), encoding="utf-8")
    else:
        make(options.environment)


def make(environments: list[list[str]]) -> None:
    """Makes the archives under `dist/` and checks them; exits with what is wrong."""
    require_clean_tree()
    stop_at(archives.version_faults(ROOT, __version__))
    if (ROOT / "NOTICE").read_text(encoding="utf-8") != notice(ROOT / "pyproject.toml"):
        stop_at(["NOTICE is not what the packages' metadata say: python -m release --write-notice"])
    shutil.rmtree(ROOT / "dist", ignore_errors=True)
    run(sys.executable, "-m", "build", "--outdir", "dist", ".")  # the wheel is built from the source archive
    (wheel,), (sdist,) = (ROOT / "dist").glob("*.whl"), (ROOT / "dist").glob("*.tar.gz")
    stop_at(archives.faults(wheel, sdist))
    for i, (python, torch) in enumerate(environments):
        try_out(python, torch, sdist if i == 0 else wheel)
    print(f"ready: {wheel.relative_to(ROOT)}, {sdist.relative_to(ROOT)}; tried with {environments}")


def require_clean_tree(root: Path = ROOT) -> None:
    """Exits if the tree has changes: a release is a commit."""
    changed = subprocess.run(
        ["git", "status", "--porcelain"], cwd=root, check=True, capture_output=True, text=True
    ).stdout
    if changed:
        stop_at([f"the tree is not clean, commit or stash first:\n{changed.rstrip()}"])


def try_out(python: str, torch: str, archive: Path) -> None:
    """Installs an archive into a fresh environment, PyTorch first, and runs the smoke test there."""
    print(f"--- {archive.name} with {python} and {torch}", flush=True)
    with tempfile.TemporaryDirectory(prefix="ldp-release-") as folder:
        place = Path(folder)
        run(python, "-m", "venv", place / "venv")
        inside, smoke = place / "venv" / "bin" / "python", place / "smoke.py"
        run(inside, "-m", "pip", "install", "--quiet", torch)
        run(inside, "-m", "pip", "install", "--quiet", archive)
        run(inside, "-I", "-m", "ldp_export", "--help", stdout=subprocess.DEVNULL)  # the base install answers
        run(inside, "-m", "pip", "install", "--quiet", f"{archive}[build,cpu]", torch)
        run(inside, "-m", "pip", "check")
        shutil.copyfile(ROOT / "release" / "smoke.py", smoke)
        run(inside, "-I", smoke, place)


def run(*command: object, stdout: int | None = None) -> None:
    """Runs a command in the root of the project; exits if it fails."""
    done = subprocess.run([str(word) for word in command], cwd=ROOT, stdout=stdout, check=False)
    if done.returncode:
        stop_at([f"failed with exit status {done.returncode}: {' '.join(map(str, command))}"])


def stop_at(faults: list[str]) -> None:
    """Exits with the faults, if there are any."""
    if faults:
        sys.exit("no release: " + "\n".join(faults))


if __name__ == "__main__":
    main()
