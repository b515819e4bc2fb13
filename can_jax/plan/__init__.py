"""The planner: estimates of memory and time of a training run on devices that are not attached."""
