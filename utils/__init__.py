"""Commands, and the packages behind them: core, run, pictures, study, course."""
