"""Pages and charts from raw results alone."""
