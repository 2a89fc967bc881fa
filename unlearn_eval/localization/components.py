"""What a localization leaves behind: which linear maps of which model, and why; a small JSON file."""

from __future__ import annotations

import re
from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import TYPE_CHECKING, Any

from unlearn_eval.models.anatomy import anatomy
from unlearn_eval.models.weights import known_weights
from unlearn_eval.results.layers import few_digits, scores_by_layer
from unlearn_eval.results.stored import Localization
from unlearn_eval.utils.errors import UserError
from unlearn_eval.utils.json_files import dumps, parse, plain, read_text, write_all
from unlearn_eval.utils.provenance import sha256_of_file
from unlearn_eval.utils.schemas import validated

if TYPE_CHECKING:
    from transformers import PreTrainedModel

VERSION = 1
KIND = "components"
MASKS = ".masks"  # the end of a file of masks' name


@dataclass(frozen=True)
class Components:
    """Where to train or edit.

    Attributes:
        method: the localization.
        modules: paths of linear maps, in the model's order.
        mlp_layers: layers whose MLP output projection is among them, the best first.
        n_weights: of the modules.
        n_weights_in_blocks: of all linear maps in the model's blocks.
        n_layers: of the model.
        budget: `{"given", "n_weights"}`; None where the method takes none.
        ranking: `{"kind", "layer", "score"}` of every unit that could be chosen, best first; score null if it has none.
        tables: effects by layer and role of a token, by head, probe accuracies: what the method saw.
        settings: of the method.
        seed: of everything random.
        model: `{"id", "architecture", "weights"}`: the canonical hash of what it was computed on.
        facts: `{"set", "hash", "n", "skipped", "chat"}`; empty where none are read.
        notes: what else should be known.
        seconds: what it took.
        versions: of the packages that made it.
        mask: `{"file", "sha256", "n_weights", "settings"}` where only single weights of the modules may be trained:
            the file, beside this one, that says which; empty where all may.
        folder: where the file of masks is; not saved.
    """

    method: str
    modules: tuple[str, ...]
    mlp_layers: tuple[int, ...]
    n_weights: int
    n_weights_in_blocks: int
    n_layers: int
    budget: Mapping[str, Any] | None = None
    ranking: tuple[Mapping[str, Any], ...] = ()
    tables: Mapping[str, Any] = field(default_factory=dict)
    settings: Mapping[str, Any] = field(default_factory=dict)
    seed: int = 0
    model: Mapping[str, Any] = field(default_factory=dict)
    facts: Mapping[str, Any] = field(default_factory=dict)
    notes: Mapping[str, Any] = field(default_factory=dict)
    seconds: float | None = None
    versions: Mapping[str, Any] = field(default_factory=dict)
    mask: Mapping[str, Any] = field(default_factory=dict)
    folder: str = ""

    @property
    def mask_file(self) -> str:
        """The path of the file of masks; empty where there are none."""
        return str(Path(self.folder) / self.mask["file"]) if self.mask else ""

    @property
    def patterns(self) -> str:
        """The modules as `--set components=...` takes them: `model.layers.(2|3).mlp.(gate_proj|up_proj|down_proj)`."""
        return patterns_of(self.modules)

    def check(self, model: PreTrainedModel, name: str) -> None:
        """Refuse another model than the one that this was computed on.

        Raises:
            UserError: naming both.
        """
        if self.model.get("weights") != known_weights(model).canonical:
            raise UserError(
                f"these components are of {self.model.get('id')}, weights {str(self.model.get('weights'))[:12]}, "
                f"not of {name}",
                "run `unlearn-eval localize` on this model, or give the method's name in place of the file",
            )

    def save(self, path: str | Path) -> Path:
        """Write the file, whole or not at all; masks first, into a file of the same name that ends in `.masks`."""
        path = Path(path).expanduser()
        content = {"kind": KIND, "version": VERSION, **plain(asdict(self), KIND)}
        del content["folder"]
        files: dict[str, str | bytes] = {}
        if self.mask:
            content["mask"]["file"] = name = f"{path.stem}{MASKS}"
            files[name] = Path(self.mask_file).read_bytes()
        else:
            del content["mask"]
        write_all({**files, path.name: dumps(content, indent=2) + "\n"}, path.parent)
        return path


