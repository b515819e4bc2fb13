"""What a person sees of a run: metrics, status lines, figures."""
