"""Settings of every method from text: kinds and ranges by their annotations, before any model is loaded."""

import dataclasses

import pytest

from unlearn_eval.attacks.base import attack_names, get_attack
from unlearn_eval.editing.editor import editor_names, get_editor
from unlearn_eval.editing.training.gradient import GradientConfig
from unlearn_eval.localization.base import get_localizer, localizer_names
from unlearn_eval.localization.mask_scores import MaskConfig
from unlearn_eval.utils.errors import UserError
from unlearn_eval.utils.settings import configure

CONFIGS = {
    **{name: get_editor(name).Config for name in editor_names()},
    **{f"attack {name}": get_attack(name).Config for name in attack_names()},
    **{f"localization {name}": get_localizer(name).Config for name in localizer_names()},
    "masks": MaskConfig,
    "finetune": GradientConfig,
}
NEVER = ("null", "", "NaN", "Infinity", "-Infinity", "1e999", "9" * 400, "[1", '"x"', "{}", "x")


def fields_of(config, prefix=""):
    """Name and default of every setting, nested ones too."""
    for field in dataclasses.fields(config):
        value = getattr(config, field.name)
        if dataclasses.is_dataclass(value):
            yield from fields_of(value, f"{prefix}{field.name}.")
        else:
            yield f"{prefix}{field.name}", value


def wrong_values(default):
    if isinstance(default, bool):
        return ("2", "1", "yes", *NEVER)
    if isinstance(default, str):
        return ("a\0b", "half \ud800")
    if isinstance(default, tuple):
        return () if default and isinstance(default[0], str) else ("x", "null", "1e999", "-7", "true")
    below = () if default < 0 else ("-7",)
    whole = ("2.9", "1e-3", "0.5") if isinstance(default, int) else ()
    return (*below, *whole, "[1]", "1,2", "true", "false", *NEVER)


@pytest.mark.parametrize("name", sorted(CONFIGS))
def test_every_setting_refuses_what_it_cannot_be(name):
    for setting, default in fields_of(CONFIGS[name]()):
        for text in wrong_values(default):
            with pytest.raises(UserError, match="cannot be|cannot be set|unknown|do not make sense") as error:
                configure(CONFIGS[name], {setting: text})
            assert error.value.hint, (setting, text)


@pytest.mark.parametrize("name", sorted(CONFIGS))
def test_every_setting_takes_its_default(name):
    for setting, default in fields_of(CONFIGS[name]()):
        if default not in ((), "") and not isinstance(default, str):
            text = ",".join(map(str, default)) if isinstance(default, tuple) else str(default).lower()
            found = configure(CONFIGS[name], {setting: text})
            assert dict(fields_of(found))[setting] == default


@pytest.mark.parametrize(
    ("name", "setting"),
    [
        ("memit", "target.steps"),
        ("memit", "target.learning_rate"),
        ("memit", "preservation"),
        ("rome", "keys_per_dimension"),
        ("grace", "steps"),
        ("grace", "epsilon"),
        ("wise", "steps"),
        ("wise", "mask"),
        ("memoir", "batch"),
        ("npo", "batch_size"),
        ("npo", "epochs"),
        ("npo", "learning_rate"),
        ("altpo", "alternates"),
        ("attack relearn", "steps"),
        ("attack soft_prompt", "n_tokens"),
        ("attack quantize", "group_size"),
        ("localization causal_tracing", "samples"),
        ("masks", "steps"),
    ],
)
def test_nothing_of_what_there_must_be_some_is_refused(name, setting):
    with pytest.raises(UserError, match=f"{setting} cannot be '0'") as error:
        configure(CONFIGS[name], {setting: "0"})
    assert "of at least 1" in error.value.hint or "above 0" in error.value.hint
