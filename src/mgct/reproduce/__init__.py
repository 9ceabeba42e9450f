"""The paper's tables and figures from trained models; `mgct.reproduce.run` makes them."""
