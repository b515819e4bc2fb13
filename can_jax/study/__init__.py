"""Studies: many pretraining runs that differ in little, measured alike and laid side by side."""
