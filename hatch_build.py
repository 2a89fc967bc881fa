"""Build hook: a checkout's links become files in archives, and an editable install carries the autoload `.pth`."""

import shutil
import tempfile
from pathlib import Path
from typing import Any

from hatchling.builders.hooks.plugin.interface import BuildHookInterface

LINKS = ("editors", "tasks", "studies")


def check_links(root: Path) -> None:
    """Refuse a checkout whose links are text files, as Git writes them where symlinks are not supported."""
    for name in LINKS:
        if (root / "unlearn_eval" / name).is_file():
            raise RuntimeError(
                f"unlearn_eval/{name} is a text file and must be a link to ../{name}: this checkout was made without "
                "symlinks. On Windows, switch on developer mode, then: git config core.symlinks true && git checkout "
                "-f HEAD -- unlearn_eval/editors unlearn_eval/tasks unlearn_eval/studies"
            )


class LinksAndAutoload(BuildHookInterface):
    """Adds what the build's own rules leave out.

    An sdist gets copies in place of the links, so that it can be imported where it is unpacked. An editable wheel gets
    `unlearn_eval_autoload.pth` and nothing else of its own; regular wheels take both from `force-include`.
    """

    PLUGIN_NAME = "custom"
    copies: str | None = None

    def initialize(self, version: str, build_data: dict[str, Any]) -> None:
        """Say what is to be included."""
        check_links(Path(self.root))
        if self.target_name == "sdist":
            # Copied elsewhere first: the same files under two names in one tree are included once only.
            self.copies = tempfile.mkdtemp()
            for name in LINKS:
                shutil.copytree(Path(self.root, name), Path(self.copies, name))
                build_data["force_include"][f"{self.copies}/{name}"] = f"unlearn_eval/{name}"
        elif version == "editable":
            build_data["force_include_editable"] = {
                f"{self.root}/unlearn_eval_autoload.pth": "unlearn_eval_autoload.pth"
            }

    def finalize(self, version: str, build_data: dict[str, Any], artifact_path: str) -> None:
        """Remove the copies."""
        if self.copies:
            shutil.rmtree(self.copies)
