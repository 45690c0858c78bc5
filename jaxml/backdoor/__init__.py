"""Backdoor audits of training pipelines, and defences."""
