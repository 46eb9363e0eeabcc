"""One file for each question that latency data answers. Pure: reduced rows in, frozen results with units out."""
