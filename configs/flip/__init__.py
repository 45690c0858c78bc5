"""Configs of FLIP."""
