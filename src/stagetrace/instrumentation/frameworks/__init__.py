"""Web frameworks: the route of a request, its exception, its background tasks."""
