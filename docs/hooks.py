"""What the site needs beyond `docs/`: README as its start, other pages, and pictures.

Links are written so that they work where the files are read on a forge. Here they are rewritten
for the site, in which all of that stands under one folder.
"""

import pathlib
import re

from mkdocs.structure.files import File

_ROOT = pathlib.Path(__file__).parent.parent
_OUTSIDE = ("benchmarks/README.md", "examples/README.md", "CONTRIBUTING.md")


def on_files(files, config):
    """Adds README, the page on the benchmarks, and each file outside `docs/` that a page shows."""
    pages = {"index.md": "README.md", **{name: name for name in _OUTSIDE}}
    for uri, name in pages.items():
        content = (_ROOT / name).read_text("utf-8")
        files.append(File.generated(config, uri, content=content))
    for name in sorted(set(_shown())):
        files.append(File.generated(config, name, abs_src_path=str(_ROOT / name)))
    return files


def on_page_markdown(markdown, page, **_):
    """Links as they are in the site, where `docs/` is the root."""
    if page.file.src_uri in ("index.md", *_OUTSIDE):
        return re.sub(r"\]\((\.\./)?docs/", r"](\1", markdown)
    return re.sub(r"\]\(\.\./(benchmarks|examples)/", r"](\1/", markdown)


def _shown():
    """Files outside `docs/` to which a page links, from the root."""
    pages = [*(_ROOT / name for name in ("README.md", *_OUTSIDE)), *(_ROOT / "docs").glob("*.md")]
    for page in pages:
        for link in re.findall(r"\]\(([^)#\s]+)", page.read_text("utf-8")):
            file = (page.parent / link).resolve()
            inside = any(file.is_relative_to(_ROOT / x) for x in ("benchmarks", "examples"))
            if inside and file.suffix in (".png", ".json", ".py", ".yaml"):
                yield file.relative_to(_ROOT).as_posix()
