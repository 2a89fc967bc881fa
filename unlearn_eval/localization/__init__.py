"""Localization of facts: which layers, modules and weights an answer depends on."""
