"""The attacks of a study's cells: keyed by all that their results depend on, and refused where they cannot be."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass
from typing import Any

from unlearn_eval.data.benchmark import Chosen
from unlearn_eval.data.items import ForgetSet
from unlearn_eval.runs.study.cells.told import MODEL, TAUGHT, forget_set
from unlearn_eval.runs.study.identity import Identities, code_hash
from unlearn_eval.runs.study.spec import AttackSpec, EditorSpec, ModelSpec
from unlearn_eval.utils.errors import UserError
from unlearn_eval.utils.provenance import hash_json


@dataclass(frozen=True)
class Try:
    """One attack on a cell's edit.

    Attributes:
        attack: with its settings.
        key: of everything that its result depends on.
        control_key: of everything that its results on models without an edit depend on; empty where these belong to
            the edit.
    """

    attack: AttackSpec
    key: str
    control_key: str = ""


def tries_of(
    attacks: Sequence[AttackSpec],
    edit_key: str | None,
    dtype: str,
    selection: Sequence[Any],
    common: Mapping[str, Any],
    identities: Identities,
    taught: str | None = None,
) -> tuple[Try, ...]:
    """The attacks on one edit.

    Args:
        attacks: of the part.
        edit_key: of the edit.
        dtype: in which a reference is loaded.
        selection: what is forgotten.
        common: what edits of this model and selection have in common.
        identities: of models.
        taught: identity of the retain-only model that the study teaches, for which `model:taught` stands.

    Raises:
        UserError: an unknown attack, setting, set or model.
    """
    from unlearn_eval.attacks.base import get_attack

    found = []
    for attack in attacks:
        reference = None
        if attack.reference == f"{MODEL}{TAUGHT}":
            if taught is None:
                raise UserError(
                    f"{attack.name} compares with the model that the study teaches, and it teaches none",
                    "give finetune: {on: SET, reference: SET}, or another reference",
                )
            reference = taught
        elif attack.reference is not None:
            reference = identities.model(ModelSpec(attack.reference, attack.reference, dtype))[0]
        inputs = {
            "selection": list(selection),
            "attack": attack.attack,
            "attacks": code_hash("attacks"),
            "config": asdict(config_of_attack(attack)),
            "max_new_tokens": attack.max_new_tokens,
            "retain": None if attack.retain is None else forget_set(attack.retain).hash,
            "reference": reference,
        }
        key = hash_json({**inputs, "edit": edit_key, "name": attack.name})
        alone = get_attack(attack.attack).controls_alone
        found.append(Try(attack, key, hash_json({**inputs, **common}) if alone else ""))
    return tuple(found)


def config_of_attack(attack: AttackSpec) -> Any:
    """An attack's settings, resolved."""
    from unlearn_eval.attacks.base import get_attack
    from unlearn_eval.utils.settings import configure

    return configure(get_attack(attack.attack).Config, attack.settings)


# What cannot be --------------------------------------------------------------------------------------------


def check_kinds(attacks: Sequence[AttackSpec], editors: Sequence[tuple[EditorSpec, Any]]) -> list[str]:
    """Warnings about edits that some attacks cannot treat.

    Args:
        attacks: of a part.
        editors: of the part, each with its settings.

    Raises:
        UserError: an attack that can treat none of the part's edits.
    """
    from unlearn_eval.attacks.base import get_attack

    warnings = []
    kinds = {spec.name: kind_made_by(spec.editor, config) for spec, config in editors}
    for attack in attacks:
        about = get_attack(attack.attack)
        cannot = [name for name, kind in kinds.items() if kind is not None and kind not in about.kinds]
        if cannot and len(cannot) == len(kinds):
            raise UserError(
                f"{attack.name} cannot treat the edits of {', '.join(cannot)}: {about.why_not}",
                "leave the attack out, or put these editors into a part without it",
            )
        if cannot:
            warnings.append(
                f"{attack.name} cannot treat the edits of {', '.join(cannot)} and is null there: {about.why_not}"
            )
    return warnings


def kind_made_by(editor: str, config: Any) -> str | None:
    """The kind of edit that a method makes; None if it does not say."""
    from unlearn_eval.editing.editor import get_editor

    return get_editor(editor).kind(config)


def check_facts(attacks: Sequence[AttackSpec], chosen: Chosen, known: bool) -> None:
    """Refuse attacks for which there are too few facts to forget, or too few others.

    Where only what a model knows is forgotten nobody knows yet which facts that will be: then their number counts.

    Raises:
        UserError: as the attack would, before anything is run.
    """
    from unlearn_eval.attacks.base import get_attack
    from unlearn_eval.attacks.run import others_of

    for attack in attacks:
        try:
            items = apart_from_each_other(chosen.forget) if known else chosen.forget
            get_attack(attack.attack).check(items, others_of(chosen.forget, attack.retain), config_of_attack(attack))
        except UserError as error:
            raise UserError(f"{attack.name}: {error.message}", error.hint) from error


def apart_from_each_other(items: ForgetSet) -> ForgetSet:
    """As many items that have nothing in common: the best case for folds."""
    from dataclasses import replace

    own = tuple(
        replace(item, subject=None, group=None, question=f"{item.question} ({i})") for i, item in enumerate(items)
    )
    return ForgetSet(items.name, own)


def missing_references(attacks: Sequence[AttackSpec]) -> list[str]:
    """A warning that names what will be null because no model is given that never knew the facts."""
    without = [attack.name for attack in attacks if attack.reference is None]
    if not without:
        return []
    what = "recovery, symmetric relearning and depth"
    return [
        f"{', '.join(without)}: without a reference (a model that never knew the facts) {what} are null; give it as"
        " {attack: NAME, reference: MODEL}"
    ]
