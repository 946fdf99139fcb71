"""Sections of a report: facts and material to parts of the page, one file each."""
