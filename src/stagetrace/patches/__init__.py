"""Patches: a library, a file. `registry.py` names the patch of each module."""
