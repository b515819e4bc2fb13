"""The reports of an evaluation: result files, tables and pages."""
