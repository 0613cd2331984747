"""Planning: action spaces, costs of imagined futures, solvers, receding horizon, the agent."""