def load_components(path: str | Path) -> Components:
    """The components in a file.

    Raises:
        UserError: no file, not strict JSON, or not components of a version that is known here.
    """
    path = Path(path).expanduser()
    content = parse(read_text(path, "components file"), path, "write it with `unlearn-eval localize`")
    if not isinstance(content, dict) or content.get("kind") != KIND:
        raise UserError(f"{path} holds no components", "write it with `unlearn-eval localize`")
    if content.get("version") != VERSION:
        raise UserError(
            f"{path} has version {content.get('version')!r}, and this program reads {VERSION}",
            "write it again with `unlearn-eval localize`",
        )
    validated(
        Localization, content, path, "is not whole, or has been changed", "write it again with `unlearn-eval localize`"
    )
    own = {key: value for key, value in content.items() if key not in ("kind", "version")}
    lists = {key: tuple(own.get(key, ())) for key in ("modules", "mlp_layers", "ranking")}
    found = Components(**{**own, **lists, "folder": str(path.parent) if own.get("mask") else ""})
    if found.mask:
        masks = Path(found.mask_file)
        if not masks.is_file() or sha256_of_file(masks) != found.mask["sha256"]:
            raise UserError(
                f"the masks of {path} are not in {masks}, or have been changed", "keep the two files together"
            )
    return found


def scores_of(content: Mapping[str, Any]) -> dict[str, Any]:
    """What a localization saw, small enough to go along with every edit that it places.

    `{"n_layers", "n_weights_in_blocks", "scores", "effects", "probe_accuracy", "model", "notes"}`: scores by kind of
    unit, a number for each layer or null; effects by kind as (layers, roles) with the roles' names; accuracies as in
    the tables. Four digits are kept, and what a method does not have is left out.

    Args:
        content: a components file, or the same as a dictionary.
    """
    tables, notes = content["tables"], content["notes"]
    found = {
        "n_layers": content["n_layers"],
        "n_weights_in_blocks": content["n_weights_in_blocks"],
        "scores": few_digits(scores_by_layer(content["ranking"], content["n_layers"])),
        "effects": few_digits(tables.get("effects")),
        "probe_accuracy": few_digits(tables.get("probe_accuracy")),
        "model": {"id": content["model"].get("id")},
        "notes": {key: notes[key] for key in ("way", "metric", "extraction_layer", "total_effect") if key in notes},
    }
    return {key: value for key, value in found.items() if value is not None}


def patterns_of(modules: Sequence[str]) -> str:
    """Module paths as patterns, one for all layers that hold the same maps."""
    layers: dict[tuple[str, str], dict[str, list[str]]] = {}
    for name in modules:
        found = re.fullmatch(r"(.*?\.)(\d+)\.(.+)", name)
        if found is None:
            raise ValueError(f"{name} is in no layer")
        before, layer, inner = found.groups()
        parent, _, map_ = inner.rpartition(".")
        layers.setdefault((before, parent), {}).setdefault(layer, []).append(map_)
    patterns = []
    for (before, parent), own in layers.items():
        alike: dict[tuple[str, ...], list[str]] = {}
        for layer, maps in own.items():
            alike.setdefault(tuple(maps), []).append(layer)
        for names, numbers in alike.items():
            inside = f"{parent}." if parent else ""
            patterns.append(f"{before}{_either(numbers)}.{inside}{_either(names)}")
    return ",".join(patterns)


def _either(names: Sequence[str]) -> str:
    return names[0] if len(names) == 1 else f"({'|'.join(names)})"


def mlp_layers(model: PreTrainedModel, modules: Sequence[str], ranked: Sequence[int]) -> tuple[int, ...]:
    """The layers whose MLP output projection is among the modules, in the order of `ranked`."""
    parts = anatomy(model)
    return tuple(layer for layer in dict.fromkeys(ranked) if parts.projection_name(layer) in set(modules))
