"""Configs of private least squares."""
