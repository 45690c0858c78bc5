"""Configs of GCQ."""
