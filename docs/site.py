"""What mkdocs is told beyond mkdocs.yml: pages that lie elsewhere in the repository, and links to its files.

The pages of docs/ link as GitHub reads them, to files anywhere in the repository. The site holds those files
itself: README, CONTRIBUTING, CHANGELOG and the notebooks become pages, and whatever else is linked to is copied
under files/. A link to something that is not there is left as it is, which mkdocs reports; links to folders lose
their link.
"""

import base64
import json
import posixpath
import re
from collections.abc import Iterator
from pathlib import Path
from typing import Any

from mkdocs.structure.files import File, Files

ROOT = Path(__file__).resolve().parents[1]
DOCS = ROOT / "docs"
PAGES = {"README.md": "index.md", "CONTRIBUTING.md": "contributing.md", "CHANGELOG.md": "changelog.md"}
LINK = re.compile(r"\[(?P<text>[^\[\]]*(?:!\[[^\]]*\]\([^)]*\))?)\]\((?P<place>[^)\s#:]+)(?P<rest>(?:#[^)]*)?)\)")

#: Where the page of an address comes from.
_sources: dict[str, Path] = {}


def on_files(files: Files, config: Any) -> Files:
    """Add the pages and files that are not in docs/."""
    _sources.clear()
    _sources.update({file.src_uri: DOCS / file.src_uri for file in files.documentation_pages()})
    for name, uri in PAGES.items():
        _add(files, config, ROOT / name, uri)
    for notebook in sorted((ROOT / "examples").glob("*.ipynb")):
        text = "\n\n".join(_cells(json.loads(notebook.read_text()), notebook.stem, files, config))
        files.append(File.generated(config, f"notebooks/{notebook.stem}.md", content=text))
        _sources[f"notebooks/{notebook.stem}.md"] = notebook
    waiting = list(_sources)
    for uri in waiting:  # grows while files bring links of their own
        for match in LINK.finditer(files.get_file_from_path(uri).content_string):
            target = (_sources[uri].parent / match["place"]).resolve()
            other = _uri(target)
            if target.is_file() and other and files.get_file_from_path(other) is None:
                _add(files, config, target, other)
                waiting += [other] if other.endswith(".md") else []
    return files


def on_page_markdown(markdown: str, page: Any, config: Any, files: Files) -> str:
    """Let links lead to where the site has what they name."""
    uri = page.file.src_uri

    def moved(match: re.Match[str]) -> str:
        target = (_sources[uri].parent / match["place"]).resolve()
        if target.is_dir():
            return match["text"]
        other = _uri(target)
        if other is None or not target.exists():
            return match[0]
        return f"[{match['text']}]({posixpath.relpath(other, posixpath.dirname(uri) or '.')}{match['rest']})"

    return LINK.sub(moved, markdown)


def _add(files: Files, config: Any, source: Path, uri: str) -> None:
    files.append(File.generated(config, uri, abs_src_path=str(source)))
    if uri.endswith(".md"):
        _sources[uri] = source


def _uri(target: Path) -> str | None:
    """Where the site has a file of the repository; None for what lies outside of it."""
    if target.is_relative_to(DOCS):
        return target.relative_to(DOCS).as_posix()
    if not target.is_relative_to(ROOT):
        return None
    place = target.relative_to(ROOT).as_posix()
    if place.startswith("examples/") and place.endswith(".ipynb"):
        return f"notebooks/{target.stem}.md"
    return PAGES.get(place, f"files/{place}")


def _cells(notebook: dict[str, Any], name: str, files: Files, config: Any) -> Iterator[str]:
    """A notebook as markdown; its pictures become files."""
    pictures = 0
    for cell in notebook["cells"]:
        source = "".join(cell["source"])
        if cell["cell_type"] == "markdown":
            yield source
            continue
        yield f"```python\n{source}\n```"
        for output in cell["outputs"]:
            data = output.get("data", {})
            if "image/png" in data:
                pictures += 1
                uri = f"notebooks/{name}-{pictures}.png"
                files.append(File.generated(config, uri, content=base64.b64decode(data["image/png"])))
                yield f"![Picture {pictures} of the notebook]({name}-{pictures}.png)"
            elif said := "".join(output.get("text", data.get("text/plain", ""))).rstrip():
                yield f"```text\n{said}\n```"
