"""Servers on an event loop, each with its own applications: aiohttp.web, tornado, sanic."""
