"""Old names of modules: they still import, say where they are now, and lead somewhere."""

import importlib

import pytest

from unlearn_eval.utils.moved import MOVED


@pytest.mark.parametrize("old", sorted(MOVED))
def test_every_old_module_leads_somewhere(old):
    module = importlib.import_module(f"unlearn_eval.{old}")
    homes = [importlib.import_module(f"unlearn_eval.{home}") for home in MOVED[old]]
    name = next(name for name in vars(homes[0]) if not name.startswith("_"))
    with pytest.warns(DeprecationWarning, match=rf"unlearn_eval\.{old}\.{name} is now unlearn_eval\.{MOVED[old][0]}\."):
        assert getattr(module, name) is getattr(homes[0], name)
    with pytest.raises(AttributeError, match="has no attribute 'nothing_like_this'; it is now unlearn_eval"):
        _ = module.nothing_like_this


def test_a_copy_of_a_gradient_method_imports_what_it_did():
    from unlearn_eval.editing.training import gradient
    from unlearn_eval.editors import gradient as old

    with pytest.warns(DeprecationWarning, match="is now unlearn_eval.editing.training.gradient.GradientConfig"):
        assert old.GradientConfig is gradient.GradientConfig
    with pytest.raises(ModuleNotFoundError):
        importlib.import_module("unlearn_eval.never_was_there")
