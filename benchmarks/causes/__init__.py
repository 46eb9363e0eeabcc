"""The fault bench: each cause of a breach made by real means, and what is named then against what was made."""
