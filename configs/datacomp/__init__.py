"""Configs of DataComp."""
