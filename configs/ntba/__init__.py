"""Configs of NTBA."""
