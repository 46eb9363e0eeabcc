"""Requests that wait in a service's own queue for one inference of several."""
