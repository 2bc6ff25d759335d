"""Pages that stand alone: a shell that all share, and the parts of a memory report's page.

`drawn` says what each plot gets, as plain data; the HTML of `sections` and the scripts beside it only draw that.
"""
