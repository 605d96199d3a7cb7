"""Run by the Python of a clean environment, with the project's folder: is all of gptflow in it, and in the sdist?"""

import importlib.util
import subprocess
import sys
import tarfile
from pathlib import Path

project = Path(sys.argv[1])
for room in ("gptmodel", "tasks", "flows"):
    spec = importlib.util.find_spec(room)
    assert spec is not None, f"{room} is not installed"
    assert spec.origin is not None, f"{room} has no __init__.py"
    found = Path(spec.origin).parent
    assert found.is_relative_to(Path(sys.prefix)), f"{room} is imported from {found}, not from what was installed"
    assert (found / "py.typed").is_file(), f"{room} has no py.typed, so its types are not seen"
    files = (f for f in (project / room).rglob("*") if f.is_file() and "__pycache__" not in f.parts)
    expected = {f.relative_to(project / room) for f in files}
    if missing := sorted(str(name) for name in expected if not (found / name).is_file()):
        sys.exit(f"not installed: {', '.join(f'{room}/{name}' for name in missing)}")
for spare in ("pytest", "playwright", "mypy", "transformers", "hatchling"):
    assert importlib.util.find_spec(spare) is None, f"{spare} is for development, and comes with an install"

listed = ["git", "-C", str(project), "ls-files", "-z", "--cached", "--others", "--exclude-standard"]
done = subprocess.run(listed, capture_output=True, text=True, check=False)
if done.returncode == 0:  # an unpacked sdist is no checkout
    (archive,) = (project / "dist").glob("*.tar.gz")
    with tarfile.open(archive) as file:
        packed = {name.split("/", 1)[1] for name in file.getnames() if "/" in name}
    tracked = {name for name in done.stdout.split("\0") if name and (project / name).is_file()}
    if other := sorted(packed - tracked - {"PKG-INFO"}) + sorted(tracked - packed):
        sys.exit(f"the sdist is not the checkout; they differ in {', '.join(other)}")
