"""Results of an evaluation: files, tables and pages."""
