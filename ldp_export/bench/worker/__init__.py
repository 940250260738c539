"""The process that measures one candidate."""
