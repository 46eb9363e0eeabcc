"""Patches of servers, frameworks, clients and libraries that fewer services have: an extension like any other.

`registry.py` is found by an entry point of the group `stagetrace.patches`, as those of other distributions are.
"""
