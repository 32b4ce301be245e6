"""What users read: tables, one-line answers, JSON, CSV, plots and launch commands."""
