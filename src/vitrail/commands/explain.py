"""`vitrail explain`: its line in the overview."""

USAGE = "explain RUN IMAGES…"
SUMMARY = "what the model looks at, and what speaks for a class: pictures, with a score beside each"
