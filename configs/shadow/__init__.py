"""Configs of shadow learning."""
