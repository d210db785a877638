"""Films, drawings and figures, and the studies of a trained agent behind them."""
