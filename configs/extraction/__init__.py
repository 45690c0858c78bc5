"""Configs of training-data extraction."""
