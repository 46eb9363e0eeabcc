"""Why a request was late: breakdown, baseline, cause, evidence, and the line of code."""
