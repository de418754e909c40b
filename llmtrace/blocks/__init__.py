"""Basic blocks and the plan that runs them."""
