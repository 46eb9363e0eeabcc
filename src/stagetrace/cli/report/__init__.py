"""`stagetrace report`: a period in one report, and all ten answers on one page."""
