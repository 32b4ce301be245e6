"""Least squares whose residuals call the cost model itself: what is fitted is what is planned with."""
