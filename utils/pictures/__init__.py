"""Films, drawings and figures, and what these ask of a trained agent."""
