"""Pages and figures: the report of a run and the table of a bench."""
