"""Reading and writing files: profiles, models, cases, results."""
