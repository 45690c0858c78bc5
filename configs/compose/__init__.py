"""Recipes across domains."""
