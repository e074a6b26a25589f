"""The paper's tables and figures on the data at hand, with the published figures beside them."""
