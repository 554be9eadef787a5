"""The graph: targets, stages, plan, realise, doit tasks."""
