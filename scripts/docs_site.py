"""The hooks of mkdocs.yml: pages may link to any file of the repository, which then is a page or a file of the site.

Outside docs/ a file lies under project/. Pages of the Python names are made here, from what `unlearn_eval` exports.
"""

from __future__ import annotations

import os
import re
from pathlib import Path
from typing import Any

from mkdocs.structure.files import File, Files

ROOT = Path(__file__).resolve().parents[1]
LINK = re.compile(r"(?<=\]\()(?!\w+:)([^)\s#]+)")
WHOLE = re.compile(r"\[([^\[\]]+)\]\((?!\w+:)([^)\s#]+)\)")
CODE = re.compile(r"(```.*?```|`[^`\n]*`)", re.DOTALL)
KEPT = ("project/CHANGELOG.md",)  # no page links to it, the navigation does


def on_config(config: Any) -> Any:
    """Lists the pages of folders of which the navigation says `FOLDER/*.md`, below the folder's README.md."""
    _list_pages(config["nav"])
    return config


def _list_pages(parts: list[Any]) -> None:
    for part in parts:
        for pages in part.values() if isinstance(part, dict) else ():
            if isinstance(pages, list):
                _list_pages(pages)
    for pattern in [own for own in parts if isinstance(own, str) and own.endswith("/*.md")]:
        i = parts.index(pattern)
        found = (path.relative_to(ROOT / "docs").as_posix() for path in (ROOT / "docs").glob(pattern))
        parts[i : i + 1] = sorted(own for own in found if not own.endswith("/README.md"))


def on_files(files: Files, config: Any) -> Files:
    """Adds what pages link to, and what those link to, and the pages of names."""
    import unlearn_eval
    import unlearn_eval.metrics

    files.remove(files.get_file_from_path("reference/python.md"))  # the same for those who read the repository
    for module, page in ((unlearn_eval, "python"), (unlearn_eval.metrics, "metrics")):
        named = {name: getattr(module, name) for name in sorted(set(module.__all__), key=str.lower)}
        places = [f"{own.__module__}.{own.__qualname__}" for own in named.values() if hasattr(own, "__qualname__")]
        listed = "\n\n".join(f"::: {place}" for place in places)
        text = f"# {page.capitalize()}\n\n`from {module.__name__} import ...`\n\n{listed}\n"
        files.append(File.generated(config, f"reference/{page}.md", content=text))
    to_read = [ROOT / _in_repository(file.src_uri) for file in files.documentation_pages()]
    to_read += [ROOT / _in_repository(name) for name in KEPT]
    seen: set[str] = set()
    while to_read:
        path = to_read.pop()
        uri = _in_site(path)
        if uri in seen or not path.is_file():
            continue
        seen.add(uri)
        if files.get_file_from_path(uri) is None:
            files.append(File.generated(config, uri, abs_src_path=str(path)))
        if path.suffix == ".md":
            links = LINK.findall(CODE.sub("", path.read_text(encoding="utf-8")))
            to_read += [_target(path, link) for link in links]
    return files


def on_page_markdown(markdown: str, page: Any, files: Files, **_: Any) -> str:
    """Links as the site needs them; a link to a folder without a page is none."""
    source = ROOT / _in_repository(page.file.src_uri)
    here = Path(page.file.src_uri).parent

    def rewritten(found: re.Match[str]) -> str:
        uri = _in_site(_target(source, found[1]))
        return os.path.relpath(uri, here) if files.get_file_from_path(uri) else found[1]

    def without_link(found: re.Match[str]) -> str:
        path = _target(source, found[2])
        return found[1] if (source.parent / found[2]).is_dir() and not path.is_file() else found[0]

    parts = CODE.split(WHOLE.sub(without_link, markdown))
    return "".join(part if i % 2 else LINK.sub(rewritten, part) for i, part in enumerate(parts))


def _target(source: Path, link: str) -> Path:
    """The file that a link on a page of the repository leads to; of a folder its page."""
    path = Path(os.path.normpath(source.parent / link))
    return path / "README.md" if path.is_dir() else path


def _in_site(path: Path) -> str:
    """Where a file of the repository lies in the site's sources."""
    relative = path.relative_to(ROOT) if path.is_relative_to(ROOT) else path
    own = relative.parts[0] == "docs"
    return relative.as_posix().removeprefix("docs/") if own else f"project/{relative.as_posix()}"


def _in_repository(uri: str) -> str:
    return uri.removeprefix("project/") if uri.startswith("project/") else f"docs/{uri}"
