"""tpplanner."""
