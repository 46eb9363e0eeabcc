"""The end of a request: judged, kept or not, finished, counted; and the processor for spans of an SDK."""
