"""YAML as people write it: words stay words, mistakes are named with their line."""

from __future__ import annotations

import re
from typing import Any

import yaml

from unlearn_eval.utils.errors import UserError


class _Loader(yaml.SafeLoader):  # type: ignore[misc]
    """YAML 1.2's words (`off`, `007`, `12:30` and `1879-03-14` are texts, `1e-5` is a number), and no key twice."""

    def construct_mapping(self, node: Any, deep: bool = False) -> dict[Any, Any]:
        seen: dict[Any, int] = {}
        for key_node, _ in node.value:
            key, line = key_node.value, key_node.start_mark.line + 1
            if key in seen and key != "<<":
                raise yaml.constructor.ConstructorError(
                    None, None, f"the key '{key}' stands here and in line {seen[key]}", key_node.start_mark
                )
            seen[key] = line
        content: dict[Any, Any] = super().construct_mapping(node, deep)
        return content


_OTHERWISE = {f"tag:yaml.org,2002:{kind}" for kind in ("bool", "float", "int", "timestamp")}
_Loader.yaml_implicit_resolvers = {
    first: [pair for pair in pairs if pair[0] not in _OTHERWISE]
    for first, pairs in yaml.SafeLoader.yaml_implicit_resolvers.items()
}
_Loader.add_implicit_resolver("tag:yaml.org,2002:bool", re.compile(r"^(?:true|True|false|False)$"), list("tTfF"))
_Loader.add_implicit_resolver(
    "tag:yaml.org,2002:float",
    re.compile(r"^[-+]?(?:\d+\.\d*|\.\d+|\d+(?=[eE]))(?:[eE][-+]?\d+)?$"),
    list("-+.0123456789"),
)
_Loader.add_implicit_resolver("tag:yaml.org,2002:int", re.compile(r"^[-+]?(?:0|[1-9]\d*)$"), list("-+0123456789"))


def parse_yaml(text: str, where: str) -> Any:
    """What a YAML text says.

    Args:
        text: YAML.
        where: its file, for errors.

    Raises:
        UserError: it is not YAML, or has a key twice; with line and column.
    """
    try:
        return yaml.load(text, Loader=_Loader)  # noqa: S506 (a SafeLoader)
    except yaml.MarkedYAMLError as error:
        mark = error.problem_mark or error.context_mark
        place = f", line {mark.line + 1}, column {mark.column + 1}" if mark else ""
        raise UserError(f"{where}{place}: {error.problem or error.context}", "mend the YAML there") from error
    except (yaml.YAMLError, ValueError, RecursionError) as error:
        raise UserError(f"{where}: not YAML ({' '.join(str(error).split())})", "save it as UTF-8 text") from error
