"""Pictures for people: one look for all of them, on light and on dark pages, the same bytes for the same numbers."""
