"""What an attack finds on models that no edit has touched: the same for every edit, so it is measured once and kept."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass, replace
from pathlib import Path
from typing import Any

from unlearn_eval.attacks.base import FULL, REFERENCE, UNLEARNED, Attack, Case, ItemScore, Observation
from unlearn_eval.utils.errors import UserError
from unlearn_eval.utils.json_files import dumps, parse, plain, read_text, write_all


@dataclass(frozen=True)
class Controls:
    """An attack on the full model and, if there is one, on the reference.

    Attributes:
        observations: of these models, in the order in which they were made.
        skipped: what was not done -> why.
        notes: sentences for the reader.
    """

    observations: tuple[Observation, ...]
    skipped: Mapping[str, str]
    notes: Sequence[str]


def kept_controls(attack: Attack, case: Case, settings: Any, path: Path) -> Controls:
    """The controls in a file, or made and written there.

    Args:
        attack: one whose `controls_alone` is true.
        case: of any edit of the model.
        settings: the attack's.
        path: of the JSON file; its name has to say all that the controls depend on.
    """
    if (found := _read(path)) is not None:
        return found
    alone = replace(case, only=(FULL, REFERENCE), skipped={}, notes=[])
    made = Controls(tuple(attack.run(alone, settings)), alone.skipped, alone.notes)
    write_all({path.name: dumps(plain(asdict(made), "controls")) + "\n"}, path.parent)
    return made


def with_controls(attack: Attack, case: Case, settings: Any, known: Controls) -> tuple[Observation, ...]:
    """Everything that the attack would have yielded, of which only the unlearned model is measured now."""
    own = tuple(attack.run(replace(case, only=(UNLEARNED,)), settings))
    case.skipped.update(known.skipped)
    case.notes.extend(note for note in known.notes if note not in case.notes)
    return (*own, *known.observations)


def _read(path: Path) -> Controls | None:
    """What is in a file, or None if there is none that is whole."""
    if not path.is_file():
        return None
    try:
        content = parse(read_text(path, "controls"), path, "remove it")
        observations = tuple(
            Observation(**{**own, "scores": tuple(ItemScore(s["id"], s["values"], s["said"]) for s in own["scores"])})
            for own in content["observations"]
        )
        return Controls(observations, content["skipped"], content["notes"])
    except (UserError, KeyError, TypeError):
        return None
