"""Configs of PLeaS."""
