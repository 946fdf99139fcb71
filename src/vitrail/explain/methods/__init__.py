"""The functions of the explanation methods, one file for each; `vitrail.explain.table` has their rows."""
