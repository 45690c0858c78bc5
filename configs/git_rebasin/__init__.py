"""Configs of Git Re-Basin."""
