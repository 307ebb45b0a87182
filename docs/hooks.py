"""What the site needs beyond `docs/`: README as its start, and the pictures of the benchmarks.

Links are written so that they work where the files are read on a forge. Here they are rewritten
for the site, in which all of that stands under one folder.
"""

import pathlib
import re

from mkdocs.structure.files import File

_ROOT = pathlib.Path(__file__).parent.parent
_README, _BENCHMARKS = "README.md", "benchmarks/README.md"


def on_files(files, config):
    """Adds README, the page on the benchmarks, and each file outside `docs/` that a page shows."""
    index = File.generated(config, "index.md", content=(_ROOT / _README).read_text("utf-8"))
    benchmarks = (_ROOT / _BENCHMARKS).read_text("utf-8")
    files.append(index)
    files.append(File.generated(config, _BENCHMARKS, content=benchmarks))
    for name in sorted(set(_shown())):
        files.append(File.generated(config, name, abs_src_path=str(_ROOT / name)))
    return files


def on_page_markdown(markdown, page, **_):
    """Links as they are in the site."""
    uri = page.file.src_uri
    if uri == "index.md":
        return re.sub(r"\]\(docs/", "](", markdown)
    if uri == _BENCHMARKS:
        return re.sub(r"\]\(\.\./docs/", "](../", markdown)
    return re.sub(r"\]\(\.\./benchmarks/", "](benchmarks/", markdown)


def _shown():
    """Files outside `docs/` to which a page links, from the root."""
    pages = [_ROOT / _README, _ROOT / _BENCHMARKS, *sorted((_ROOT / "docs").glob("*.md"))]
    for page in pages:
        for link in re.findall(r"\]\(([^)#\s]+)", page.read_text("utf-8")):
            file = (page.parent / link).resolve()
            if file.suffix in (".png", ".json") and file.is_relative_to(_ROOT / "benchmarks"):
                yield file.relative_to(_ROOT).as_posix()
