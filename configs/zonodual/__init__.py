"""Configs of ZonoDual."""
